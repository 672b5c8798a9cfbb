"""HTTP stand-ins: shared, stopped by the last, never left running, one sentence for a port in use."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from flexpay_pipelines.errors import BadInput, PermanentError
from flexpay_pipelines.sandbox import stripe_server
from flexpay_pipelines.sandbox.sharing import HttpServer, in_use_elsewhere, locked, running_http_server
from flexpay_pipelines.sandbox.stripe_server import running_stripe_server

HOLD = """
import signal
import sys
from pathlib import Path
from flexpay_pipelines.sandbox.stripe_server import running_stripe_server
# A shell in the background hands on an ignored SIGINT; a terminal does not.
signal.signal(signal.SIGINT, signal.default_int_handler)
with running_stripe_server(Path(sys.argv[1])) as stripe:
    print(stripe.api_base, flush=True)
    sys.stdin.readline()
"""


def _holder(folder: Path) -> tuple[subprocess.Popen[str], str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    assert holder.stdout is not None
    return holder, holder.stdout.readline().strip()


def _server(folder: Path) -> HttpServer:
    return HttpServer(folder, "unused", what="the server")


def _await_stopped(folder: Path) -> None:
    until = time.monotonic() + 20
    while _server(folder).running:
        assert time.monotonic() < until, "it is left running"


def test_users_share_one_server_and_the_last_stops_it(tmp_path: Path) -> None:
    holder, address = _holder(tmp_path)
    with running_stripe_server(tmp_path) as stripe:
        assert stripe.api_base == address
        holder.communicate("\n", timeout=60)
        assert stripe.counts() == {}
        assert in_use_elsewhere(tmp_path)
    assert not _server(tmp_path).running
    assert not in_use_elsewhere(tmp_path)


def test_the_starter_may_leave_first(tmp_path: Path) -> None:
    with running_stripe_server(tmp_path) as stripe:
        holder, address = _holder(tmp_path)
        assert address == stripe.api_base
    assert _server(tmp_path).running
    holder.communicate("\n", timeout=60)
    assert not _server(tmp_path).running


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_running_when_the_only_user_is_ended(tmp_path: Path, how: signal.Signals) -> None:
    holder, address = _holder(tmp_path)
    assert address
    os.killpg(holder.pid, how)
    holder.communicate(timeout=60)
    _await_stopped(tmp_path)
    with running_stripe_server(tmp_path) as stripe:
        assert stripe.counts() == {}, "the next run works"


def test_a_killed_server_is_started_again(tmp_path: Path) -> None:
    with running_stripe_server(tmp_path) as stripe:
        stripe.control("seed", {"products": [["prod_a", "basic"]]})
        os.kill(_server(tmp_path).record["pid"], signal.SIGKILL)
        _await_stopped(tmp_path)
        with running_stripe_server(tmp_path) as again:
            assert again.counts() == {"products": 1}, "what it knew survives"
            assert again.api_key == stripe.api_key


def test_who_asks_whether_a_server_runs_is_not_in_the_way_of_one_that_starts(tmp_path: Path) -> None:
    done = threading.Event()

    def ask() -> None:
        while not done.wait(0.002):
            with suppress(BlockingIOError), locked(tmp_path / "serving.lock", fcntl.LOCK_EX | fcntl.LOCK_NB):
                # An asker that the machine has put aside for a while.
                done.wait(0.1)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        with running_stripe_server(tmp_path) as stripe:
            assert stripe.counts() == {}
    finally:
        done.set()
        asking.join()


def test_two_servers_of_one_folder_are_never_two(tmp_path: Path) -> None:
    with running_stripe_server(tmp_path) as stripe:
        pid = _server(tmp_path).record["pid"]
        with socket.create_server(("127.0.0.1", 0)) as listener:
            late = subprocess.run(
                [sys.executable, "-m", stripe_server.__name__, str(tmp_path), str(listener.fileno())],
                pass_fds=(listener.fileno(),), timeout=60, check=False,
            )  # fmt: skip
        assert late.returncode == 0
        assert _server(tmp_path).record["pid"] == pid
        assert stripe.counts() == {}


def test_a_port_in_use_is_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(BadInput, match=rf"^Port {port} is in use: stop what listens there"),
            running_stripe_server(tmp_path, port=port),
        ):
            raise AssertionError("it must not start")
    with running_stripe_server(tmp_path, port=port) as stripe:
        assert stripe.api_base.endswith(f":{port}")
        with (
            pytest.raises(BadInput, match=f"already runs on port {port}"),
            running_stripe_server(tmp_path, port=port + 1),
        ):
            raise AssertionError("it must not start")


def test_a_server_that_ends_at_once_is_explained(tmp_path: Path) -> None:
    with (
        pytest.raises(PermanentError, match=r"ended at once: .*No module named"),
        running_http_server(tmp_path, "flexpay_pipelines.no_such_module", what="the nothing"),
    ):
        raise AssertionError("it must not start")


def test_a_stranger_gets_no_answer(tmp_path: Path) -> None:
    with running_stripe_server(tmp_path) as stripe, pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{stripe.api_base}/v1/customers", timeout=10)  # noqa: S310 - our own server
    assert refused.value.code == 401
    refused.value.close()
