"""The environment: everything that must hold before a deploy or a backup may begin.

What belongs here: checks that need no schema of ours. What does not: the state of our tables (`database`).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from flexpay_pipelines.clock import Clock, SystemClock
from flexpay_pipelines.database import BILLING, CONTROL, SETTING_OF, Connection, describe, opened
from flexpay_pipelines.errors import FlexPayError
from flexpay_pipelines.health.findings import Finding, fine, judged
from flexpay_pipelines.sandbox import embedded_bin
from flexpay_pipelines.sql import queries

OLDEST_POSTGRESQL = 15
MINIMUM_FREE_BYTES = 2 * 1024**3
LONGEST_SKEW = timedelta(seconds=5)
TOOLS = ("pg_dump", "pg_restore", "initdb", "pg_ctl", "postgres")
TOOL_TIMEOUT_SECONDS = 30


@dataclass(frozen=True, slots=True)
class _Server:
    """What one database says of itself; `identity` is None where the server does not tell."""

    facts: dict[str, Any]
    identity: int | None
    skew: timedelta

    @property
    def major(self) -> int:
        return int(self.facts["version_number"]) // 10_000


def check_environment(
    *,
    billing_url: str,
    control_url: str,
    home: Path,
    bin_folder: Path | None,
    stripe_ping: Callable[[], object] | None,
    minimum_free_bytes: int = MINIMUM_FREE_BYTES,
    clock: Clock | None = None,
    longest_skew: timedelta = LONGEST_SKEW,
) -> tuple[Finding, ...]:
    """Look at databases, tools, disk and Stripe, and say of each what is wrong and what to do. Changes nothing.

    Never raises for what it finds: a database that is not there is a finding, and what depends on it is not looked at.

    Args:
        home: the folder of local state; it need not exist yet.
        bin_folder: where PostgreSQL's tools are; None: the embedded ones.
        stripe_ping: raises a FlexPayError where Stripe cannot be reached; None: Stripe is not used.
        clock: our own time, compared with each server's (default: this machine's clock).
    """
    findings: list[Finding] = []
    servers: dict[str, _Server] = {}
    for role, url in ((BILLING, billing_url), (CONTROL, control_url)):
        try:
            with opened(url, purpose="environment check", role=role) as connection:
                servers[role] = _read(connection, clock or SystemClock())
        except FlexPayError as error:
            findings.append(Finding(f"{role} reachable", False, "critical", str(error), f"Mend {SETTING_OF[role]}."))
            continue
        findings.append(fine(f"{role} reachable", describe(url)))
        findings.extend(_server_findings(role, servers[role], longest_skew))
    findings.extend(_apart(servers))
    findings.extend(
        _tools(bin_folder or embedded_bin(), servers[BILLING].major if BILLING in servers else OLDEST_POSTGRESQL)
    )
    findings.append(_disk(home, minimum_free_bytes))
    findings.append(_stripe(stripe_ping))
    return tuple(findings)


def _read(connection: Connection, clock: Clock) -> _Server:
    before = clock.now()
    server_time: datetime = queries("health").server_time(connection)
    after = clock.now()
    facts = queries("health").server_facts(connection)
    identity = queries("health").system_identifier(connection) if facts["tells_identity"] else None
    # What the round trip took is not skew.
    skew = max(before - server_time, server_time - after, timedelta(0))
    return _Server(facts, identity, skew)


def _server_findings(role: str, server: _Server, longest_skew: timedelta) -> Iterator[Finding]:
    facts, setting = server.facts, SETTING_OF[role]
    yield judged(
        f"{role} version", server.major >= OLDEST_POSTGRESQL, f"PostgreSQL {facts['version']}",
        f"Upgrade the server to PostgreSQL {OLDEST_POSTGRESQL} or later.",
    )  # fmt: skip
    yield judged(
        f"{role} writable", not facts["in_recovery"] and not facts["read_only"],
        "a replica" if facts["in_recovery"] else "read-only" if facts["read_only"] else "the primary, writable",
        f"Point {setting} at the primary, with default_transaction_read_only off.",
    )  # fmt: skip
    yield judged(
        f"{role} encoding", facts["encoding"] == "UTF8", str(facts["encoding"]),
        "Dump the database and restore it into one made with ENCODING 'UTF8'.",
    )  # fmt: skip
    yield judged(
        f"{role} clock", server.skew <= longest_skew, f"{server.skew.total_seconds():.1f} s apart from ours",
        "Have both machines synchronise their clocks (NTP).",
    )  # fmt: skip
    user, database = facts["user_name"], facts["database_name"]
    yield judged(
        f"{role} may create schemas", facts["may_create"], f"role {user} on database {database}",
        f'As the owner: GRANT CREATE ON DATABASE "{database}" TO "{user}".',
    )  # fmt: skip
    yield judged(
        f"{role} owns its schemas", not facts["foreign_schemas"],
        f"owned by others: {', '.join(facts['foreign_schemas'])}" if facts["foreign_schemas"] else "every one of ours",
        f"Let {user} be a member of the owning role, or change the owner.",
    )  # fmt: skip
    if role == BILLING:
        yield judged(
            "billing may be restored", facts["may_restore"], f"role {user}",
            f'As a superuser: ALTER ROLE "{user}" CREATEDB, and make it the owner of the database.', "warning",
        )  # fmt: skip


def _apart(servers: dict[str, _Server]) -> Iterator[Finding]:
    """The control plane must survive what happens to billing."""
    if len(servers) < len(SETTING_OF):
        return
    billing, control = servers[BILLING], servers[CONTROL]
    same_server = _address(billing) == _address(control)
    same_database = same_server and billing.facts["database_oid"] == control.facts["database_oid"]
    yield judged(
        "databases apart", not same_database, "one database for both" if same_database else "two databases",
        "Give FLEXPAY_CONTROL_URL a database of its own: restoring billing would overwrite it.",
    )  # fmt: skip
    yield judged(
        "servers apart", not same_server, "one server for both" if same_server else "two servers",
        "Put the control database on another server: it has to survive the restore of this one.", "warning",
    )  # fmt: skip


def _address(server: _Server) -> tuple[object, ...]:
    if server.identity is not None:
        return (server.identity,)
    return (server.facts["address"], server.facts["port"], server.facts["started_at"])


def _tools(bin_folder: Path, needed: int) -> Iterator[Finding]:
    for tool in TOOLS:
        yield _tool(bin_folder / tool, needed)


def _tool(path: Path, needed: int) -> Finding:
    name, remedy = (
        f"tool {path.name}",
        f"Install PostgreSQL {needed} or later and set FLEXPAY_POSTGRES_BIN to its tools.",
    )
    try:
        done = subprocess.run(
            [str(path), "--version"], capture_output=True, text=True, errors="replace", check=False,
            stdin=subprocess.DEVNULL, timeout=TOOL_TIMEOUT_SECONDS,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = getattr(error, "strerror", None) or "it does not answer"
        return Finding(name, False, "critical", f"{path}: {reason}", remedy)
    said = " ".join((done.stdout or done.stderr).split())
    version = re.search(r"(\d+)(?:\.\d+|\w+)*", said)
    if done.returncode != 0 or version is None:
        return Finding(name, False, "critical", f"{path} does not tell its version: {said or 'no answer'}", remedy)
    return judged(name, int(version.group(1)) >= needed, said, remedy)


def _disk(home: Path, minimum: int) -> Finding:
    remedy = "Free some space below FLEXPAY_HOME, or set it to a folder on a larger disk that we may write to."
    existing = next((folder for folder in (home, *home.parents) if folder.exists()), None)
    if existing is None or not existing.is_dir():
        return Finding("disk", False, "critical", f"{existing or home} is not a folder", remedy)
    try:
        free = shutil.disk_usage(existing).free
    except OSError as error:
        return Finding("disk", False, "critical", f"{existing}: {error.strerror or error}", remedy)
    seen = f"{free / 1024**3:.1f} GiB free at {existing}, {minimum / 1024**3:.1f} GiB needed"
    return judged("disk", free >= minimum, seen, remedy)


def _stripe(ping: Callable[[], object] | None) -> Finding:
    if ping is None:
        return fine("stripe", "not used")
    try:
        ping()
    except FlexPayError as error:
        return Finding(
            "stripe", False, "critical", str(error), "Check FLEXPAY_STRIPE_API_KEY and FLEXPAY_STRIPE_API_BASE."
        )
    return fine("stripe", "answers")
