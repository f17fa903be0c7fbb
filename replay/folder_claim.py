"""Whose topic's files in a folder are: a file `TOPIC.claim` beside them says it until they are complete.

A file of lines does not say which replay wrote it, and a replay that was stopped before its first record has none. So another
one could export the same topic into the same folder, and the resumed one would take those files for its own.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from kinguin_streams.replay.part_file import sync_folder, writing
from kinguin_streams.telemetry.operator_error import OperatorError

_SUFFIX = ".claim"


class FolderClaim:
    """One replay's claims on a folder's topics. Every method raises OperatorError("file_not_writable")."""

    def __init__(self, folder: Path, topics: Iterable[str], replay_id: str) -> None:
        self._folder, self._topics, self._replay_id = folder, sorted(topics), replay_id

    def take(self) -> None:
        """Return once all topics are claimed, durably. Raises OperatorError("folder_occupied"): then none is that was not before."""
        made: list[Path] = []
        try:
            for topic in self._topics:
                path = _path(self._folder, topic)
                if not self._made(path, made) and _owner(path) != self._replay_id:
                    raise _occupied(self._folder, topic)
        except OperatorError:
            for path in made:
                with writing(path):
                    path.unlink()
            raise
        with writing(self._folder):
            sync_folder(self._folder)

    def held(self) -> frozenset[str]:
        """Return the topics that are claimed by this replay. Raises OperatorError("folder_changed") if one is by another."""
        owners = {topic: _owner(_path(self._folder, topic)) for topic in self._topics}
        for topic, owner in owners.items():
            if owner not in (None, self._replay_id):
                path = _path(self._folder, topic)
                raise OperatorError(
                    "folder_changed",
                    f"{_name(owner)} writes {topic} into {self._folder} too: {path.name} says so.",
                    "Let it finish and move its files elsewhere, then `replay resume`; or make this replay anew.",
                )
        return frozenset(topic for topic, owner in owners.items() if owner is not None)

    def release(self) -> None:
        """Give up what is claimed by this replay: its files are complete."""
        with writing(self._folder):
            for topic in self._topics:
                path = _path(self._folder, topic)
                if _owner(path) == self._replay_id:
                    path.unlink()
            sync_folder(self._folder)

    def _made(self, path: Path, made: list[Path]) -> bool:
        with writing(path):
            try:
                with path.open("xb") as file:
                    made.append(path)
                    file.write(f"{self._replay_id}\n".encode())
                    file.flush()
                    os.fsync(file.fileno())
            except FileExistsError:
                return False
        return True


def refuse_claimed(folder: Path, topics: Iterable[str]) -> None:
    """Raise OperatorError("folder_occupied") if another replay has claimed one of the topics, as each has for a new one."""
    for topic in sorted(topics):
        if _owner(_path(folder, topic)) is not None:
            raise _occupied(folder, topic)


def _path(folder: Path, topic: str) -> Path:
    return folder / (topic + _SUFFIX)


def _owner(path: Path) -> str | None:
    """Return the id of the replay that has made a claim; "" if it died before it could say it, None if there is no claim."""
    with writing(path):
        try:
            return path.read_text("utf-8", "replace").strip()
        except FileNotFoundError:
            return None


def _occupied(folder: Path, topic: str) -> OperatorError:
    path = _path(folder, topic)
    owner = _owner(path)
    go_on = f"go on with that one (`replay resume {owner}`)" if owner else "see that none is running"
    return OperatorError(
        "folder_occupied",
        f"{_name(owner)} has begun to write {topic} into {folder}, and is not done: {path.name} says so.",
        f"Name another folder, or {go_on}. If it never will go on, delete {path}.",
    )


def _name(owner: str | None) -> str:
    return f"The replay {owner}" if owner else "Another replay"
