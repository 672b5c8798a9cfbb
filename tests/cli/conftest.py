"""The `flexpay` command run as its users run it: a process, a home folder, an exit code, two streams."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

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
def flexpay(tmp_path: Path) -> Flexpay:
    """Run `flexpay ARGUMENTS` with a home of its own; keyword arguments are environment variables."""

    def run(*arguments: str, **variables: str) -> Said:
        done = subprocess.run(
            [FLEXPAY, *arguments], env=environment(tmp_path, **variables), cwd=tmp_path, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS,
        )  # fmt: skip
        return Said(done.returncode, done.stdout, done.stderr)

    return run
