"""Clean up after a test run, however it ended: run as a child of pytest, by path.

    python kafka_keeper.py RUN_DIR

Waits until its standard input ends, which the kernel sees to when pytest is gone, even by kill -9; then stops every
broker, container, PostgreSQL server and process that the run noted in RUN_DIR and removes the folder.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path


def main(run_dir: Path) -> None:
    sys.stdin.buffer.read()
    for data_dir in _noted(run_dir / "brokers"):
        from kinguin_streams.cluster import local_broker
        from kinguin_streams.cluster.settings import LocalSettings
        from kinguin_streams.telemetry.operator_error import OperatorError

        try:
            broker = local_broker.find(LocalSettings(data_dir=Path(data_dir)), answers_within_s=None)
        except OperatorError:  # pytest was killed while it prepared a broker; there is none yet
            continue
        if broker:
            broker.stop(timeout_s=10.0)
    for container_id in _noted(run_dir / "containers"):
        import docker  # type: ignore[import-untyped]

        docker.from_env().containers.get(container_id).remove(force=True)
    for data_dir in _noted(run_dir / "postgres"):
        import postgres_server  # type: ignore[import-not-found] # beside this file, which runs by path

        postgres_server.remove(Path(data_dir))
    for process_id in map(int, _noted(run_dir / "processes")):
        _end(process_id, run_dir)
    shutil.rmtree(run_dir, ignore_errors=True)


def _end(process_id: int, run_dir: Path) -> None:
    """End a process of this run: one whose command line names the run's folder. The id alone may be somebody else's by now."""
    for end in (signal.SIGTERM, signal.SIGKILL):
        for _ in range(50):
            listed = subprocess.run(["ps", "-ww", "-o", "command=", "-p", str(process_id)], capture_output=True, text=True)  # fmt: skip # noqa: S607, PLW1510
            if str(run_dir) not in listed.stdout:
                return
            os.kill(process_id, end)
            time.sleep(0.1)


def _noted(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []


if __name__ == "__main__":
    main(Path(sys.argv[1]))
