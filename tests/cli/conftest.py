"""The `flexpay` command run as its users run it: a process, a home folder, an exit code, two streams."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from flexpay_pipelines.sandbox.postgres import Cluster, in_use
from flexpay_pipelines.sandbox.services import ROLES
from flexpay_pipelines.sandbox.stripe_server import running_stripe_server
from tests.commands import Said, environment, run

Flexpay = Callable[..., Said]


@pytest.fixture
def kept_running(tmp_path: Path) -> Iterator[None]:
    """Embedded services that stay up between commands, instead of being started and stopped by each."""
    given, state = os.environ.get("FLEXPAY_POSTGRES_BIN"), tmp_path / "state"
    with ExitStack() as stack:
        for role in ROLES:
            stack.enter_context(in_use(Cluster(state / "postgres" / role, bin_folder=Path(given) if given else None)))
        stack.enter_context(running_stripe_server(state / "stripe"))
        yield


@pytest.fixture
def flexpay(tmp_path: Path) -> Flexpay:
    """Run `flexpay ARGUMENTS` with a home of its own; keyword arguments are environment variables."""

    def flexpay_run(*arguments: str, **variables: str) -> Said:
        return run(*arguments, env=environment(tmp_path, **variables), cwd=tmp_path)

    return flexpay_run
