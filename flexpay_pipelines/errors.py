"""The errors that a user may see, and their one classification: transient, permanent, bad input.

What belongs here: error classes and the translation of a driver's error into one clear sentence.
What does not: retry loops (they live with the work they repeat) and formatting for a terminal.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2


class FlexPayError(Exception):
    """Something went wrong that a person can act on. The message is one sentence that says what to do."""

    exit_code = EXIT_FAILED


class BadInput(FlexPayError):
    """What the user gave cannot be used; nothing was changed."""

    exit_code = EXIT_BAD_INPUT


class ConfigurationError(BadInput):
    """A setting is missing or malformed; the message names it and what is expected."""


class TransientError(FlexPayError):
    """The same call may succeed later (a lock held, a server restarting, a rate limit)."""


class PermanentError(FlexPayError):
    """The same call will fail again until somebody changes something."""


class DatabaseUnavailable(TransientError):
    """A database cannot be reached or refuses the login."""


class CheckFailed(PermanentError):
    """A verification looked and found the thing wrong."""


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn the operating system's refusals while doing `what` into one sentence.

    Raises:
        TransientError: the disk is full.
        PermanentError: a file may not be read or written, or is missing.
    """
    try:
        yield
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TransientError(f"The disk is full while {what}{place}: free some space and run it again.") from error
        raise PermanentError(f"Failed while {what}{place}: {error.strerror or error}.") from error
