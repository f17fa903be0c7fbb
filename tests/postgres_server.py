"""A real PostgreSQL for the tests: the server that is installed here, with a data folder of its own, for one run."""

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

OWNER = "kinguin"
STARTS_WITHIN_S = 60
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "fsync": "off",  # what these tests kill is processes, never the machine
    "max_connections": "100",
    "log_min_messages": "fatal",
}


class NoPostgresError(Exception):
    """No PostgreSQL can be had here, and why."""


@dataclass(frozen=True)
class PostgresServer:
    """A running server. It may be stopped and started again; its port stays."""

    data_dir: Path
    port: int

    def url(self, database: str) -> str:
        """Return the URL of a database."""
        return f"postgresql+psycopg://{OWNER}@127.0.0.1:{self.port}/{database}"

    def new_database(self, encoding: str = "UTF8") -> str:
        """Make an empty database and return its URL."""
        import psycopg

        name = f"t{uuid.uuid4().hex[:12]}"
        with psycopg.connect(
            host="127.0.0.1", port=self.port, user=OWNER, dbname="postgres", autocommit=True
        ) as connection:
            # A name of our own; the locale is one that goes with any encoding.
            options = f"ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0" if encoding != "UTF8" else ""
            connection.execute(f'CREATE DATABASE "{name}" {options}'.encode())
        return self.url(name)

    def start(self) -> None:
        """Start it, and return once it answers."""
        options = " ".join(f"-c {key}={value}" for key, value in {**_SETTINGS, "port": self.port}.items())
        self._pg_ctl("start", "-w", "-t", str(STARTS_WITHIN_S), "-l", str(self.data_dir.parent / "log"), "-o", options)

    def stop(self, mode: str = "fast") -> None:
        """Stop it. mode: fast, or immediate, which is a crash."""
        self._pg_ctl("stop", "-w", "-m", mode)

    def _pg_ctl(self, *arguments: str) -> None:
        _run(_programs() / "pg_ctl", "-D", str(self.data_dir), "-s", *arguments)


def make(port: int) -> PostgresServer:
    """Make a data folder and start a server on it. Raises NoPostgresError."""
    programs = _programs()
    folder = Path(tempfile.mkdtemp(prefix="kinguin-streams-postgres-"))
    socket_dir = folder / "socket"
    socket_dir.mkdir()
    if (account := _account()) is not None:
        for path in (folder, socket_dir):
            os.chown(path, account.pw_uid, account.pw_gid)
    data_dir = folder / "data"
    _run(programs / "initdb", "-D", str(data_dir), "-U", OWNER, "-A", "trust", "-E", "UTF8", "--no-sync")
    with (data_dir / "postgresql.conf").open("a") as conf:
        conf.write(f"unix_socket_directories = '{socket_dir}'\n")
    server = PostgresServer(data_dir, port)
    server.start()
    return server


def remove(data_dir: Path) -> None:
    """Stop the server of a data folder, if it runs, and delete everything."""
    if (data_dir / "postmaster.pid").exists():
        PostgresServer(data_dir, 0).stop("immediate")
    shutil.rmtree(data_dir.parent, ignore_errors=True)


def _programs() -> Path:
    """Return the folder of initdb and pg_ctl. Debian keeps them off the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    path = found[-1] if found else Path(shutil.which("initdb") or "")
    if not path.name:
        raise NoPostgresError("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
    return path.parent


def _account() -> pwd.struct_passwd | None:
    """Return whom the server is to run as: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise NoPostgresError("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")


def _run(program: Path, *arguments: str) -> None:
    account = _account()
    done = subprocess.run(
        [program, *arguments],
        user=None if account is None else account.pw_uid,
        group=None if account is None else account.pw_gid,
        extra_groups=None if account is None else [],
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
        start_new_session=True,  # Ctrl-C is for pytest
    )
    if done.returncode != 0:
        raise NoPostgresError(f"{program.name}: {done.stderr.strip()[-300:]}")
