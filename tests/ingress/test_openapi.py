"""The OpenAPI document and the ingress say the same: every documented answer is given, every example is what it is said to be.

That no answer is given which is not documented, every test of this folder watches: see running_ingress.Connection.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from kinguin_streams.ingress import admin, answering, problems
from kinguin_streams.ingress.admin import make_admin_app
from kinguin_streams.ingress.answering import Keeps, StrippedHeaders, Webhooks
from kinguin_streams.ingress.app import make_app
from kinguin_streams.ingress.decide import INVALID_REASONS
from kinguin_streams.ingress.keeper import KafkaRefuses, NotKept, Where
from kinguin_streams.ingress.ledger import Ledger
from kinguin_streams.ingress.openapi import PAYLOADS
from kinguin_streams.ingress.payloads import InvalidWebhook, parse_updated_at, read_event
from kinguin_streams.ingress.request_log import RequestLog
from kinguin_streams.ingress.secrets import Secrets
from kinguin_streams.ingress.vigil import Vigil
from kinguin_streams.ingress.waiting import Steps
from kinguin_streams.schemas.codec import Encoder
from kinguin_streams.schemas.events import EVENT_NAMES, EventName, StoreName
from kinguin_streams.schemas.outgoing import OutgoingRecord
from kinguin_streams.schemas.topics import topics
from kinguin_streams.telemetry.admin_server import Check
from kinguin_streams.telemetry.traces import PassedOn
from tests.ingress.documented import DOCUMENT, assert_documented, is_valid, operations
from tests.ingress.running_ingress import (
    SECRET,
    SHOP_2_SECRET,
    Answer,
    Header,
    RunningIngress,
    call_wsgi,
    new_id,
    order_status,
    request_bytes,
    webhook_headers,
)

EXAMPLES = Path(__file__).parents[2] / "schemas" / "examples"
# Refused by the ingress, and beyond JSON Schema: what is wrong with the text is gone once it is parsed, lengths are in bytes,
# or (rounding, years in UTC) it would take arithmetic.
BEYOND_A_SCHEMA = {
    "byte_order_mark.json",
    "duplicate_in_unknown_field.json",
    "duplicate_order_id_escaped.json",
    "duplicate_price.json",
    "duplicate_status.json",
    "lone_surrogate.json",
    "order_id_1026_bytes_of_utf8.json",
    "price_nan.json",
    "price_rounds_up_too_large.json",
    "surrogates_as_utf8.json",
    "time_after_year_9999_in_utc.json",
    "time_before_year_1_in_utc.json",
    "time_newline_after.json",  # Python's $ also matches before a last newline; that of JSON Schema does not
    "utf_16.json",
}


def payload_schema(event: EventName) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{PAYLOADS[event].__name__}"}


# --- what it lists ---


def test_it_lists_the_paths_and_methods_of_both_ports() -> None:
    listed = {(path, method) for path, method, _ in operations()}
    of_webhooks = {(path, method) for path in answering.PATHS for method in answering.METHODS}
    of_admin = {(path, "GET") for path in (admin.LIVEZ, admin.READYZ, admin.HEALTHZ, admin.METRICS, admin.OPENAPI)}
    assert listed == of_webhooks | of_admin


def test_it_lists_every_event_reason_and_problem_type() -> None:
    components = DOCUMENT["components"]
    assert set(PAYLOADS) == set(EVENT_NAMES)
    assert components["parameters"]["EventName"]["schema"]["enum"] == list(EVENT_NAMES)
    assert set(components["headers"]["Fault"]["schema"]["enum"]) == INVALID_REASONS
    titles = [schema["title"] for name, schema in components["schemas"].items() if name.startswith("Problem")]
    assert titles == list(problems.KINDS)
    # A problem type that no response shows would be documented in name only.
    shown = {code for each in components["responses"].values() for code in _problem_examples(each)}
    assert shown == set(problems.KINDS)


def _problem_examples(response: Mapping[str, Any]) -> Mapping[str, Any]:
    examples: Mapping[str, Any] = response.get("content", {}).get(problems.CONTENT_TYPE, {}).get("examples", {})
    return examples


def test_every_example_is_valid_by_its_schema() -> None:
    for name, example in DOCUMENT["components"]["examples"].items():
        event: EventName = next(event for event in EVENT_NAMES if name.startswith(event))
        assert is_valid(payload_schema(event), example["value"]), name
        assert is_valid({"$ref": "#/components/schemas/Webhook"}, example["value"]), name
        read_event(StoreName("default"), event, json.dumps(example["value"]).encode(), 0)
    for response in DOCUMENT["components"]["responses"].values():
        for example in _problem_examples(response).values():
            assert is_valid(response["content"][problems.CONTENT_TYPE]["schema"], example["value"])
    for described in (*DOCUMENT["components"]["parameters"].values(), *DOCUMENT["components"]["headers"].values()):
        assert "example" not in described or is_valid(described["schema"], described["example"])


@pytest.mark.parametrize("event", EVENT_NAMES)
def test_every_body_of_the_examples_folder_is_valid_by_its_schema(event: EventName) -> None:
    files = sorted((EXAMPLES / event).glob("*/*.json"))
    assert files
    invalid = [file.name for file in files if not is_valid(payload_schema(event), _exact(file.read_bytes()))]
    assert invalid == []


def test_what_the_ingress_refuses_is_invalid_by_its_schema_but_for_what_a_schema_cannot_say() -> None:
    let_through = set()
    for case in json.loads((EXAMPLES / "refused.json").read_text("utf-8")):
        try:
            value = _exact((EXAMPLES / "refused" / case["file"]).read_bytes())
        except (ValueError, RecursionError):
            continue  # no JSON: no schema applies
        if is_valid(payload_schema(case["event"]), value):
            let_through.add(case["file"])
    assert let_through == BEYOND_A_SCHEMA


def _exact(body: bytes) -> Any:
    """Return a JSON value whose numbers are as they were written: a float would take the largest price to its bound."""
    return json.loads(body, parse_float=Decimal)


# --- the two patterns that stand beside a parser in words of their own ---

UPDATED_AT = DOCUMENT["components"]["schemas"]["OrderStatusPayload"]["properties"]["updatedAt"]["pattern"]
PRICE = next(
    schema["pattern"]
    for schema in DOCUMENT["components"]["schemas"]["ProductUpdatePayload"]["properties"]["price"]["anyOf"]
    if "pattern" in schema
)


def _updated_at_is_read(text: str) -> bool:
    try:
        parse_updated_at(text)
    except InvalidWebhook as invalid:
        return "1 to 9999" in invalid.detail  # what the document leaves to its description
    return True


@given(st.from_regex(UPDATED_AT.replace("$", r"\Z"), fullmatch=True))
def test_every_updated_at_of_the_documented_pattern_is_read(text: str) -> None:
    assert _updated_at_is_read(text)


@given(
    st.builds(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}{}{}".format,
        st.sampled_from([0, 1, 4, 100, 400, 1900, 2000, 2019, 2020, 2100, 9999]),
        st.integers(0, 13),
        st.integers(0, 32),
        st.integers(0, 23),
        st.integers(0, 60),
        st.integers(0, 60),
        st.sampled_from(["", ".1", ".123456789", ".1234567890", "."]),
        st.sampled_from(["Z", "UTC", "+00:00", "-23:59", "+24:00", "+00:60", "", "z"]),
    )
)
def test_an_updated_at_is_read_exactly_if_it_has_the_documented_pattern(text: str) -> None:
    assert _updated_at_is_read(text) == (re.search(UPDATED_AT, text) is not None)


@given(
    st.from_regex(r"-?[0-9]{1,13}(\.[0-9]{1,8})?", fullmatch=True)
    | st.sampled_from(["999999999999.9999994", "999999999999.9999995", "-999999999999.9999995", "999999999999.9999989"])
)
def test_a_quoted_price_without_exponent_is_read_exactly_if_it_has_the_documented_pattern(price: str) -> None:
    body = json.dumps({"kinguinId": 1, "productId": "a", "updatedAt": "2020-10-16T11:24:08Z", "price": price})
    try:
        read_event(StoreName("default"), "product.update", body.encode(), 0)
        read = True
    except InvalidWebhook:
        read = False
    assert read == (re.search(PRICE, price) is not None)


# --- what it lists is answered ---


class KafkaAway:
    """Keeps nothing."""

    def keep(self, _record: OutgoingRecord, _deadline_s: float, /) -> Steps[Where]:
        yield from ()
        raise NotKept("kafka_no_report", "")

    def keep_on_disk(self, _record: OutgoingRecord, _deadline_s: float, refused: KafkaRefuses, /) -> Steps[Where]:
        yield from ()
        raise NotKept("kafka_refused", str(refused))


class Kept:
    """Keeps everything."""

    def keep(self, _record: OutgoingRecord, _deadline_s: float, /) -> Steps[Where]:
        yield from ()
        return "kafka"

    def keep_on_disk(self, _record: OutgoingRecord, _deadline_s: float, refused: KafkaRefuses, /) -> Steps[Where]:
        yield from ()
        raise NotKept("kafka_refused", str(refused))


class BrokenSecrets(Secrets):
    """Fails as soon as it is asked for a store."""

    def has(self, store: StoreName) -> bool:  # noqa: ARG002
        raise RuntimeError


@dataclass(frozen=True)
class Unready:
    """What the admin port shows of a process that stops."""

    def checks(self) -> Mapping[str, Check]:
        return {"not_stopping": Check(ok=False, detail="stopping")}

    def warnings(self) -> list[str]:
        return []


def application(*, secrets: Secrets | None = None, keeper: Keeps | None = None) -> Any:
    """Return the WSGI application of an ingress that answers 422 to what is invalid."""
    secrets, ledger = secrets or Secrets({"default": [SECRET]}), Ledger()
    return make_app(
        Webhooks(
            secrets=secrets,
            vigil=Vigil(secrets, ledger.registry, silence_s=3600, failure_budget=0.01),
            topics=topics(),
            encoder=Encoder(),
            keeper=keeper or Kept(),
            ledger=ledger,
            on_invalid="reject",
            stripped_headers=StrippedHeaders(),
            deadline_s=5,
            max_in_flight=512,
            request_log=RequestLog(0),
            traces=PassedOn(),
        )
    )


def answers(ingress: RunningIngress) -> Iterator[tuple[str, str, Answer]]:
    """Yield path, method and answer: of a real process, but where something inside must be away or broken."""
    authentic = [(name, str(value)) for name, value in webhook_headers("order.status", SECRET) if isinstance(name, str)]
    unready: Any = Unready()
    for path in answering.PATHS:
        real = path.replace("{store}", "default")
        unknown = application(secrets=Secrets({"shop-2": [SHOP_2_SECRET]}))
        broken = application(secrets=BrokenSecrets({"default": [SECRET]}))
        for method in answering.METHODS:
            body = order_status(new_id()) if method == "POST" else b""
            for headers, sent in _of_the_process(method, body):
                yield path, method, ingress.send(request_bytes(method, real, headers, sent), method)
            yield path, method, call_wsgi(unknown, authentic, body, real, method)
            yield path, method, call_wsgi(broken, authentic, body, real, method)
        yield path, "POST", ingress.post(b"{", path=real)
        yield path, "POST", ingress.post(b"{}", path=real, secret="wrong")
        yield path, "POST", call_wsgi(application(), authentic, b"{}", real)
        yield path, "POST", call_wsgi(application(keeper=KafkaAway()), authentic, order_status("A"), real)
    for path in (admin.LIVEZ, admin.READYZ, admin.HEALTHZ, admin.METRICS, admin.OPENAPI):
        yield path, "GET", ingress.admin(path)
    stuck = make_admin_app(unready, CollectorRegistry(), DOCUMENT, lambda: admin.STALLED_S + 1)
    for path in (admin.READYZ, admin.HEALTHZ, admin.LIVEZ):
        yield path, "GET", call_wsgi(stuck, [], b"", path, "GET")


def _of_the_process(method: str, body: bytes) -> Iterator[tuple[list[Header], bytes]]:
    """Yield requests that every method can be sent as: good, no HTTP, too large in body or headers, of another encoding."""
    headers = webhook_headers("order.status", SECRET) if method == "POST" else []
    yield [*headers, ("Content-Length", str(len(body)))], body
    yield [*headers, ("Content-Length", "x")], b""
    yield [*headers, ("Content-Length", "131072")], b""
    yield [*headers, ("X-Long", "x" * 20_000), ("Content-Length", "0")], b""
    yield [*headers, ("Transfer-Encoding", "gzip")], b""
    yield [*headers, ("Content-Length", "70000")], b"x" * 70_000


@pytest.mark.kafka
def test_every_documented_answer_is_given_and_is_as_documented(ingress: RunningIngress) -> None:
    given_answers = set()
    for path, method, answer in answers(ingress):
        request = request_bytes(method, path.replace("{store}", "default"), [])
        on_admin_port = path not in answering.PATHS
        assert_documented(request, answer.status, answer.headers, answer.body, admin_port=on_admin_port)
        given_answers.add((path, method, str(answer.status)))
    listed = {(path, method, status) for path, method, responses in operations() for status in responses}
    # Another coding than chunks is a 400 to granian.
    of_waitress = {(path, method, "501") for path in answering.PATHS for method in answering.METHODS}
    assert given_answers == ingress.differing(listed, granian=listed - of_waitress)


@pytest.mark.kafka
def test_other_methods_and_paths_are_answered_as_documented(ingress: RunningIngress) -> None:
    for method in ("PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
        answer = ingress.send(request_bytes(method, "/webhooks", [("Content-Length", "0")]), method)
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD, POST")
    assert ingress.send(request_bytes("GET", "/openapi.json", []), "GET").status == 404


@pytest.mark.kafka
def test_the_process_serves_the_document_with_its_own_ports(ingress: RunningIngress) -> None:
    answer = ingress.admin(admin.OPENAPI)
    served = json.loads(answer.body)
    assert answer.headers["content-type"] == "application/json"
    assert served["servers"][0]["url"].endswith(f":{ingress.port}")
    assert served["paths"][admin.LIVEZ]["servers"][0]["url"].endswith(f":{ingress.admin_port}")
    assert served["components"] == DOCUMENT["components"]
