"""A small HTTP endpoint at which Prometheus reads how a deployment is."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from federation.deploy.status import exposition, read_status
from graphcl.errors import ConfigError, GraphCLError

_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class _Handler(BaseHTTPRequestHandler):
    """Answers ``GET /metrics`` and nothing else."""

    def __init__(self, folder: Path, *own: Any):
        self._folder = folder
        super().__init__(*own)

    def do_GET(self) -> None:
        if self.path != "/metrics":
            self.send_error(404)
            return
        try:
            body = exposition(read_status(self._folder)).encode()
        except GraphCLError:
            self.send_error(503)
            return
        self.send_response(200)
        self.send_header("Content-Type", _TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *own: Any) -> None:
        """Say nothing: somebody asks every few seconds."""


class _Server6(ThreadingHTTPServer):
    address_family = socket.AF_INET6


@contextmanager
def exposed(folder: Path, address: str) -> Iterator[int]:
    """Serve the metrics of a server's folder while the block runs; yield the port.

    Args:
        folder: The server's.
        address: ``host:port``; port 0 = any that is free.

    Raises:
        ConfigError: If nothing can listen there.
    """
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdigit():
        raise ConfigError(f"--metrics {address}: write HOST:PORT, e.g. 127.0.0.1:9464")
    kind = _Server6 if ":" in host else ThreadingHTTPServer
    try:
        server = kind((host.strip("[]"), int(port)), partial(_Handler, folder))
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--metrics {address}: cannot listen there: {error}") from None
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
