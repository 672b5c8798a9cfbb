"""Servers that several processes share on this machine: the first user starts one, the last one stops it.

What belongs here: the file locks by which users find each other, and the life of an HTTP stand-in run as a subprocess.
What does not: what a server answers (`stripe_server`, `slack_server`), the life of PostgreSQL (`postgres`).

Locks in a server's folder: `gate.lock` is held while somebody starts, stops or counts users; every user holds
`users.lock` shared; the server itself holds `serving.lock`. The kernel drops them when a process is killed, so none
of them can be left over. A server whose users are all gone without stopping it (SIGKILL) stops by itself.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from flexpay_pipelines.errors import BadInput, PermanentError, TransientError, disk_errors

LOG = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
START_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 10.0
UNUSED_CHECK_SECONDS = 0.5
_POLL_SECONDS = 0.02
# The servers that this process has started; each is reaped when it is stopped, whoever of its users does that.
_CHILDREN: dict[int, subprocess.Popen[bytes]] = {}


@contextmanager
def locked(path: Path, how: int) -> Iterator[int]:
    """Hold the file lock `path` (`fcntl.LOCK_EX`, `LOCK_SH`, with `LOCK_NB` or without).

    Raises:
        BlockingIOError: LOCK_NB was asked for, and somebody else holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, how)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def shared(
    folder: Path, *, what: str, running: Callable[[], bool], start: Callable[[], None], stop: Callable[[], None]
) -> Iterator[None]:
    """Have a server running for as long as the block lasts; the last of all its users stops it.

    Args:
        folder: the server's folder; users with the same folder share one server.
        what: the server's name in a message, such as `the embedded PostgreSQL`.
        running, start, stop: looked at and called under the gate, never two at once.
    """
    with disk_errors(f"starting {what}"):
        folder.mkdir(parents=True, exist_ok=True)
        users = os.open(folder / "users.lock", os.O_RDWR | os.O_CREAT, 0o600)
    gate = folder / "gate.lock"
    try:
        try:
            with locked(gate, fcntl.LOCK_EX):
                fcntl.flock(users, fcntl.LOCK_SH)
                if not running():
                    start()
            yield
        finally:
            with _uninterrupted(), locked(gate, fcntl.LOCK_EX):
                try:
                    fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    LOG.debug("%s is still used by another process", folder)
                else:
                    stop()
    finally:
        os.close(users)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold back a second Ctrl-C while a server is being stopped; it arrives once that is done."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class HttpServer:
    """An HTTP server in a subprocess of its own, on loopback. The module it runs calls `serve`."""

    def __init__(self, folder: Path, module: str, *, what: str, port: int | None = None) -> None:
        self.folder = folder.resolve()
        self.module = module
        self.what = what
        self.wanted_port = port
        self._serving = self.folder / "serving.lock"
        self._record = self.folder / "server.json"
        self.log_file = self.folder / "server.log"

    @property
    def running(self) -> bool:
        """Whether a process serves this folder."""
        try:
            with locked(self._serving, fcntl.LOCK_EX | fcntl.LOCK_NB):
                return False
        except BlockingIOError:
            return self._record.exists()

    @property
    def record(self) -> dict[str, Any]:
        """`pid` and `port` of the process that serves."""
        return dict(json.loads(self._record.read_text()))

    def start(self) -> None:
        """Start the subprocess and wait until it serves.

        Raises:
            BadInput: the port is taken.
            PermanentError: it ends at once; the message holds the end of its log.
            TransientError: it does not serve in time.
        """
        self._record.unlink(missing_ok=True)
        listener = self._listen()
        with listener, disk_errors(f"starting {self.what}"), self.log_file.open("wb") as log:
            # A session of its own: Ctrl-C in the terminal reaches us, and we stop it when its users have finished.
            child = subprocess.Popen(
                [sys.executable, "-m", self.module, str(self.folder), str(listener.fileno())],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(listener.fileno(),), start_new_session=True,
            )  # fmt: skip
        try:
            self._await_serving(child)
        except BaseException:
            child.kill()
            child.wait()
            raise
        _CHILDREN[child.pid] = child

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, self.wanted_port or 0))
        except OSError as error:
            listener.close()
            if error.errno == errno.EADDRINUSE:
                raise BadInput(
                    f"Port {self.wanted_port} is in use: stop what listens there, or choose another for {self.what}."
                ) from error
            raise BadInput(
                f"Port {self.wanted_port} cannot be opened for {self.what} ({error.strerror}): choose another port."
            ) from error
        listener.listen(1024)
        return listener

    def _await_serving(self, child: subprocess.Popen[bytes]) -> None:
        until = time.monotonic() + START_TIMEOUT_SECONDS
        while not self.running:
            if child.poll() is not None and not self.running:
                raise PermanentError(f"{self.what} ended at once: {self._log_end()} (log: {self.log_file}).")
            if time.monotonic() > until:
                raise TransientError(f"{self.what} did not start in {START_TIMEOUT_SECONDS:.0f} s: run it again.")
            time.sleep(_POLL_SECONDS)

    def stop(self) -> None:
        """Stop the subprocess and wait until it is gone."""
        if not self._record.exists():
            return
        for asked in (signal.SIGTERM, signal.SIGKILL):
            if self.running:
                self._signal(asked)
            until = time.monotonic() + STOP_TIMEOUT_SECONDS
            while self.running and time.monotonic() < until:
                time.sleep(_POLL_SECONDS)
        if (child := _CHILDREN.pop(self.record["pid"], None)) is not None:
            child.wait(STOP_TIMEOUT_SECONDS)

    def _signal(self, which: signal.Signals) -> None:
        pid = self.record["pid"]
        try:
            os.kill(pid, which)
        except ProcessLookupError:
            LOG.debug("%s has just ended by itself", self.what)

    def _log_end(self) -> str:
        lines = self.log_file.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


