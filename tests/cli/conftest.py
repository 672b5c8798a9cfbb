"""The `flexpay` command run as its users run it: a process, a home folder, an exit code, two streams."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flexpay_pipelines.sandbox.postgres import Cluster, in_use
from flexpay_pipelines.sandbox.services import ROLES

FLEXPAY = str(Path(sys.executable).with_name("flexpay"))
TIMEOUT_SECONDS = 400


@dataclass(frozen=True)
class Said:
    """What the command answered."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The document on standard output."""
        return json.loads(self.out)


Flexpay = Callable[..., Said]


def environment(home: Path, **variables: str) -> dict[str, str]:
    """The environment of a user who set nothing but a home for FlexPay."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "FLEXPAY_POSTGRES_BIN") if name in os.environ}
    return {**kept, "HOME": str(home), "FLEXPAY_HOME": str(home / "state"), **variables}


@pytest.fixture
def kept_running(tmp_path: Path) -> Iterator[None]:
    """Embedded databases that stay up between commands, instead of being started and stopped by each."""
    given = os.environ.get("FLEXPAY_POSTGRES_BIN")
    with ExitStack() as stack:
        for role in ROLES:
            folder = tmp_path / "state" / "postgres" / role
            stack.enter_context(in_use(Cluster(folder, bin_folder=Path(given) if given else None)))
        yield


@pytest.fixture
def flexpay(tmp_path: Path) -> Flexpay:
    """Run `flexpay ARGUMENTS` with a home of its own; keyword arguments are environment variables."""

    def run(*arguments: str, **variables: str) -> Said:
        done = subprocess.run(
            [FLEXPAY, *arguments], env=environment(tmp_path, **variables), cwd=tmp_path, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS,
        )  # fmt: skip
        return Said(done.returncode, done.stdout, done.stderr)

    return run
