"""The migration files: found below a folder, checked for completeness, read once.

What belongs here: `<component>/<NNNN>_<name>.{deploy,revert,verify}.sql` and what can be told from their text. What
does not: running them (`engine`) and knowing which were run (`planning`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flexpay_pipelines.errors import PermanentError, disk_errors
from flexpay_pipelines.migrations.components import COMPONENTS

KINDS = ("deploy", "revert", "verify")
# A file that begins with this comment is run statement by statement outside a transaction (CREATE INDEX CONCURRENTLY).
OUTSIDE_TRANSACTION = "-- transaction: none"

_FILE_NAME = re.compile(r"(?P<revision>\d{4})_(?P<name>[a-z][a-z0-9_]*)\.(?P<kind>deploy|revert|verify)\.sql")
_TRANSACTION_CONTROL = re.compile(r"(BEGIN|COMMIT|ROLLBACK|ABORT|START\s+TRANSACTION|END)\b", re.IGNORECASE)
# Everything in which a semicolon does not end a statement; then the semicolon; then any other character.
_TOKEN = re.compile(
    r"""
      (?P<comment> --[^\n]* | /\*.*?\*/ )
    | (?P<quoted> [eE]'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | "(?:[^"]|"")*" )
    | (?P<dollars> (?P<tag>\$(?:[A-Za-z_]\w*)?\$) .*? (?P=tag) )
    | (?P<atomic> \bBEGIN\s+ATOMIC\b.*?\bEND\b(?=\s*;) )
    | (?P<end> ; )
    | (?P<other> . )
    """,
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class SqlFile:
    """One file: its path, its text, the SHA-256 of its bytes, its statements (comments stripped)."""

    path: Path
    text: str
    sha256: str
    statements: tuple[str, ...]

    @property
    def in_transaction(self) -> bool:
        """Whether the whole file runs in one transaction."""
        return not self.text.lstrip().startswith(OUTSIDE_TRANSACTION)


@dataclass(frozen=True, slots=True)
class Migration:
    """One revision of a component: `revision` is its four digits, unique and rising within the component."""

    component: str
    revision: str
    name: str
    deploy: SqlFile
    revert: SqlFile
    verify: SqlFile

    @property
    def key(self) -> str:
        """The revision's name in Alembic's version table: unique among all components."""
        return f"{self.component}_{self.revision}"

    @property
    def title(self) -> str:
        """The revision as a person reads it."""
        return f"{self.component} {self.revision} {self.name}"


History = Mapping[str, tuple[Migration, ...]]


def history(root: Path) -> History:
    """Every migration below `root`, by component, oldest first; a component without files has none.

    Raises:
        PermanentError: a file is misnamed, unreadable, of an unknown component, or its triple is incomplete;
            numbers are not 0001, 0002, …; a file opens or ends a transaction itself.
    """
    with disk_errors("reading the migrations"):
        if not root.is_dir():
            raise PermanentError(f"There are no migrations: the folder {root} does not exist.")
        for folder in sorted(path for path in root.iterdir() if path.is_dir()):
            if folder.name not in COMPONENTS and any(folder.glob("*.sql")):
                raise PermanentError(f"{folder} is not the folder of a known component ({', '.join(COMPONENTS)}).")
        return {name: _component_history(name, root / name) for name in COMPONENTS}


def split_statements(text: str) -> tuple[str, ...]:
    """The statements of a file, without comments and final semicolons."""
    statements: list[str] = []
    current: list[str] = []
    for token in _TOKEN.finditer(text):
        if token["end"]:
            statements.append("".join(current).strip())
            current = []
        else:
            current.append(" " if token["comment"] else token[0])
    statements.append("".join(current).strip())
    return tuple(statement for statement in statements if statement)


def _component_history(component: str, folder: Path) -> tuple[Migration, ...]:
    triples: dict[tuple[str, str], dict[str, Path]] = {}
    for path in sorted(folder.glob("*.sql")):
        match = _FILE_NAME.fullmatch(path.name)
        if match is None:
            raise PermanentError(
                f"{path} is misnamed: a migration is <NNNN>_<name>.deploy.sql, .revert.sql or .verify.sql."
            )
        triples.setdefault((match["revision"], match["name"]), {})[match["kind"]] = path
    found = []
    for number, ((revision, name), files) in enumerate(sorted(triples.items()), start=1):
        missing = [kind for kind in KINDS if kind not in files]
        if missing:
            raise PermanentError(f"{folder / f'{revision}_{name}'} has no {' and no '.join(missing)} file.")
        if int(revision) != number:
            raise PermanentError(
                f"{files['deploy']} should have the number {number:04}: numbers rise by one from 0001."
            )
        found.append(Migration(component, revision, name, **{kind: _read(files[kind]) for kind in KINDS}))
    return tuple(found)


def _read(path: Path) -> SqlFile:
    content = path.read_bytes()
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise PermanentError(f"{path} is not UTF-8.") from None
    statements = split_statements(text)
    for statement in statements:
        if _TRANSACTION_CONTROL.match(statement):
            raise PermanentError(
                f"{path} contains '{statement.split()[0]}': transactions are opened and ended around it."
            )
    if not statements:
        raise PermanentError(f"{path} is empty.")
    return SqlFile(path, text, hashlib.sha256(content).hexdigest(), statements)