@contextmanager
def running_http_server(folder: Path, module: str, *, what: str, port: int | None = None) -> Iterator[str]:
    """Have `python -m module FOLDER SOCKET` serving on loopback; yields its address, `http://127.0.0.1:PORT`.

    Shared between processes by `folder`; the last user stops it. The state that must outlive it belongs in `folder`.

    Raises:
        BadInput: `port` is taken, or the server already runs on another one.
    """
    server = HttpServer(folder, module, what=what, port=port)
    with shared(server.folder, what=what, running=lambda: server.running, start=server.start, stop=server.stop):
        listening = server.record["port"]
        if port is not None and listening != port:
            raise BadInput(f"{what} already runs on port {listening}: use that one, or end what uses it first.")
        yield f"http://{LOOPBACK}:{listening}"


def serve(application: Any, arguments: Sequence[str]) -> None:
    """The subprocess's side: serve an ASGI application until told to stop, or until nobody uses it any more.

    Args:
        application: an ASGI application, for example Starlette's.
        arguments: the folder and the number of the listening socket, as `running_http_server` gives them.
    """
    import uvicorn  # noqa: PLC0415 - users of the server need not load it

    folder, descriptor = Path(arguments[0]), int(arguments[1])
    configuration = uvicorn.Config(
        application, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=2
    )
    server = uvicorn.Server(configuration)

    def stop() -> None:
        server.should_exit = True

    listener, record = socket.socket(fileno=descriptor), folder / "server.json"
    with ExitStack() as held:
        if not _only_one(folder / "serving.lock", record, held):
            return
        new = folder / "server.json.new"
        new.write_text(json.dumps({"pid": os.getpid(), "port": listener.getsockname()[1]}))
        new.replace(record)
        threading.Thread(target=_when_unused, args=(folder, stop), daemon=True).start()
        server.run(sockets=[listener])


def _only_one(serving: Path, record: Path, held: ExitStack) -> bool:
    """Take the server's lock into `held`; False where another server of this folder has it.

    Who asks whether a server runs holds the lock for an instant, so that once is not enough. Another server, whose
    starter was killed, may just have come up: its record tells.
    """
    while True:
        try:
            held.enter_context(locked(serving, fcntl.LOCK_EX | fcntl.LOCK_NB))
        except BlockingIOError:
            if record.exists():
                return False
            time.sleep(_POLL_SECONDS)
        else:
            return True


def _when_unused(folder: Path, stop: Callable[[], None]) -> None:
    pause = threading.Event()
    while not pause.wait(UNUSED_CHECK_SECONDS):
        try:
            with locked(folder / "gate.lock", fcntl.LOCK_EX | fcntl.LOCK_NB) as gate:
                with locked(folder / "users.lock", fcntl.LOCK_EX | fcntl.LOCK_NB):
                    # Kept until the process ends: nobody may come in while it stops.
                    os.dup(gate)
                stop()
                return
        except BlockingIOError:
            continue


def in_use_elsewhere(folder: Path) -> bool:
    """Whether any process, this one included, uses the server of a folder at present."""
    if not (folder / "users.lock").exists():
        return False
    try:
        with locked(folder / "users.lock", fcntl.LOCK_EX | fcntl.LOCK_NB):
            return False
    except BlockingIOError:
        return True
