"""The trigger that judges what a release is built from: did it bring a critical vulnerability?

What belongs here: lock files against advisories. What does not: fetching advisories.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal, get_args

from flexpay_pipelines.clock import Clock, SystemClock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import BadInput, disk_errors
from flexpay_pipelines.monitoring.decision import SYSTEM_ERRORS, Blame, Tick
from flexpay_pipelines.monitoring.deploys import newest_deploy
from flexpay_pipelines.monitoring.judge import judge
from flexpay_pipelines.monitoring.judgement import RELEASE_WINDOW, Case, Judgement
from flexpay_pipelines.monitoring.without_release import without_release
from flexpay_pipelines.sql import queries

TRIGGER = "security_vulnerability"
PINNED = re.compile(r"^\s*([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?\s*===?\s*([^\s;#\\]+)")
Severity = Literal["low", "medium", "high", "critical"]


@dataclass(frozen=True, slots=True)
class Advisory:
    """A published vulnerability: `affected` is a version specifier such as `>=2.0,<2.3.1`."""

    advisory_id: str
    package: str
    affected: str
    severity: Severity


@dataclass(frozen=True, slots=True)
class Finding:
    """An advisory that a lock file is affected by; `brought`: the lock before it was not."""

    advisory_id: str
    package: str
    version: str
    severity: str
    brought: bool


def pinned_versions(lock: str) -> dict[str, str]:
    """Package -> version of the `name==version` lines of a lock file; other lines say nothing."""
    found = (PINNED.match(line) for line in lock.splitlines())
    return {_normal(match[1]): match[2] for match in found if match}


def vulnerabilities(lock: str, previous_lock: str | None, advisories: Sequence[Advisory]) -> tuple[Finding, ...]:
    """The advisories that a lock file is affected by.

    Raises:
        BadInput: an advisory's specifier or a pinned version cannot be read.
    """
    now, before = pinned_versions(lock), None if previous_lock is None else pinned_versions(previous_lock)
    found = []
    for advisory in advisories:
        package = _normal(advisory.package)
        if package in now and _affected(advisory, now[package]):
            # Without the last release's lock nothing is known to be new, and nothing is rolled back for it.
            clean_before = before is not None and not (package in before and _affected(advisory, before[package]))
            found.append(Finding(advisory.advisory_id, package, now[package], advisory.severity, brought=clean_before))
    return tuple(found)


def judge_vulnerabilities(
    control: Connection,
    *,
    lock_file: Path,
    previous_lock: str | None,
    advisories: Sequence[Advisory],
    clock: Clock | None = None,
    release_window: timedelta = RELEASE_WINDOW,
    actor: str = "sensor",
) -> Judgement:
    """Judge the newest release's lock file: `roll_back` if it brought a critical vulnerability, `held` (page a person)
    if it has one that was there before or nothing is known of before, `inconclusive` if the lock cannot be read.

    Args:
        previous_lock: the text of the last release's lock file; None: unknown.
    """
    now = (clock or SystemClock()).now()
    found, because = _look(lock_file, previous_lock, advisories)
    critical = [finding for finding in found if finding.severity == "critical"]
    brought = [finding for finding in critical if finding.brought]
    told = ", ".join(f"{one.advisory_id} in {one.package} {one.version}" for one in critical)
    source = f"{lock_file.name} against {len(advisories)} advisories: {told or 'none applies'}"
    tick = Tick(now, None if because else len(found), None if because else len(critical))
    deploy = newest_deploy(control, now=now)
    if deploy is None or now >= deploy.deployed_at + release_window:
        return without_release(
            control, trigger=TRIGGER, window=[tick], rule=SYSTEM_ERRORS, now=now, because=because,
            proven=bool(critical), source=source,
        )  # fmt: skip
    return judge(
        control,
        Case(
            trigger=TRIGGER,
            deploy=deploy,
            ticks=[tick],
            rule=SYSTEM_ERRORS,
            now=now,
            blame=lambda _: Blame("complete", f"the release brought {told}"),
            inconclusive_because=because,
            release_window=release_window,
            proven=bool(critical),
            hold=""
            if brought
            else f"going back would not remove {told}: the last release is not known to be free of it",
            counts_late=False,
            source=source,
            actor=actor,
        ),
    )


def _look(
    lock_file: Path, previous_lock: str | None, advisories: Sequence[Advisory]
) -> tuple[tuple[Finding, ...], str]:
    try:
        return vulnerabilities(lock_file.read_text(encoding="utf-8"), previous_lock, advisories), ""
    except (OSError, UnicodeDecodeError) as error:
        return (), f"the lock file {lock_file.name} cannot be read: {getattr(error, 'strerror', None) or error}"


def _affected(advisory: Advisory, version: str) -> bool:
    from packaging.specifiers import InvalidSpecifier, SpecifierSet  # noqa: PLC0415 - needed by this trigger alone
    from packaging.version import InvalidVersion, Version  # noqa: PLC0415

    try:
        return Version(version) in SpecifierSet(advisory.affected, prereleases=True)
    except InvalidSpecifier:
        raise BadInput(
            f"Advisory {advisory.advisory_id} names no versions that can be read: '{advisory.affected}' "
            "is not a specifier such as >=2.0,<2.3.1."
        ) from None
    except InvalidVersion:
        raise BadInput(f"The lock file pins {advisory.package} to '{version}', which is not a version.") from None


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def read_advisories(path: Path) -> tuple[Advisory, ...]:
    """The advisories of a file of JSON lines with the keys `id`, `package`, `affected` and `severity`.

    Raises:
        BadInput: the file cannot be read, or a line is not such an object; the line is named.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"The advisories in {path} cannot be read: {error}.") from error
    return tuple(_advisory(path, number, line) for number, line in enumerate(lines, start=1) if line.strip())


def _advisory(path: Path, number: int, line: str) -> Advisory:
    try:
        told = json.loads(line)
        severity = told["severity"].lower()
        if severity not in get_args(Severity):
            raise ValueError(f"severity '{severity}' is none of {', '.join(get_args(Severity))}")
        return Advisory(str(told["id"]), str(told["package"]), str(told["affected"]), severity)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f'{path.name} line {number} is not an advisory such as {{"id": "GHSA-…", "package": "stripe", '
            f'"affected": "<16.1", "severity": "critical"}}: {error}.'
        ) from error


def keep_lock(control: Connection, *, deploy_id: int, lock_file: Path) -> None:
    """Keep what a deploy was built from, for the next one to be compared with.

    Raises:
        PermanentError: the lock file cannot be read.
    """
    with disk_errors("reading the lock file"):
        lock = lock_file.read_text(encoding="utf-8")
    queries("monitoring").keep_lock(control, deploy_id=deploy_id, lock=lock)


def previous_lock(control: Connection) -> str | None:
    """The text of the lock file of the release before the newest; None: unknown."""
    lock: str | None = queries("monitoring").previous_lock(control)
    return lock
