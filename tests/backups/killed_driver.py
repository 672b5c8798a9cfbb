"""Runs one call of the room in a process of its own, which kills itself with SIGKILL at the n-th point it passes.

The points are found by listening in: every message to and from a server, every change of the file system, every child
process started. `n` = 0 kills nowhere and prints how many points there were.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from flexpay_pipelines.backups import copy_offsite, create_backup, prune_backups, restore_backup, verify_backup
from flexpay_pipelines.clock import FixedClock, parse_instant
from flexpay_pipelines.database import opened

EVENTS = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.copyfile", "subprocess.Popen"}


class Points:
    """Counts the points passed and kills the process at the chosen one."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.passed = 0

    def point(self) -> None:
        """One more point."""
        self.passed += 1
        if self.passed == self.last:
            os.kill(os.getpid(), signal.SIGKILL)

    def listen(self) -> None:
        """Hear of every point from now on."""
        waiting: Callable[..., Any] = psycopg.Connection.wait

        def wait(*arguments: Any, **given: Any) -> Any:
            self.point()
            answer = waiting(*arguments, **given)
            self.point()
            return answer

        setattr(psycopg.Connection, "wait", wait)  # noqa: B010 - a method may not be assigned
        sys.addaudithook(lambda event, _: self.point() if event in EVENTS else None)


def main() -> None:
    """`action n billing_url control_url home tools instant [backup_id]`."""
    action, last, billing_url, control_url, home, tools, instant, *rest = sys.argv[1:]
    place = Path(home)
    usual: dict[str, Any] = {"clock": FixedClock(parse_instant(instant)), "progress": lambda _: None}
    tooled = {**usual, "bin_folder": Path(tools) if tools else None}
    points = Points(int(last))
    with opened(control_url, purpose="killed") as control:
        actions: dict[str, Callable[[], object]] = {
            "backup": lambda: create_backup(
                billing_url, control, folder=place / "backups", kind="manual", actor="killed", **tooled
            ),
            "restore": lambda: restore_backup(control, rest[0], billing_url=billing_url, actor="killed", **tooled),
            "verify": lambda: verify_backup(control, rest[0], scratch_folder=place / "scratch", **tooled),
            "offsite": lambda: copy_offsite(control, rest[0], folder=place / "far", **usual),
            "prune": lambda: prune_backups(
                control, folder=place / "backups", offsite_folder=place / "far", retention_days=30, clock=usual["clock"]
            ),
        }
        points.listen()
        actions[action]()
    sys.stdout.write(f"{points.passed}\n")


main()
