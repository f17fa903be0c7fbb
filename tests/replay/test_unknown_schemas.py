"""A record that cannot be read here is never skipped, and never a traceback: it is named, with what to do."""

from typing import Any

import pytest

from kinguin_streams.replay.filters import Filters
from kinguin_streams.replay.plan import Selection
from kinguin_streams.replay.record import Record
from kinguin_streams.schemas.codec import Decoder
from kinguin_streams.telemetry.operator_error import OperatorError
from tests.commands import run
from tests.replay.replay_topics import Bench

OF_A_REGISTRY = b"\x00\x00\x00\x00\x07\x02"
OF_A_LATER_VERSION = b"\xc3\x01unknown!\x02"


@pytest.mark.parametrize("value", [OF_A_REGISTRY, OF_A_LATER_VERSION])
@pytest.mark.parametrize(
    "selected", [{"where": ('status == "completed"',)}, {"events": ("order.status",)}, {"distinct": 10}]
)
def test_a_filter_stops_at_it(value: bytes, selected: dict[str, Any]) -> None:
    filters = Filters(Selection(**selected), {}, Decoder().decode)
    record = Record("t.a", 3, 12, 0, b"key", value, ())
    with pytest.raises(OperatorError, match=r"t\.a/3/12 has to be looked into") as found:
        filters.split([record])
    assert found.value.code == "schema_unknown"
    if selected.get("distinct"):
        with pytest.raises(OperatorError, match=r"t\.a/3/12 has to be looked into"):
            filters.remember(record)


@pytest.mark.kafka
@pytest.mark.parametrize("value", [OF_A_REGISTRY, OF_A_LATER_VERSION], ids=["of a registry", "of a later version"])
def test_commands_that_look_into_records_name_it(bench: Bench, value: bytes) -> None:
    letters, target = bench.topic("dead-letter", 1), bench.topic("target", 1)
    bench.produce(letters, [{"value": value}])
    listed = run(bench.settings, "dead-letters", "list")
    planned = bench.replay("topic", target, letters, "--exact", "--where", "origin == ingress")
    for ended in (listed, planned):
        assert (ended.returncode, ended.stdout) == (1, "")
        assert f"{letters}/0/0 has to be looked into" in ended.stderr
        assert "KINGUIN_REGISTRY__URL" in ended.stderr
        assert "Traceback" not in ended.stderr
