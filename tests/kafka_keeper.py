"""Clean up after a test run, however it ended: run as a child of pytest, by path.

    python kafka_keeper.py RUN_DIR

Waits until its standard input ends, which the kernel sees to when pytest is gone, even by kill -9; then stops every
broker and container that the run noted in RUN_DIR and removes the folder.
"""

import shutil
import sys
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
    shutil.rmtree(run_dir, ignore_errors=True)


def _noted(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []


if __name__ == "__main__":
    main(Path(sys.argv[1]))
