"""PostgreSQL's own programs: found, their versions compared with the server's, run, and what they say explained.

What belongs here: child processes and their errors. What does not: what they are run for.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flexpay_pipelines.database import without_password
from flexpay_pipelines.errors import FlexPayError, PermanentError, TransientError

JOBS = 2
_STOP_SECONDS = 10
_FULL = ("No space left on device", "Disk quota exceeded", "File too large")
_LOCKED = ("could not obtain lock", "due to lock timeout")


@dataclass(frozen=True, slots=True)
class Tools:
    """The folder of PostgreSQL's programs."""

    folder: Path

    def version(self, program: str) -> str:
        """The version of a program, such as `18.4`.

        Raises:
            PermanentError: it is not there or does not run.
        """
        try:
            done = subprocess.run(
                [str(self.folder / program), "--version"],
                capture_output=True,
                text=True,
                check=False,
                env=_environment(None),
            )
        except OSError as error:
            raise self._missing(program) from error
        found = re.search(r"\(PostgreSQL\) (\S+)", done.stdout)
        if found is None:
            raise self._missing(program)
        return found.group(1)

    def major(self, program: str) -> int:
        """The major version of a program."""
        return int(re.split(r"\D", self.version(program), maxsplit=1)[0])

    def at_least(self, program: str, major: int, why: str) -> int:
        """The major version of a program that has to be `major` or newer.

        Raises:
            PermanentError: it is older.
        """
        own = self.major(program)
        if own < major:
            raise PermanentError(
                f"{program} {own} in {self.folder} cannot {why}: set FLEXPAY_POSTGRES_BIN to the folder of the tools "
                f"of PostgreSQL {major} or newer."
            )
        return own

    def _missing(self, program: str) -> PermanentError:
        return PermanentError(f"{program} is not in {self.folder}: set FLEXPAY_POSTGRES_BIN to a folder that has it.")

    @contextmanager
    def started(
        self, program: str, *arguments: str, url: str, accept: Callable[[str], bool] | None = None
    ) -> Iterator[Callable[[], None]]:
        """Run a program against a database, side by side with the block; what is yielded waits for its end.

        The block's error, or a Ctrl-C, ends the program. `accept` may forgive a single `error:` line.

        Raises:
            TransientError: the disk is full, a lock is held too long.
            PermanentError: it failed; the message holds the reason it gave.
        """
        address, password = without_password(url)
        with tempfile.TemporaryFile("w+", errors="replace") as output:
            try:
                child = subprocess.Popen(
                    [str(self.folder / program), *arguments, "--no-password", f"--dbname={address}"],
                    stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=_environment(password),
                )  # fmt: skip
            except OSError as error:
                raise self._missing(program) from error

            def finish() -> None:
                status = child.wait()
                output.seek(0)
                said = output.read()
                if status != 0 and not (status == 1 and accept is not None and _all_accepted(said, accept)):
                    raise _explain(program, status, said)

            try:
                yield finish
            finally:
                _end(child)

    def run(self, program: str, *arguments: str, url: str, accept: Callable[[str], bool] | None = None) -> None:
        """`started`, and waited for."""
        with self.started(program, *arguments, url=url, accept=accept) as finish:
            finish()

    def restore(self, dump: Path, url: str, *, server_major: int, options: Sequence[str] = ()) -> None:
        """Load a directory dump into an empty database.

        Raises:
            TransientError, PermanentError: as `started`.
        """
        if self.major("pg_restore") > server_major:
            # A newer pg_restore sets a parameter that an older server does not know and goes on; any other error fails.
            self.run(
                "pg_restore",
                *_RESTORE,
                *options,
                str(dump),
                url=url,
                accept=lambda line: '"transaction_timeout"' in line,
            )
        else:
            self.run("pg_restore", *_RESTORE, "--exit-on-error", *options, str(dump), url=url)


_RESTORE = ("--format=directory", f"--jobs={JOBS}")


def _environment(password: str | None) -> dict[str, str]:
    # Inherited, so that a passfile or certificates named there serve the tools as they serve our own connections.
    return {
        **os.environ,
        "LC_ALL": "C",
        "PGAPPNAME": "flexpay backup",
        **({} if password is None else {"PGPASSWORD": password}),
    }


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _errors(said: str) -> list[str]:
    return [line for line in said.splitlines() if re.match(r"\S+: error: ", line)]


def _all_accepted(said: str, accept: Callable[[str], bool]) -> bool:
    found = _errors(said)
    return bool(found) and all(accept(line) for line in found)


def _explain(program: str, status: int, said: str) -> FlexPayError:
    if any(words in said for words in _FULL) or status == -signal.SIGXFSZ:
        return TransientError(
            f"The disk is full, or a file may not grow: {program} stopped; free some space and run it again."
        )
    if any(words in said for words in _LOCKED):
        return TransientError(
            f"{program} could not lock a table that somebody is changing: run it again when the deploy has ended."
        )
    if status < 0:
        return PermanentError(f"{program} was ended by {signal.Signals(-status).name}: run it again.")
    lines = _errors(said) or said.strip().splitlines() or ["no message"]
    reason = re.sub(r"^\S+: error: ", "", lines[0]).strip().rstrip(".")
    return PermanentError(f"{program} failed: {reason}.")
