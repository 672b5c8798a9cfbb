"""What a look at something found.

What belongs here: the shape of a finding. What does not: any check.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Severity = Literal["info", "warning", "critical"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One property that was looked at.

    Attributes:
        name: what was looked at, unique within one look, such as `billing version`.
        ok: whether it is as it must be.
        severity: `info` where it is; else `warning` (go on, but mend it) or `critical` (do not go on).
        detail: what was seen.
        remedy: what to do; empty where nothing is to be done.
    """

    name: str
    ok: bool
    severity: Severity
    detail: str
    remedy: str = ""


def fine(name: str, detail: str) -> Finding:
    """Nothing is wrong."""
    return Finding(name, True, "info", detail)


def judged(name: str, ok: bool, detail: str, remedy: str, severity: Severity = "critical") -> Finding:
    """A finding whose remedy and severity count only where something is wrong."""
    return Finding(name, ok, "info" if ok else severity, detail, "" if ok else remedy)


def failing(findings: Iterable[Finding], *, severity: Severity | None = None) -> tuple[Finding, ...]:
    """The findings that are not ok; of one severity, where it is given."""
    return tuple(f for f in findings if not f.ok and severity in (None, f.severity))
