"""What becomes of a dead letter, told from its records and its trail; and how it is shown."""

import msgspec
import pytest

from kinguin_streams.replay.dead_letters import Asked, Found, grouped, once_each, the_one, with_trails
from kinguin_streams.replay.letter_view import in_lines, view
from kinguin_streams.replay.trail import after_redrive, step
from kinguin_streams.schemas.codec import Decoder, Encoder
from kinguin_streams.schemas.dead_letters import SourcePosition, from_consumer
from kinguin_streams.schemas.events import DeadLetter
from kinguin_streams.telemetry.operator_error import OperatorError
from tests.consumers.deliveries import order_status

AT_MS = 1_770_000_000_000
MOST_ATTEMPTS = 3


def failed(after_ms: int, value: bytes = b"value") -> DeadLetter:
    """Return the dead letter of always the same position, failed at so long after AT_MS."""
    return from_consumer(
        consumer="mine",
        reason="handler_failed",
        detail="of long ago",
        value=value,
        headers=[],
        source=SourcePosition(topic="t", partition=0, offset=1, key=b"O", timestamp_ms=AT_MS),
        failed_at_ms=AT_MS + after_ms,
    )


def redriven(found: Found, refusal: str | None, after_ms: int) -> Found:
    """Return it with the step of a redrive at that time."""
    state = after_redrive(found, refusal, MOST_ATTEMPTS)
    return found._replace(
        trail=step(found, state, at_ms=AT_MS + after_ms, by="me", why=refusal, redrive_id="a-redrive")
    )


def test_a_dead_letter_that_is_new_again_has_all_its_attempts_before_it_and_keeps_its_steps() -> None:
    found = Found(failed(0), 0, 0, None)
    for after_ms in (1, 2, 3):
        found = redriven(found, "in vain", after_ms)
    assert (found.state, found.attempts) == ("parked", 3)
    again = found._replace(letter=msgspec.structs.replace(found.letter, failed_at_ms=AT_MS + 10))
    assert (again.state, again.attempts) == ("new", 0)
    again = redriven(again, "in vain", 11)
    assert (again.state, again.attempts) == ("refused", 1)
    assert [state for _, state, *_ in again.trail.steps] == ["refused", "refused", "parked", "refused"]  # type: ignore[union-attr]


def test_a_dead_letter_is_what_its_newest_record_says_once_in_a_list_and_when_it_is_shown() -> None:
    first = redriven(Found(failed(0), 0, 0, None), None, 10)
    again = first._replace(letter=failed(20), offset=1)
    records = [first, again]
    assert once_each(lambda: reversed(records), Asked(states=("new",)))[0] == 1, "partitions are read in any order"
    count, found = once_each(lambda: records, Asked())
    (group,) = grouped(found, AT_MS + 30)
    assert (count, group.state, group.count, group.copies) == (1, "new", 1, 1)
    assert the_one(list(once_each(lambda: records, Asked())[1]), first.letter.dead_letter_id[:8]).state == "new"
    assert once_each(lambda: records, Asked(states=("redriven",)))[0] == 0


def test_another_record_at_the_position_is_a_dead_letter_of_its_own_with_a_trail_of_its_own() -> None:
    places = [(failed(0), 0, 0), (failed(5, b"of the topic made anew"), 0, 1)]
    count, each = once_each(lambda: with_trails(places, {}), Asked())
    old, new = each
    assert (count, old.id, new.id.startswith(f"{old.id}-")) == (2, old.letter.dead_letter_id, True)
    trail = redriven(old, None, 10).trail
    assert trail is not None
    states = {each.id: each.state for each in with_trails(places, {trail.dead_letter_id: trail})}
    assert states == {old.id: "redriven", new.id: "new"}
    assert the_one([old, new], old.id) == old
    assert the_one([new], new.id[:40]) == new


def test_an_id_that_no_dead_letter_has_is_an_error_and_not_nothing_to_do() -> None:
    old = Found(failed(0), 0, 0, None)
    asked = Asked(ids=(old.id[:8], "f00d"), states=("new",))
    with pytest.raises(OperatorError, match="begins with f00d") as found:
        once_each(lambda: [old], asked)
    assert found.value.code == "no_dead_letter"
    of_another_state = Asked(ids=(old.id,), states=("parked",))
    assert once_each(lambda: [old], of_another_state)[0] == 0


def test_the_body_of_a_consumer_s_is_shown_as_the_record_that_it_is() -> None:
    event = order_status("completed", 1, order_id="O7")
    found = Found(failed(0, Encoder().encode(event)), 0, 0, None)
    record = view(found, Decoder().decode)["record"]
    assert (record["record"], record["fields"]["orderId"], record["fields"]["status"]) == (
        "order.status",
        "O7",
        "completed",
    )
    assert record["fields"]["raw"] == event.raw.decode()
    assert record["fields"]["updatedAt"].endswith("Z")
    lines = list(in_lines(found, Decoder().decode))
    assert "    orderId: O7" in lines
    assert not [line for line in lines if "c3 01" in line]


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b"\xff\x00 nonsense", id="no record of anybody's"),
        pytest.param(b"\xc3\x01unknown!\x02", id="a record of a later version"),
        pytest.param(b"\x00\x00\x00\x00\x07\x02", id="a record of a registry that is not set here"),
        pytest.param(b"", id="no value"),
    ],
)
def test_a_body_that_is_no_record_is_shown_as_its_bytes(value: bytes) -> None:
    found = Found(failed(0, value), 0, 0, None)
    assert view(found, Decoder().decode)["record"] is None
    assert value[:4].hex(" ") in "\n".join(in_lines(found, Decoder().decode))
