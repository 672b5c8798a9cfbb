"""Running one statement after another until nothing is left to do: how both ways, rolling back and undoing, move rows.

What belongs here: batches, retries, the lock that only one rollback may hold. What does not: what a batch does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from flexpay_pipelines.database import Connection, advisory_lock
from flexpay_pipelines.errors import FlexPayError, TransientError

LOCK = "flexpay rollback"
BATCH_SIZE = 10_000
TRIES = 5

Progress = Callable[[str], None]


def in_keyed_batches(
    billing: Connection, says: str, progress: Progress, statement: Callable[..., dict[str, Any]], **parameters: Any
) -> None:
    """Run a statement that reads on behind the last key, each run one transaction; passes from the start until one
    changes nothing, so that a row which somebody changed behind our back is not missed.

    Args:
        says: a sentence with `{}` for the number done so far.
    """
    done, found_any = 0, True
    while found_any:
        found_any, after = False, 0
        while (found := _retried(billing, statement, {**parameters, "after": after}))["last_id"] is not None:
            after = found["last_id"]
            if found["changed"]:
                found_any, done = True, done + found["changed"]
                progress(says.format(done))


def one_pass(
    billing: Connection, says: str, progress: Progress, statement: Callable[..., dict[str, Any]], **parameters: Any
) -> None:
    """The same in one pass, for a statement whose rows nobody adds to."""
    done = after = 0
    while (found := _retried(billing, statement, {**parameters, "after": after}))["last_id"] is not None:
        after, done = found["last_id"], done + found["changed"]
        progress(says.format(done))


def _retried(billing: Connection, statement: Callable[..., dict[str, Any]], parameters: dict[str, Any]) -> Any:
    """One batch in one transaction; again, where it and another writer stood in each other's way."""
    import psycopg  # noqa: PLC0415 - the code location loads without it

    for left in reversed(range(TRIES)):
        try:
            with billing.transaction():
                return statement(billing, **parameters)
        except (
            psycopg.errors.DeadlockDetected,
            psycopg.errors.SerializationFailure,
            psycopg.errors.ExclusionViolation,
        ):
            if not left:
                raise
    raise AssertionError("unreachable")


@contextmanager
def alone(billing: Connection) -> Iterator[None]:
    """Hold the rollback lock of the billing database.

    Raises:
        TransientError: another rollback, or the undoing of one, is running.
    """
    with advisory_lock(billing, LOCK):
        yield


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn what the database refuses into one sentence that says how to go on.

    Raises:
        TransientError: whatever psycopg raised.
    """
    import psycopg  # noqa: PLC0415 - the code location loads without it

    try:
        yield
    except FlexPayError:
        raise
    except psycopg.Error as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TransientError(f"{what} stopped: {reason}. Run it again: it goes on where it stopped.") from error
