"""The programs of docs/testing.md do what the page says: taken from the page, and run in one module, as a reader would."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from kinguin_streams.consumers.testing import Arrival, arrivals, order_events

PAGE = (Path(__file__).parents[2] / "docs" / "testing.md").read_text("utf-8")
PROGRAMS = re.findall(r"<!-- run: (\w+) -->\n```python\n(.*?)```", PAGE, re.DOTALL)


def module() -> dict[str, Any]:
    """Return the names of the page's programs, run one after the other."""
    names: dict[str, Any] = {"__name__": "page"}
    settings.register_profile("page", max_examples=20)  # of what the page leaves to hypothesis
    settings.load_profile("page")
    try:
        for name, program in PROGRAMS:
            exec(compile(program, f"docs/testing.md ({name})", "exec"), names)  # noqa: S102 - the page is ours
    finally:
        settings.load_profile("default")
    return names


READ = module()
TESTS = sorted(name for name in READ if name.startswith("test_"))


def test_every_program_of_the_page_is_run() -> None:
    assert len(PROGRAMS) == PAGE.count("```python")
    assert {name for _, program in PROGRAMS for name in re.findall(r"def (test_\w+)", program)} == set(TESTS)


@pytest.mark.parametrize("name", TESTS)
def test_what_the_page_says_holds(name: str) -> None:
    READ[name]()


def test_what_the_page_calls_wrong_is_found_by_its_property_and_not_by_its_example() -> None:
    names = module()
    right = names["LATEST"]
    names["LATEST"] = type(right)(
        **{field: getattr(right, field) for field in ("name", "version", "events", "state_type", "key")},
        fold=names["fold_that_is_wrong"],
    )
    names["test_the_newest_status_counts"]()

    @settings(deadline=None, database=None, derandomize=True)
    @given(arrivals(order_events()))
    def property_of_the_page(arrival: Arrival) -> None:
        arrival.assert_same_state(names["LATEST"])

    with pytest.raises(AssertionError) as raised:
        property_of_the_page()
    said = str(raised.value)
    assert said.startswith("The state of latest-status depends on how the events arrived.\nstate:    {StateKey(store=")
    lines = said.splitlines()
    assert lines[3] == "Arrival:"
    assert [line.partition("(")[0] for line in lines[4:]] == ["    driver.send"] * 2
