"""Who may talk to the viewer: pages of its own address only, so that other sites in the same browser cannot read the scene or steer the viewer."""

import errno
import ipaddress
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

from npbgpp.errors import InputError

_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
_PORTS = 100  # tried, beginning with the wanted one
_TAKEN = (errno.EADDRINUSE,)


def is_local(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def refusal(headers: Mapping[str, str], local: bool) -> str | None:
    """Why a request is refused; None if it is not.

    Args:
        headers: of the request.
        local: the viewer is bound to this machine: requests by other names come from pages that turned their own name into this address.
    """
    host = headers.get("Host", "")
    if local and urlsplit(f"//{host}").hostname not in _LOCAL_NAMES:
        return f"expected a request to localhost, got one to {host or 'no host'}"
    origin = headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc != host:
        return f"expected a request of the viewer's own page, got one of {origin}"
    return None


def free_port(host: str, wanted: int) -> int:
    """The first free port from the wanted one on. Raises InputError for an address that this machine does not have, or when all are taken."""
    try:
        family = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"host={host}: expected an address of this machine, such as 127.0.0.1, got one that is unknown ({error})"
        ) from error
    for port in range(wanted, min(wanted + _PORTS, 1 << 16)):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except PermissionError:
                raise InputError(f"port={port}: expected a port that this user may open; choose one above 1023") from None
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise InputError(
                        f"host={host}: expected an address of this machine, got one that cannot be opened ({error})"
                    ) from error
                continue
            return port
    raise InputError(f"port={wanted}: expected a free port, got {_PORTS} that are taken; choose another one")
