"""The files of backups: made aside, synced, then renamed; locked while somebody reads them; summed.

What belongs here: folders, locks, checksums. What does not: what the files mean (`manifest`), the catalog (`catalog`).

A file lock on a backup's own folder says that it is in use: shared by readers, exclusive for the one who makes or
removes it. The kernel drops it when a process is killed, so what was left half-made can be told from what is being
made.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flexpay_pipelines.errors import TransientError

PARTIAL = ".partial-"
PRUNING = ".pruning-"


@contextmanager
def held(folder: Path, how: int) -> Iterator[None]:
    """Hold the lock of a folder (`fcntl.LOCK_SH` or `LOCK_EX`, with or without `LOCK_NB`).

    Raises:
        BlockingIOError: LOCK_NB was asked for and somebody else holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Keep a backup from being removed while it is read.

    Raises:
        TransientError: it is being made or removed at this moment.
    """
    try:
        with held(folder, fcntl.LOCK_SH | fcntl.LOCK_NB):
            yield
    except BlockingIOError as error:
        raise TransientError(f"{folder.name} is being made or removed by another process: try again later.") from error


@contextmanager
def staging(folder: Path, name: str) -> Iterator[Path]:
    """A locked folder beside the final one; what has not been published at the end is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{PARTIAL}{name}"
    # The parent's lock keeps a sweeper out between making the folder and locking it.
    with held(folder, fcntl.LOCK_EX):
        partial.mkdir(mode=0o700)
        own = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(own, fcntl.LOCK_EX)
    try:
        yield partial
    finally:
        os.close(own)
        shutil.rmtree(partial, ignore_errors=True)


def sweep(folder: Path, first: Callable[[Path], None] | None = None) -> tuple[str, ...]:
    """Remove what processes that were killed left half-made or half-removed, after `first`; return the names."""
    swept = []
    with held(folder, fcntl.LOCK_EX):
        for left in sorted((*folder.glob(f"{PARTIAL}*"), *folder.glob(f"{PRUNING}*"))):
            try:
                with held(left, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    if first is not None:
                        first(left)
                    shutil.rmtree(left)
            except BlockingIOError:
                continue  # its maker is at work
            swept.append(left.name)
    return tuple(swept)


def publish(partial: Path, final: Path) -> None:
    """Make a finished folder visible under its name: all of it is on disk before the name is."""
    for path in sorted(partial.rglob("*")):
        sync(path)
    sync(partial)
    partial.rename(final)
    sync(final.parent)


def remove(folder: Path) -> None:
    """Remove a backup's folder: gone from its name at once, from the disk right after."""
    doomed = folder.with_name(f"{PRUNING}{folder.name}")
    folder.rename(doomed)
    sync(folder.parent)
    shutil.rmtree(doomed)


def sync(path: Path) -> None:
    """Have a file or a folder's names written to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a folder; they keep names in order themselves.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_below(folder: Path) -> tuple[str, ...]:
    """The files below a folder, as sorted relative POSIX paths."""
    return tuple(sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()))
