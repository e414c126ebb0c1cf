"""``flower-superlink`` behind a guard: a thin start of Flower's own command.

Whoever can open a TLS connection to a SuperLink may use all of its HTTP interface: Flower's nodes,
but also its command line, which registers keys and submits code that the SuperLink runs. The guard
lets other machines use what nodes need and nothing else, and bounds what they may send before any
of it is read.
"""

import os
import sys
from collections.abc import Callable, MutableMapping
from logging import WARNING
from typing import Any

from flwr.common.logger import log
from flwr.superlink import extensions
from flwr.superlink.cli.flower_superlink import flower_superlink
from starlette.middleware import Middleware

from federation.deploy.processes import MAX_BYTES, end_with_parent
from graphcl.errors import FederationError

_FLEET, _REGISTER, _HEALTH = "/v1/fleet/", "/v1/fleet/register-node", "/health"
_LOGGED, _PATH = 1000, 80  # refusals that are all logged, and how much of their paths
_LOOPBACK = ("127.0.0.1", "::1")

_Scope = MutableMapping[str, Any]
_App = Callable[[_Scope, Any, Any], Any]


class Guard:
    """Refuses requests by their path, their origin and their size.

    Args:
        app: What is guarded.
        max_bytes: The largest body of a request from a node.
    """

    def __init__(self, app: _App, max_bytes: int):
        self._app, self._max_bytes = app, max_bytes
        self._refused = 0

    async def __call__(self, scope: _Scope, receive: Any, send: Any) -> None:
        """Answer a request, or let it pass."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        reason = self._reason(scope)
        if reason is None:
            await self._app(scope, receive, send)  # uvicorn holds it to the length it told
            return
        status, text = reason
        self._refused += 1
        if self._refused <= _LOGGED or self._refused % _LOGGED == 0:  # a disk must not fill
            origin = (scope.get("client") or ("an unknown address",))[0]
            path = repr(scope["path"][:_PATH])  # with line feeds as they were escaped
            log(WARNING, "refused %s from %s: %s (%d so far)", path, origin, text, self._refused)
        await _refuse(send, status, text)

    def _reason(self, scope: _Scope) -> tuple[int, str] | None:
        """Return status and reason if a request must not pass."""
        path = scope["path"]
        here = (scope.get("client") or ("",))[0] in _LOOPBACK
        if path == _REGISTER:
            return 403, "a site takes part once the operator has registered its key"
        if not path.startswith(_FLEET):
            if here or path == _HEALTH:
                return None
            return 403, "only nodes are served to other machines"
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        if len(lengths) != 1 or not lengths[0].isdigit():
            return 411, "a request must tell its length"
        if int(lengths[0]) > self._max_bytes:
            return 413, f"{int(lengths[0])} bytes, and {self._max_bytes} are allowed"
        return None


async def _refuse(send: Any, status: int, text: str) -> None:
    body = text.encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def main() -> Any:
    """Run the SuperLink with Flower's own options."""
    end_with_parent()
    if not hasattr(extensions, "get_middleware"):
        raise FederationError(
            "this version of Flower starts its SuperLink otherwise than 1.41 does: install "
            '"flwr>=1.41,<1.42", or adapt federation/deploy/superlink.py'
        )
    guard = Middleware(Guard, max_bytes=int(os.environ[MAX_BYTES]))
    extensions.get_middleware = lambda: (guard,)
    return flower_superlink()


if __name__ == "__main__":
    sys.exit(main())
