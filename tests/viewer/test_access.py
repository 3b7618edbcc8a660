"""Who may talk to the viewer."""

import socket

import pytest

from npbgpp.errors import InputError
from npbgpp.viewer.access import free_port, is_local, refusal


@pytest.mark.parametrize("host", ["localhost:8080", "127.0.0.1:9000", "[::1]:8080"])
def test_own_pages_are_served(host):
    assert refusal({"Host": host}, local=True) is None
    assert refusal({"Host": host, "Origin": f"http://{host}"}, local=True) is None


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "localhost:8080", "Origin": "http://elsewhere.example"},
        {"Host": "localhost:8080", "Origin": "http://localhost:8081"},
        {"Host": "localhost:8080", "Origin": "null"},
        {"Host": "elsewhere.example:8080", "Origin": "http://elsewhere.example:8080"},  # a name that was pointed to this machine
        {},
    ],
)
def test_other_pages_are_refused(headers):
    assert refusal(headers, local=True) is not None


def test_open_viewers_have_any_name_and_one_origin():
    assert refusal({"Host": "gpu7:8080", "Origin": "http://gpu7:8080"}, local=False) is None
    assert refusal({"Host": "gpu7:8080", "Origin": "http://elsewhere.example"}, local=False) is not None


def test_local_addresses():
    assert is_local("127.0.0.1") and is_local("localhost") and is_local("::1")
    assert not is_local("0.0.0.0") and not is_local("gpu7")


def test_ports_that_are_taken_are_passed_over():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert port < free_port("127.0.0.1", port) < port + 20


def test_addresses_of_other_machines_are_refused():
    with pytest.raises(InputError, match="host=203.0.113.7: expected an address of this machine"):
        free_port("203.0.113.7", 8080)
    with pytest.raises(InputError, match="host=no such name"):
        free_port("no such name", 8080)
