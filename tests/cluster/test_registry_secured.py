"""A registry behind TLS and a log-in, with a real Apicurio behind that: the client shows what it was given, and checks whom it talks to."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kinguin_streams.cluster.registry import RegistryIds
from kinguin_streams.cluster.registry_steps import Registration
from kinguin_streams.cluster.settings import RegistrySettings
from kinguin_streams.schemas.topics import topics
from kinguin_streams.schemas.versions import RECORD_NAMES, shipped
from kinguin_streams.telemetry.operator_error import OperatorError
from tests.commands import run
from tests.registries import Certificates, Front, make_certificates, running

EVERY_VERSION = sum(len(shipped().versions(record)) for record in RECORD_NAMES)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def front(apicurio: str, certificates: Certificates) -> Iterator[Front]:
    """https://127.0.0.1:…, with a certificate that only the test's own authority has signed."""
    server = Front(apicurio)
    with running(server, certificates):
        yield server


def registered(settings: RegistrySettings, prefix: str) -> int:
    """Register everything through the settings' way to the registry, and read it back; return how many versions."""
    registration = Registration(settings, topics(prefix))
    ids = {registration.register(step): step.schema for step in registration.plan().versions}
    reader = RegistryIds(settings, topics(prefix))
    assert {schema_id: reader.schema_of(schema_id) for schema_id in ids} == ids
    return len(ids)


def test_basic_authentication_over_tls_with_an_authority_of_ones_own(
    front: Front, certificates: Certificates, topic_prefix: str
) -> None:
    front.expect_basic("writer", "p:ss wörd")
    settings = RegistrySettings(
        url=front.url, username="writer", password="p:ss wörd", ca_file=certificates.ca, timeout_s=20  # type: ignore[arg-type]
    )  # fmt: skip
    assert registered(settings, topic_prefix) == EVERY_VERSION
    assert front.authorization == {front.wanted_authorization}


def test_a_bearer_token_over_tls(front: Front, certificates: Certificates, topic_prefix: str) -> None:
    front.wanted_authorization = "Bearer ey.Jh.bGci"
    settings = RegistrySettings(url=front.url, bearer_token="ey.Jh.bGci", ca_file=certificates.ca, timeout_s=20)  # type: ignore[arg-type]
    assert registered(settings, topic_prefix) == EVERY_VERSION
    assert front.authorization == {"Bearer ey.Jh.bGci"}


def test_a_client_certificate(apicurio: str, certificates: Certificates, topic_prefix: str) -> None:
    server = Front(apicurio)
    with running(server, certificates, ask_for_client=True):
        ca_only = RegistrySettings(url=server.url, ca_file=certificates.ca, timeout_s=20)
        with pytest.raises(OperatorError) as refused:
            Registration(ca_only, topics(topic_prefix)).plan()
        assert refused.value.code == "registry_away"
        assert not server.asked
        known = ca_only.model_copy(update={"cert_file": certificates.client, "key_file": certificates.client_key})
        assert registered(known, topic_prefix) == EVERY_VERSION


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        pytest.param({"bearer_token": "wrong"}, False, id="a wrong token"),
        pytest.param({"username": "writer", "password": "wrong"}, False, id="a wrong password"),
        pytest.param({}, False, id="nothing"),
    ],
)
def test_who_is_not_let_in_is_told_so_and_not_what_was_sent(
    front: Front, certificates: Certificates, topic_prefix: str, given: dict[str, str], asked: bool
) -> None:
    front.wanted_authorization = "Bearer right"
    settings = RegistrySettings(url=front.url, ca_file=certificates.ca, timeout_s=20, **given)  # type: ignore[arg-type]
    with pytest.raises(OperatorError, match="401") as refused:
        Registration(settings, topics(topic_prefix)).plan()
    assert refused.value.code == "registry_away"
    assert "credentials" in refused.value.hint
    assert "wrong" not in refused.value.what
    assert not front.asked


def test_a_registry_whose_certificate_nobody_vouches_for_gets_no_password(front: Front, topic_prefix: str) -> None:
    settings = RegistrySettings(url=front.url, username="writer", password="hidden", timeout_s=20)  # type: ignore[arg-type]
    with pytest.raises(OperatorError, match="CERTIFICATE_VERIFY_FAILED"):
        Registration(settings, topics(topic_prefix)).plan()
    assert front.authorization == set()


def test_the_command_takes_it_all_from_the_environment_and_mounted_files(
    front: Front, certificates: Certificates, topic_prefix: str, tmp_path: Path
) -> None:
    front.wanted_authorization = "Bearer from-a-file"
    (tmp_path / "token").write_text("from-a-file\n")
    environment = {
        "KINGUIN_REGISTRY__URL": front.url,
        "KINGUIN_REGISTRY__CA_FILE": str(certificates.ca),
        "KINGUIN_REGISTRY__BEARER_TOKEN_FILE": str(tmp_path / "token"),
        "KINGUIN_REGISTRY__TIMEOUT_S": "20",
        "KINGUIN_TOPICS__PREFIX": topic_prefix,
    }
    done = run(environment, "schemas", "register")
    assert done.returncode == 0, done.stderr
    assert "from-a-file" not in done.stdout + done.stderr
