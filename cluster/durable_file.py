"""Small files that are there whole after a kill or a power cut: as they were, or as they were to be."""

import contextlib
import os
from pathlib import Path


def replace_whole(path: Path, content: bytes) -> None:
    """Return once the file has the content, on disk. Who reads it meanwhile sees the old or the new one, whole.

    Raises OSError; then the old one is there, and nothing else is left behind.
    """
    # A name of its own: processes that share the folder must not write into each other's half file.
    half = path.with_name(f"{path.name}.{os.getpid()}.half")
    try:
        with half.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        half.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            half.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Return once what was made in the folder survives a power cut: a file is not there before its name is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
