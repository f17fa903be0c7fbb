"""The databases that the suite of this folder runs on."""

from pathlib import Path

import pytest

from kinguin_streams.consumers.settings import StateSettings
from tests.consumers.databases import state_settings


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> StateSettings:
    """Settings of an empty database, of each kind."""
    if request.param == "sqlite":
        return state_settings(tmp_path)
    return StateSettings(url=request.getfixturevalue("postgres").new_database(), busy_timeout_s=5.0)
