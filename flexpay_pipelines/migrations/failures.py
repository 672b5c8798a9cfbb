"""What a user is told when a statement of a migration fails, and whether the same step may succeed later.

What belongs here: classing the driver's errors. What does not: trying again (`engine`).
"""

from __future__ import annotations

from typing import Any

from flexpay_pipelines.errors import DatabaseUnavailable, FlexPayError, PermanentError, TransientError
from flexpay_pipelines.migrations.files import OUTSIDE_TRANSACTION
from flexpay_pipelines.migrations.planning import Step

# lock_not_available, deadlock_detected, serialization_failure: the same step may succeed later.
RETRIED = frozenset({"55P03", "40P01", "40001"})
DISK_FULL = "53100"


def explain(error: BaseException | None, step: Step) -> FlexPayError:
    """The error to raise for a step that failed for good and was undone."""
    import psycopg  # noqa: PLC0415 - the code location loads without it

    sqlstate = getattr(error, "sqlstate", None) or ""
    silent = not sqlstate and isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))
    text = step.path.read_text()
    undone = not text.lstrip().startswith(OUTSIDE_TRANSACTION)
    if silent or sqlstate.startswith(("08", "57P")):
        return DatabaseUnavailable(
            f"The connection was lost during {step.title}, "
            f"{'nothing of it was done' if undone else 'it is not finished'}: check the server, then run it again."
        )
    outcome = "failed and was undone" if undone else "failed outside a transaction, what it did before stays"
    if sqlstate == DISK_FULL:
        return TransientError(
            f"The disk of the database server is full: {step.title} {outcome}; free space and run it again."
        )
    place = step.path.name + (_line(error, text) if undone else "")
    return PermanentError(f"{step.title} {outcome}: {reason(error)} ({place}). Steps before it stay.")


def reason(error: Any) -> str:
    """What the server said, without its full stop."""
    return (error.diag.message_primary or str(error)).strip().rstrip(".")


def _line(error: Any, text: str) -> str:
    position = error.diag.statement_position
    return "" if position is None else f", line {text[: int(position)].count(chr(10)) + 1}"
