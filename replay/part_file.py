"""A file that grows under a name of its own, and gets its real one when it is complete. Every step survives a power cut.

The order of the steps is the guarantee: content on the disk, then the name, then the folder's entry.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from kinguin_streams.replay.file_names import PART
from kinguin_streams.telemetry.operator_error import OperatorError


class PartFile:
    """One `.part` file that this process appends to. Every method raises OperatorError("file_not_writable")."""

    def __init__(self, path: Path, file_descriptor: int, size_bytes: int) -> None:
        """path: the name that it gets in the end."""
        self.path = path
        self.size_bytes = size_bytes
        self._fd = file_descriptor
        self._folder_is_synced = False

    @classmethod
    def create(cls, path: Path) -> Self:
        """Begin a file. Raises OperatorError("file_exists") if there is one, complete or not."""
        part = _part_of(path)
        with writing(part):
            try:
                if path.exists():
                    raise FileExistsError
                fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            except FileExistsError as error:
                raise OperatorError(
                    "file_exists",
                    f"{path} is there already.",
                    "Another replay writes into this folder, or has: name an empty one.",
                ) from error
        return cls(path, fd, 0)

    @classmethod
    def go_on(cls, path: Path, size_bytes: int) -> Self:
        """Take a file up again at a size that was durable, and cut what follows; a complete file becomes a part again."""
        part = _part_of(path)
        with writing(part):
            if not part.exists():
                path.rename(part)
            fd = os.open(part, os.O_RDWR | os.O_CLOEXEC)
            found = os.fstat(fd).st_size
            if found < size_bytes:
                os.close(fd)
                raise shorter_than_noted(part, found, size_bytes)
            os.ftruncate(fd, size_bytes)
            os.lseek(fd, 0, os.SEEK_END)
        return cls(path, fd, size_bytes)

    def append(self, data: bytes) -> None:
        """Add bytes; durable after the next `sync`."""
        with writing(self.path):
            self.size_bytes += len(data)
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]

    def read(self, position: int, size_bytes: int) -> bytes:
        """Return bytes that were written before."""
        return os.pread(self._fd, size_bytes, position)

    def patch(self, position: int, data: bytes) -> None:
        """Put other bytes in the place of as many that were written before."""
        with writing(self.path):
            os.pwrite(self._fd, data, position)

    def sync(self) -> None:
        """Return once all of it is durable, its name too."""
        with writing(self.path):
            os.fsync(self._fd)
            if not self._folder_is_synced:
                sync_folder(self.path.parent)
                self._folder_is_synced = True

    def finish(self) -> Path:
        """Give it its real name, once all of it is durable."""
        with writing(self.path):
            os.fsync(self._fd)
            _part_of(self.path).rename(self.path)
            sync_folder(self.path.parent)
            self.close()
        return self.path

    def close(self) -> None:
        """Let go of it as it is. A second call changes nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def sync_folder(folder: Path) -> None:
    """Return once names that were made, changed or removed in a folder are durable. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def shorter_than_noted(path: Path, found_bytes: int, noted_bytes: int) -> OperatorError:
    """Return the error for a file that has lost what was durable."""
    return OperatorError(
        "file_changed",
        f"{path} has {found_bytes:,} bytes, and {noted_bytes:,} were written and noted.",
        "Somebody has changed the folder, or the disk has lost writes: make the replay anew into an empty folder.",
    )


def _part_of(path: Path) -> Path:
    return path.with_name(path.name + PART)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says into OperatorError("file_not_writable")."""
    try:
        yield
    except OSError as error:
        raise OperatorError(
            "file_not_writable",
            f"{path} cannot be written: {error.strerror or error}.",
            "Free space, or give this process the right to write there, then `replay resume`.",
        ) from error
