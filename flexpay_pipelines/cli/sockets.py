"""Sockets to listen on: an address and port, or a Unix socket.

What belongs here: opening them, and one sentence where that fails. What does not: what is served (`cli/stripe`).
"""

from __future__ import annotations

import errno
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flexpay_pipelines.errors import BadInput

LOOPBACK = "127.0.0.1"


@contextmanager
def listening(host: str, port: int, path: Path | None) -> Iterator[tuple[socket.socket, str]]:
    """A listening socket, and where it listens as a person writes it; a Unix socket is removed at the end.

    Raises:
        BadInput: the address, the port or the path cannot be used.
    """
    if path is None:
        with _opened(host, port) as listener:
            yield listener, f"http://{f'[{host}]' if ':' in host else host}:{port}"
        return
    with _opened_unix(path) as listener:
        try:
            yield listener, f"{path}:"
        finally:
            path.unlink(missing_ok=True)


def _opened(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise BadInput(f"Port {port} is in use: choose another with --port.") from error
        reason = error.strerror or error
        raise BadInput(f"Cannot listen on {host} port {port} ({reason}): choose others with --host, --port.") from error


def _opened_unix(path: Path) -> socket.socket:
    if path.exists():
        _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        # For the proxy in front, by its group; for nobody else.
        path.chmod(0o660)
        listener.listen()
    except OSError as error:
        listener.close()
        raise BadInput(f"Cannot listen on {path} ({error.strerror or error}): choose another with --socket.") from error
    return listener


def _remove_stale(path: Path) -> None:
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise BadInput(f"{path} is no socket: choose another path with --socket.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise BadInput(f"Somebody listens on {path} already: stop that first, or choose another with --socket.")
