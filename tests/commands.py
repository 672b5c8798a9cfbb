"""The `flexpay` command in a process of its own that need not load Python's modules again.

What belongs here: running a command, and the process that the commands are forked from. It has loaded what every
command or run loads, so that a test of twenty commands does not spend a minute on imports.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FLEXPAY = str(Path(sys.executable).with_name("flexpay"))


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


# Each line that comes in is a command; what goes out is its exit code. The child leaves the loop and ends as itself.
_PARENT = """
import json, os, signal, sys
import dagster, dagster_postgres, psycopg, sqlalchemy, stripe
import flexpay_pipelines.definitions
from flexpay_pipelines.cli.main import main

answers = os.fdopen(os.dup(1), "w")
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(asked["cwd"])
        os.environ.clear()
        os.environ.update(asked["env"])
        for number, name in enumerate((os.devnull, asked["out"], asked["err"])):
            file = os.open(name, os.O_RDWR | os.O_CREAT)
            os.dup2(file, number)
            os.close(file)
        answers.close()
        sys.argv = ["flexpay", *asked["arguments"]]
        signal.alarm(400)
        break
    answers.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\\n")
    answers.flush()
else:
    sys.exit()
main()
"""


@cache
def _parent() -> subprocess.Popen[str]:
    """Ends with this process, however that ends: its standard input closes."""
    parent = subprocess.Popen([sys.executable, "-c", _PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(parent.communicate)
    return parent


def run(*arguments: str, env: dict[str, str], cwd: Path) -> Said:
    """Run `flexpay ARGUMENTS` under exactly these variables, with nothing on its standard input."""
    parent = _parent()
    assert parent.stdin is not None
    assert parent.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        asked = {"arguments": arguments, "env": env, "cwd": str(cwd), "out": str(out), "err": str(err)}
        parent.stdin.write(json.dumps(asked) + "\n")
        parent.stdin.flush()
        code = parent.stdout.readline()
        assert code, f"the process that commands are forked from has ended: {parent.poll()}"
        return Said(int(code), out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8"))


def environment(home: Path, **variables: str) -> dict[str, str]:
    """The environment of a user who set nothing but a home for FlexPay."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "FLEXPAY_POSTGRES_BIN") if name in os.environ}
    return {**kept, "HOME": str(home), "FLEXPAY_HOME": str(home / "state"), **variables}
