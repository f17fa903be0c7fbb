"""What we count on in a registry, held against a real Apicurio, our stand-in, and the client's own mock."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from kinguin_streams.cluster.registry import RegistryIds
from kinguin_streams.cluster.registry_client import NotInRegistry, RegistryClient, RegistryRefused
from kinguin_streams.cluster.registry_match import identify
from kinguin_streams.cluster.registry_plan import subject_of
from kinguin_streams.cluster.registry_steps import Registration
from kinguin_streams.cluster.settings import RegistrySettings
from kinguin_streams.schemas.topics import Topics, topics
from kinguin_streams.schemas.versions import LEVEL, RECORD_NAMES, shipped
from kinguin_streams.telemetry.operator_error import OperatorError
from tests.registries import StandIn, running

MOCK_FORGETS = "the client's mock:// is empty for every client, and knows no compatibility levels"
PRODUCT = shipped().versions("product.update")


@dataclass(frozen=True)
class Given:
    """A registry under test, and topics whose subjects nobody else uses."""

    kind: str
    settings: RegistrySettings
    topics: Topics

    def subject(self, record: Any = "product.update") -> str:
        return subject_of(self.topics.name(record))


@pytest.fixture(params=["mock", "stand-in", "apicurio"])
def given(request: pytest.FixtureRequest, topic_prefix: str) -> Iterator[Given]:
    if request.param == "mock":
        yield Given("mock", RegistrySettings(url="mock://contract"), topics(topic_prefix))
    elif request.param == "apicurio":
        url = request.getfixturevalue("apicurio")
        yield Given("apicurio", RegistrySettings(url=url, timeout_s=20), topics(topic_prefix))
    else:
        stand_in = StandIn()
        with running(stand_in):
            yield Given("stand-in", stand_in.settings, topics(topic_prefix))


def client_of(given: Given) -> RegistryClient:
    return RegistryClient(given.settings)


def test_a_subject_that_is_not_there_has_no_versions(given: Given) -> None:
    assert client_of(given).versions(given.subject()) == ()


def test_an_id_that_is_not_there_is_told_from_a_registry_that_is_away(given: Given) -> None:
    with pytest.raises(NotInRegistry):
        client_of(given).schema_text(987_654_321)
    with pytest.raises(NotInRegistry):
        client_of(given).schema_text(2**32 - 1)  # the greatest a frame can hold


def test_every_shipped_version_can_be_registered_and_comes_back_under_its_id(given: Given) -> None:
    client = client_of(given)
    ids = [client.register(given.subject(), schema.text) for schema in PRODUCT]
    assert len(set(ids)) == len(PRODUCT)
    assert [identify(client.schema_text(schema_id), shipped()) for schema_id in ids] == list(PRODUCT)
    listed = client.versions(given.subject())
    assert [(one.version, one.schema_id) for one in listed] == list(enumerate(ids, start=1))
    assert [identify(one.text, shipped()) for one in listed] == list(PRODUCT)


def test_registering_again_changes_nothing(given: Given) -> None:
    client = client_of(given)
    first = [client.register(given.subject(), schema.text) for schema in PRODUCT]
    assert [client.register(given.subject(), schema.text) for schema in PRODUCT] == first
    assert len(client.versions(given.subject())) == len(PRODUCT)


def test_what_one_subject_has_the_other_has_not(given: Given) -> None:
    client = client_of(given)
    client.register(given.subject("order.status"), shipped().newest("order.status").text)
    assert client.versions(given.subject("order.complete")) == ()


def test_schemas_that_differ_by_a_logical_type_alone_have_ids_of_their_own(given: Given) -> None:
    """Else a registry would give our id to bytes that mean something else."""
    client = client_of(given)
    ours = client.register(given.subject("order.status"), shipped().newest("order.status").text)
    micros = shipped().newest("order.status").text.replace("timestamp-millis", "timestamp-micros")
    assert client.register(f"other.{given.subject('order.status')}", micros) != ours


def test_a_level_of_ones_own_is_set_and_read_back(given: Given, request: pytest.FixtureRequest) -> None:
    _mock_cannot(given, request)
    client = client_of(given)
    assert client.level(given.subject()) is None
    client.set_level(given.subject(), LEVEL)  # before there is a version
    assert client.level(given.subject()) == LEVEL
    for schema in PRODUCT:
        client.register(given.subject(), schema.text)
    assert client.level(given.subject()) == LEVEL


def test_at_that_level_a_change_that_breaks_readers_is_refused(given: Given, request: pytest.FixtureRequest) -> None:
    if given.kind != "apicurio":
        request.applymarker(
            pytest.mark.xfail(reason="only a real registry compares schemas", raises=Failed, strict=True)
        )
    client = client_of(given)
    client.register(given.subject(), PRODUCT[-1].text)
    if given.kind == "apicurio":
        client.set_level(given.subject(), LEVEL)
    schema = json.loads(PRODUCT[-1].text)
    schema["fields"].append({"name": "added", "type": "string"})
    with pytest.raises(RegistryRefused):
        client.register(given.subject(), json.dumps(schema))


def test_that_level_does_not_notice_a_logical_type(given: Given, request: pytest.FixtureRequest) -> None:
    """Why `schemas check` and `schemas register` compare meanings themselves."""
    if given.kind != "apicurio":
        pytest.skip("only a real registry compares schemas")
    client = client_of(given)
    client.register(given.subject(), PRODUCT[-1].text)
    client.set_level(given.subject(), LEVEL)
    client.register(given.subject(), PRODUCT[-1].text.replace("timestamp-millis", "timestamp-micros"))


def test_the_whole_plan_is_carried_out_and_then_there_is_nothing_left(
    given: Given, request: pytest.FixtureRequest
) -> None:
    _mock_cannot(given, request)
    registration = Registration(given.settings, given.topics)
    plan = registration.plan()
    assert {step.action for step in plan.versions} == {"register"}
    assert [registration.set_level(step) for step in plan.levels] == [None] * len(RECORD_NAMES)
    ids = [registration.register(step) for step in plan.versions]

    done = Registration(given.settings, given.topics).plan()
    assert {step.action for step in done.versions} == {level.action for level in done.levels} == {"present"}
    assert [step.schema_id for step in done.versions] == ids
    reader = RegistryIds(given.settings, given.topics)
    assert [reader.schema_of(schema_id) for schema_id in ids] == [step.schema for step in plan.versions]
    for step, schema_id in zip(plan.versions, ids, strict=True):
        assert RegistryIds(given.settings, given.topics).id_of(step.schema) == schema_id


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param(
            '{"type": "record", "name": "Strange", "fields": []}', "none of the shipped", id="somebody else's"
        ),
        pytest.param(
            PRODUCT[-1].text.replace("timestamp-millis", "timestamp-micros"),
            "another logical type",
            id="ours but for times",
        ),
        pytest.param(shipped().newest("order.status").text, "that of order.status", id="another record of ours"),
    ],
)
def test_a_subject_that_holds_what_is_not_ours_is_refused_before_anything_is_registered(
    given: Given, request: pytest.FixtureRequest, text: str, reason: str
) -> None:
    _mock_cannot(given, request)
    client_of(given).register(given.subject(), text)
    with pytest.raises(OperatorError, match=reason) as refused:
        Registration(given.settings, given.topics).plan()
    assert refused.value.code == "registry_holds_other_schemas"
    assert given.subject() in refused.value.what


def test_apicurio_gives_the_content_id_which_its_own_deserializers_read(apicurio: str, topic_prefix: str) -> None:
    """Its other number, the global id, counts versions of artifacts: the same schema elsewhere has another one."""
    from urllib.request import urlopen

    client = RegistryClient(RegistrySettings(url=apicurio, timeout_s=20))
    ids = [client.register(f"{topic_prefix}.{name}-value", PRODUCT[0].text) for name in ("one", "two")]
    api = apicurio.replace("ccompat/v7", "registry/v3")
    versions = []
    for name in ("one", "two"):
        with urlopen(f"{api}/groups/default/artifacts/{topic_prefix}.{name}-value/versions/1") as answer:  # noqa: S310
            versions.append(json.load(answer))
    assert [version["contentId"] for version in versions] == ids
    assert ids[0] == ids[1]
    assert versions[0]["globalId"] != versions[1]["globalId"]


def test_apicurio_takes_other_spelling_and_documentation_for_the_same_schema(apicurio: str, topic_prefix: str) -> None:
    client = RegistryClient(RegistrySettings(url=apicurio, timeout_s=20))
    subject = f"{topic_prefix}-value"
    schema = json.loads(PRODUCT[0].text)
    number = client.register(subject, PRODUCT[0].text)
    for other in (
        json.dumps(schema, separators=(",", ":")),
        json.dumps(dict(reversed(list(schema.items())))),
        json.dumps({**schema, "doc": "otherwise"}),
    ):
        assert client.register(subject, other) == number


def _mock_cannot(given: Given, request: pytest.FixtureRequest) -> None:
    if given.kind == "mock":
        request.applymarker(pytest.mark.xfail(reason=MOCK_FORGETS, strict=True))


Failed = pytest.fail.Exception
