"""What is said again and again is said once in a while, and nothing is remembered without end."""

from kinguin_streams.telemetry.repeats import MOST_KINDS, Repeats


def test_the_same_is_said_once_in_a_while_with_how_often_it_was_not() -> None:
    repeats = Repeats(every_s=10.0)
    assert [repeats.unsaid("a", second) for second in (0, 1, 9.9, 10, 11)] == [0, None, None, 2, None]
    assert repeats.unsaid("b", 11) == 0
    assert repeats.unsaid("a", 20) == 1


def test_what_is_remembered_does_not_grow_without_end() -> None:
    repeats = Repeats()
    for number in range(3 * MOST_KINDS):
        assert repeats.unsaid(str(number), 0.0) == 0
    assert len(repeats._said) <= MOST_KINDS
