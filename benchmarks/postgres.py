"""A PostgreSQL of its own for a benchmark: the installed server with its default settings, fsync among them."""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from measuring import TICKS_PER_S, free_port


class NoPostgres(Exception):
    """No PostgreSQL can be had here, and why."""


@dataclass(frozen=True)
class Postgres:
    """A running server."""

    url: str
    pid: int

    def cpu_s(self) -> float:
        """Return the CPU time so far of the server, those of its processes that have ended included."""
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # gone in between
                fields = stat.read_text().rpartition(")")[2].split()
                if int(stat.parent.name) == self.pid:
                    ticks += sum(map(int, fields[11:15]))
                elif int(fields[1]) == self.pid:
                    ticks += sum(map(int, fields[11:13]))
        return float(ticks / TICKS_PER_S)


def _programs() -> Path:
    """Return the folder of initdb and pg_ctl. Debian keeps them off the PATH. Raises NoPostgres."""
    found = [*Path("/usr/lib/postgresql").glob("*/bin/initdb"), *map(Path, filter(None, [shutil.which("initdb")]))]
    if not found:
        raise NoPostgres("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
    return found[0].parent


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Yield a server with an empty database, gone after it. Raises NoPostgres."""
    programs = _programs()
    account = pwd.getpwnam("postgres") if os.geteuid() == 0 else None  # it refuses to run as root
    with tempfile.TemporaryDirectory() as folder:
        if account is not None:
            os.chown(folder, account.pw_uid, account.pw_gid)
        data, port = Path(folder) / "data", free_port()

        def run(program: str, *arguments: str) -> None:
            done = subprocess.run(
                [programs / program, "-D", data, *arguments],
                user=None if account is None else account.pw_uid,
                group=None if account is None else account.pw_gid,
                extra_groups=None if account is None else [],
                cwd="/",
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
                start_new_session=True,
            )
            if done.returncode:
                raise NoPostgres(f"{program}: {done.stderr.strip()[-300:]}")

        run("initdb", "-U", "bench", "-A", "trust", "-E", "UTF8")
        options = f"-c port={port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
        run("pg_ctl", "-w", "-s", "-l", str(Path(folder) / "log"), "-o", options, "start")
        try:
            pid = int((data / "postmaster.pid").read_text().splitlines()[0])
            yield Postgres(f"postgresql+psycopg://bench@127.0.0.1:{port}/postgres", pid)
        finally:
            run("pg_ctl", "-w", "-s", "-m", "immediate", "stop")
