"""Which release is running since when: what every judge measures against.

What belongs here: reading and writing ops.deploys. What does not: making a deploy (`migrations`, `defs`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from flexpay_pipelines.clock import Clock, SystemClock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.sql import queries


@dataclass(frozen=True, slots=True)
class Deploy:
    """A completed deploy: component revisions by name, UTC."""

    deploy_id: int
    release: str
    deployed_at: datetime
    run_id: str | None
    actor: str
    revisions: dict[str, Any]


def record_deploy(
    control: Connection, *, release: str, actor: str, run_id: str | None, revisions: Mapping[str, str], clock: Clock
) -> int:
    """Write down that a deploy is complete, once per run; its deploy_id."""
    statements = queries("monitoring")
    with control.transaction():
        statements.lock_judging(control)
        known = None if run_id is None else statements.deploy_of_run(control, run_id=run_id)
        if known is not None:
            return int(known)
        return int(
            statements.record_deploy(
                control,
                release=release,
                deployed_at=clock.now(),
                run_id=run_id,
                actor=actor,
                revisions=json.dumps(dict(revisions)),
            )
        )


def newest_deploy(control: Connection, *, now: datetime | None = None) -> Deploy | None:
    """The deploy in force at `now` (the machine's own time, unless told otherwise); none was ever recorded: None."""
    row = queries("monitoring").newest_deploy(control, now=now or SystemClock().now())
    return None if row is None else Deploy(**row)
