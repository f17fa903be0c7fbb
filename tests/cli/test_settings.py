"""Settings: who overrides whom, what is refused, and that nothing secret is shown."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kinguin_streams.cli.settings import ConfigurationError, load, shown
from tests.commands import run


@pytest.fixture(autouse=True)
def _nothing_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith("KINGUIN_"):
            monkeypatch.delenv(name)


def test_the_command_line_beats_the_environment_beats_a_named_file_beats_toml_beats_the_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert load().topics.prefix == "kinguin"
    (tmp_path / "kinguin-streams.toml").write_text('[topics]\nprefix = "toml"\npartitions = 3\n')
    assert load().topics.prefix == "toml"
    (tmp_path / "mounted").write_text("file\n")
    monkeypatch.setenv("KINGUIN_TOPICS__PREFIX_FILE", str(tmp_path / "mounted"))
    assert load().topics.prefix == "file"
    monkeypatch.delenv("KINGUIN_TOPICS__PREFIX_FILE")
    monkeypatch.setenv("KINGUIN_TOPICS__PREFIX", "environment")
    assert load().topics.prefix == "environment"
    settings = load(topics={"prefix": "argument"})
    assert (settings.topics.prefix, settings.topics.partitions) == ("argument", 3)


def test_the_state_follows_the_data_folder_unless_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINGUIN_LOCAL__DATA_DIR", "/somewhere")
    assert load().state.url == "sqlite:////somewhere/state.db"
    monkeypatch.setenv("KINGUIN_STATE__URL", "sqlite:///mine.db")
    assert load().state.url == "sqlite:///mine.db"


def test_row_65_all_faults_come_together_and_each_names_its_key() -> None:
    refused = run(
        {
            "KINGUIN_INGRESS__PORT": "0",
            "KINGUIN_INGRESS__SECRTS": "{}",
            "KINGUIN_KAFKA__CONFIG": "{not json",
            "KINGUIN_TOPIC__PREFIX": "x",
            "KINGUIN_SCHEMAS__WRITE": '{"product.update": 9}',
            "KINGUIN_STATE__URL_FILE": "/nowhere",
        },
        "config",
        "check",
    )
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert "Traceback" not in refused.stderr
    for key in (
        "KINGUIN_INGRESS__PORT",
        "KINGUIN_INGRESS__SECRTS",
        "KINGUIN_KAFKA__CONFIG",
        "KINGUIN_TOPIC__PREFIX",
        "KINGUIN_SCHEMAS__WRITE",
        "KINGUIN_STATE__URL_FILE",
    ):
        assert sum(key in line for line in refused.stderr.splitlines()) == 1, (key, refused.stderr)


@pytest.mark.parametrize(
    "secrets",
    [
        pytest.param("", id="nothing"),
        pytest.param("{}", id="no store"),
        pytest.param('{"default": []}', id="a store without a secret"),
        pytest.param('{"default": [""]}', id="an empty secret"),
        pytest.param('{"default": ["changeme"]}', id="a secret from an example"),
        pytest.param('{"default": ["two words"]}', id="a secret that a header cannot carry"),
        pytest.param('{"Default": ["x7Qw"]}', id="a store that cannot be in a path"),
        pytest.param("x7Qw", id="not JSON"),
    ],
)
def test_row_65_without_a_usable_secret_the_ingress_refuses_to_start(secrets: str) -> None:
    environment = {"KINGUIN_INGRESS__SECRETS": secrets, "KINGUIN_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1"}

    refused = run(environment, "ingress")

    assert refused.returncode == 2
    assert refused.stderr.startswith("configuration: KINGUIN_INGRESS__SECRETS")
    assert len(refused.stderr.splitlines()) == 1


SWAPPED = "9c0ffee9c0ffee9c0ffee9c0ffee"
"""A secret that may also be the name of a store."""


@pytest.mark.parametrize("in_folder", [False, True], ids=["no folder", "a folder besides"])
@pytest.mark.parametrize(
    ("secrets", "place"),
    [
        pytest.param({f"{SWAPPED}_X": ["default-x"]}, "store 1 of 1", id="no name of a store"),
        pytest.param({"shop-2": ["x7Qw"], SWAPPED: ["default"]}, "store 2 of 2", id="a name, and a word from examples"),
        pytest.param({SWAPPED: []}, "store 1 of 1", id="a name without a secret"),
        pytest.param({SWAPPED: [""]}, "store 1 of 1", id="a name with an empty secret"),
        pytest.param({SWAPPED: "default"}, "store 1 of 1", id="no list"),
        pytest.param({SWAPPED: 7}, "store 1 of 1", id="a number"),
        pytest.param({SWAPPED: [7]}, "store 1 of 1", id="a list of numbers"),
        pytest.param({SWAPPED: {"default": []}}, "store 1 of 1", id="a store inside"),
    ],
)
def test_row_62_a_secret_in_the_place_of_its_store_is_named_by_its_position_and_not_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, secrets: dict[str, object], place: str, in_folder: bool
) -> None:
    monkeypatch.setenv("KINGUIN_INGRESS__SECRETS", json.dumps(secrets))
    if in_folder:
        (tmp_path / "mounted").mkdir()
        monkeypatch.setenv("KINGUIN_INGRESS__SECRETS_DIR", str(tmp_path / "mounted"))

    with pytest.raises(ConfigurationError) as refused:
        load()

    (fault,) = refused.value.faults
    assert SWAPPED not in str(refused.value)
    assert fault.startswith("KINGUIN_INGRESS__SECRETS: ")
    assert place in fault


def test_row_65_bad_toml_is_named_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[topics\n")

    refused = run({}, "--config", "mine.toml", "config", "check")

    assert refused.returncode == 2
    assert "mine.toml" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("arguments", [("config", "show"), ("config", "show", "--json")])
def test_nothing_secret_is_ever_shown(arguments: tuple[str, ...]) -> None:
    shown_to_all = run(
        {
            "KINGUIN_INGRESS__SECRETS": '{"default": ["hidden-one"]}',
            "KINGUIN_KAFKA__CONFIG": '{"sasl.username": "me", "sasl.password": "hidden-two", "ssl.key.pem": "hidden-3"}',
            "KINGUIN_REGISTRY__USERNAME": "me",
            "KINGUIN_REGISTRY__PASSWORD": "hidden-four",
            "KINGUIN_REGISTRY__URL": "https://registry?api_key=hidden-five",
        },
        *arguments,
    )
    assert shown_to_all.returncode == 0
    assert "hidden" not in shown_to_all.stdout + shown_to_all.stderr
    assert "sasl.username" in shown_to_all.stdout


def test_a_mistake_in_the_toml_file_is_reported_as_one_and_what_overrides_it_as_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "kinguin-streams.toml").write_text(
        """
        topic = 1
        [topics]
        partitions = "many"
        prefixx = "x"
        [kafka.config]
        "linger.ms" = [1]
        [ingress]
        on_invalid = "explode"
        silence_s = -1
        [spool]
        max_bytes = 1
        """
    )
    environment = {"KINGUIN_INGRESS__ON_INVALID": "ignore", "KINGUIN_SPOOL__MAX_BYTES": "2"}

    refused = run({**environment, "KINGUIN_STATE__BUSY_TIMEOUT_S": "-1"}, "config", "check")

    assert refused.returncode == 2
    assert {line.removeprefix("configuration: ").rpartition(": ")[0] for line in refused.stderr.splitlines()} >= {
        "kinguin-streams.toml: [topics] partitions",
        "kinguin-streams.toml: [topics] prefixx",
        "kinguin-streams.toml: topic",
        "kinguin-streams.toml: [ingress] silence_s",
        "KINGUIN_INGRESS__ON_INVALID",
        "KINGUIN_SPOOL__MAX_BYTES",
        "KINGUIN_STATE__BUSY_TIMEOUT_S",
    }, refused.stderr
    assert "KINGUIN_TOPIC" not in refused.stderr


@pytest.mark.parametrize(
    ("toml", "environment", "said"),
    [
        ("", {"KINGUIN_INGRESS__PORT": "8081"}, "configuration: KINGUIN_INGRESS: PORT and ADMIN_PORT are both 8081"),
        (
            "[ingress]\nadmin_port = 8080\n",
            {},
            "configuration: kinguin-streams.toml: [ingress]: PORT and ADMIN_PORT are both 8080",
        ),
        (
            "[ingress]\nadmin_port = 9000\n",
            {"KINGUIN_INGRESS__PORT": "9000"},
            "configuration: KINGUIN_INGRESS and kinguin-streams.toml: [ingress]: PORT and ADMIN_PORT are both 9000",
        ),
    ],
)
def test_webhooks_and_probes_cannot_have_one_port(
    toml: str, environment: dict[str, str], said: str, tmp_path: Path
) -> None:
    (tmp_path / "kinguin-streams.toml").write_text(toml)
    refused = run(environment, "config", "check")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith(said)


@pytest.mark.parametrize(
    "url", ["mysql://me:hidden@db/state", "nonsense hidden", "sqlite:///:memory:", "sqlite:///a.db?hidden=1"]
)
def test_config_check_refuses_a_database_that_no_consumer_could_use(url: str) -> None:
    refused = run({"KINGUIN_STATE__URL": url}, "config", "check")
    assert (refused.returncode, refused.stdout) == (2, "")
    (line,) = refused.stderr.splitlines()
    assert line.startswith("configuration: KINGUIN_STATE__URL ")
    assert "hidden" not in line


def test_a_broken_toml_file_hides_no_other_fault(tmp_path: Path) -> None:
    (tmp_path / "kinguin-streams.toml").write_bytes(b'[topics]\nprefix = "\xff"\n')

    refused = run({"KINGUIN_INGRESS__PORT": "x"}, "config", "check")

    assert refused.returncode == 2
    toml, port = refused.stderr.splitlines()
    assert toml.startswith("configuration: kinguin-streams.toml: ")
    assert port.startswith("configuration: KINGUIN_INGRESS__PORT: ")


def test_who_misspells_a_setting_is_told_those_there_are() -> None:
    refused = run({"KINGUIN_SPOOL__DIR": "/spool", "KINGUIN_SPOL__PATH": "/spool"}, "config", "check")
    assert refused.returncode == 2
    room, key = refused.stderr.splitlines()
    assert room == "configuration: KINGUIN_SPOL__PATH: no such setting; `kinguin-streams config show` lists them all"
    assert key.startswith("configuration: KINGUIN_SPOOL__DIR: no such setting; [spool] has enabled, path, ")


@pytest.mark.parametrize("option", [("--config", "missing.toml"), ()])
def test_a_toml_file_that_was_named_must_be_there(option: tuple[str, ...]) -> None:
    refused = run({} if option else {"KINGUIN_CONFIG_FILE": "missing.toml"}, *option, "config", "check")
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert "KINGUIN_CONFIG_FILE or --config" in line
    assert "missing.toml: no such file" in line


def test_what_only_the_kafka_client_can_refuse_is_found_by_config_check() -> None:
    """librdkafka alone knows its keys: without this a mistyped one ends the next command."""
    environment = {"KINGUIN_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1", "KINGUIN_KAFKA__CONFIG": '{"lingr.ms": 5}'}
    refused = run(environment, "config", "check")
    assert refused.returncode == 1
    assert "lingr.ms" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert run({**environment, "KINGUIN_KAFKA__CONFIG": '{"linger.ms": 5}'}, "config", "check").returncode == 0


@pytest.mark.parametrize(
    "url",
    [
        "https://me:hidden@registry",
        "https://me:hid@hidden@registry/path",
        "https://registry?api_key=hidden&x=1",
        "https://registry/?x=1&sslPassword=hidden",
        "https://:hidden@registry",
    ],
)
def test_a_password_in_a_url_is_shown_in_no_form(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINGUIN_REGISTRY__URL", url)
    settings = load()
    assert settings.registry.url == url
    assert "hid" not in json.dumps(shown(settings))
    assert "registry" in shown(settings)["registry"]["url"]
    assert "hid" not in repr(settings)


def test_the_settings_value_itself_hides_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINGUIN_INGRESS__SECRETS", '{"default": ["hidden-one"]}')
    monkeypatch.setenv("KINGUIN_KAFKA__CONFIG", '{"sasl.password": "hidden-two"}')
    settings = load()
    assert "hidden" not in repr(settings)
    assert "hidden" not in json.dumps(shown(settings))


def test_a_faulty_value_is_not_repeated_if_it_may_be_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINGUIN_INGRESS__SECRETS", '{"default": ["hidden one"]}')
    with pytest.raises(ConfigurationError) as refused:
        load()
    assert "hidden" not in str(refused.value)


def test_help_is_quick_since_it_imports_nothing_heavy() -> None:
    code = (
        "import sys; from kinguin_streams.cli.main import run; run(['--help']); "
        "print([name for name in ('sqlalchemy', 'confluent_kafka', 'falcon', 'pydantic_settings', 'fastavro')"
        " if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.strip() == "[]"
