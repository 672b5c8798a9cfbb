"""`flexpay dev`: the Dagster UI and daemon on this machine. `flexpay demo`: the whole product once, end to end.

What belongs here: starting and stopping them. What does not: the scenes of the demo (`cli/demo`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Annotated

import typer

from flexpay_pipelines.cli.output import AsJson, say
from flexpay_pipelines.cli.runs import prepared_instance
from flexpay_pipelines.errors import BadInput, PermanentError
from flexpay_pipelines.settings import CHECKOUT, load_settings

STOP_SECONDS = 30


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("demo", epilog="Example: `flexpay demo --json`")(demo)
    app.command("dev", epilog="Example: `flexpay dev --port 3001`")(dev)


def demo(
    customers: Annotated[
        int, typer.Option(min=50, help="How many customers the demo company has; with few the incident may go unseen.")
    ] = 5_000,
    seed: Annotated[int, typer.Option(help="The same seed makes the same company.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Everything once on this machine: a company, a deploy, sweeps, analytics, a backup and its proof, an incident."""
    from flexpay_pipelines.cli.demo import run_demo

    run_demo(customers=customers, seed=seed, as_json=as_json)


def _free(port: int) -> None:
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise BadInput(f"Port {port} is in use: choose another with --port.") from error


def dev(port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the UI on loopback.")] = 3000) -> None:
    """Open the Dagster UI on the runs and assets, with the daemon, until Ctrl-C."""
    _free(port)
    with prepared_instance(load_settings()) as ready:
        from flexpay_pipelines.sandbox.services import local_services

        with local_services(ready, databases=(), stripe=True):
            say(f"The Dagster UI will be at http://127.0.0.1:{port}. Its schedules and sensors are off at first.")
            say("Ctrl-C stops it and everything it started.")
            # A group of its own with default signals: all four of Dagster's processes end together.
            server = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "dagster",
                    "dev",
                    "-w",
                    str(CHECKOUT / "workspace.yaml"),
                    "-h",
                    "127.0.0.1",
                    "-p",
                    str(port),
                ],
                cwd=CHECKOUT,
                start_new_session=True,
            )
            try:
                code = server.wait()
            finally:
                _stop(server)
            if code != 0:
                raise PermanentError(f"Dagster ended with code {code}; its last lines above say why.")


def _stop(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
