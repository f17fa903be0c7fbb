"""docs/http.md names every code that a caller or an operator can meet, and no other."""

import re
from pathlib import Path
from typing import get_args

from kinguin_streams.cluster import publisher
from kinguin_streams.ingress import answering, decide, problems, spool_file
from kinguin_streams.ingress.settings import IngressSettings

DOCUMENT = (Path(__file__).parents[2] / "docs" / "http.md").read_text("utf-8")
# Reasons that the application notes in the ledger by itself, beside those of decide and of the publisher.
OF_THE_APPLICATION = {
    "unknown_store",
    "unknown_path",
    "method_not_allowed",
    "body_too_large",
    "too_many_in_flight",
}


def first_column(section: str) -> set[str]:
    """Return what stands in code in the first column of the table under a heading."""
    text = DOCUMENT.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE))


def test_every_problem_type_is_documented() -> None:
    assert first_column("Problems") == {problems.TYPE_PREFIX + code for code in problems.KINDS}


def test_every_reason_of_a_dead_letter_is_documented() -> None:
    assert first_column("Reason codes of dead letters") == decide.INVALID_REASONS


def test_every_reason_of_a_refusal_is_documented() -> None:
    of_kafka = {f"kafka_{code}" for code in get_args(publisher.FailureCode)} | {"kafka_away"}
    of_the_spool = {f"spool_{code}" for code in get_args(spool_file.FailureCode)}
    expected = OF_THE_APPLICATION | of_kafka | of_the_spool | {*decide.REFUSAL_REASONS, "internal_error"}
    assert first_column("Reasons of refusals") == expected


def test_the_reasons_of_the_application_are_those_in_its_source() -> None:
    source = Path(answering.__file__).read_text("utf-8")
    assert set(re.findall(r'^ +entry\.reason = "([a-z_]+)"', source, re.MULTILINE)) == OF_THE_APPLICATION


def test_the_documented_limits_and_headers_are_those_of_the_code() -> None:
    defaults = IngressSettings()
    assert decide.MAX_BODY_BYTES == 65_536
    assert (defaults.connection_limit, defaults.max_in_flight) == (1000, 512)
    assert (defaults.ack_wait_s, defaults.deadline_s) == (3.0, 5.0)
    assert (defaults.port, defaults.admin_port) == (8080, 8081)
    assert f"`{answering.FAULT_HEADER}`" in DOCUMENT
    assert f"`Retry-After: {answering.RETRY_AFTER_S}`" in DOCUMENT
    kept = re.search(r"A dead letter keeps (.*), and no other header", DOCUMENT)
    assert kept is not None
    assert {name.lower() for name in re.findall("`([^`]+)`", kept[1])} == {
        name.lower() for name in answering.KEPT_HEADERS
    }
