"""viser's server, which answers pages of its own address only and publishes nothing."""

import functools
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import viser
import viser.infra._infra as viser_infra
from websockets.datastructures import Headers
from websockets.http11 import Response

from npbgpp.viewer.access import is_local, refusal

_FORBIDDEN = 403


def open_server(host: str, port: int, label: str) -> viser.ViserServer:
    """A server on a free port. ``label`` is the title of its page."""
    logging.getLogger("websockets").setLevel(logging.WARNING)
    with _guarded(is_local(host)), redirect_stdout(io.StringIO()):  # viser prints links of its own
        return _PrivateServer(host=host, port=port, label=label, verbose=False)


class _PrivateServer(viser.ViserServer):
    """viser's server, which browsers cannot ask to publish itself through a tunnel."""

    def request_share_url(self, verbose: bool = True) -> None:
        """Does nothing."""


@contextmanager
def _guarded(local: bool) -> Iterator[None]:
    """Servers that viser starts within refuse requests of other origins: viser has no setting for it, so its call of ``websockets`` is wrapped."""
    module = viser_infra.websockets.asyncio.server
    serve = module.serve

    @functools.wraps(serve)
    def guarded(*arguments: Any, process_request: Any = None, **options: Any) -> Any:
        def checked(connection: Any, request: Any) -> Any:
            reason = refusal(request.headers, local)
            if reason is not None:
                return Response(_FORBIDDEN, "Forbidden", Headers(), f"{reason}\n".encode())
            return process_request(connection, request)

        return serve(*arguments, process_request=checked, **options)

    module.serve = guarded  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        module.serve = serve  # type: ignore[misc]
