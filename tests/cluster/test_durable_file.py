"""A small file is replaced whole, and so that a power cut does not take it back."""

import os
import stat
from pathlib import Path

import pytest

from kinguin_streams.cluster.durable_file import replace_whole


def test_content_and_then_name_are_on_disk_when_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kept.json"
    path.write_bytes(b"old")
    synced: list[tuple[bool, bytes]] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        fsync(descriptor)
        synced.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), path.read_bytes()))

    monkeypatch.setattr(os, "fsync", noted)
    replace_whole(path, b"new")
    assert synced == [(False, b"old"), (True, b"new")]
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_replaced_is_left_as_it_was_and_no_half_file_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        replace_whole(path, b"new")
    assert list(tmp_path.iterdir()) == [path]
