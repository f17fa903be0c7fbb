"""What is set for a registry is whole and free of contradictions, or nothing starts."""

import subprocess
from pathlib import Path

import pytest

from tests.commands import run
from tests.registries import Certificates, make_certificates


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.mark.parametrize(
    ("given", "named"),
    [
        pytest.param({"URL": "registry:8081"}, ["URL"], id="a URL without a scheme"),
        pytest.param({"URL": "http://one:8081,two:8081"}, ["URL"], id="nor in a list"),
        pytest.param({"URL": ""}, ["URL"], id="an empty URL"),
        pytest.param({"URL": "http://"}, ["URL"], id="a URL without a host"),
        pytest.param({"URL": "http://[::1"}, ["URL"], id="half an address"),
        pytest.param({"URL": "http://one:port"}, ["URL"], id="a port that is no number"),
        pytest.param({"URL": "http://me:hid/hidden@one:8081"}, ["URL"], id="a password with a slash"),
        pytest.param({"URL": "http://me:1/hidden@one:8081"}, ["URL"], id="a password with a slash behind a number"),
        pytest.param({"URL": "http://me:hid?hidden@one"}, ["URL"], id="a password with a question mark"),
        pytest.param({"URL": "http://me:1#hidden@one"}, ["URL"], id="a password with a hash"),
        pytest.param({"URL": "http://me:hid hidden@one"}, ["URL"], id="a password with a blank"),
        pytest.param({"URL": "http://me:hid,hidden@one"}, ["URL"], id="a password with a comma"),
        pytest.param({"URL": "http://one,http://me:hid/hidden@two"}, ["URL"], id="the second URL's password"),
        pytest.param({"URL": "http://me:hidden@one,http://you:hidden@two"}, ["URL"], id="two users"),
        pytest.param({"USERNAME": "me"}, ["USERNAME", "PASSWORD"], id="a user without a password"),
        pytest.param({"PASSWORD": "hidden"}, ["PASSWORD", "USERNAME"], id="a password without a user"),
        pytest.param({"USERNAME": "a:b", "PASSWORD": "hidden"}, ["USERNAME"], id="a user with a colon"),
        pytest.param(
            {"USERNAME": "me", "PASSWORD": "hidden", "BEARER_TOKEN": "hidden"},
            ["BEARER_TOKEN", "USERNAME"],
            id="basic and bearer",
        ),
        pytest.param(
            {"URL": "http://me:hidden@one", "USERNAME": "me", "PASSWORD": "hidden"}, ["URL"], id="a user in two places"
        ),
        pytest.param({"URL": "http://me:hidden@one", "BEARER_TOKEN": "hidden"}, ["URL"], id="a user and a token"),
        pytest.param({"BEARER_TOKEN": "hidden two"}, ["BEARER_TOKEN"], id="a token that fits no header"),
        pytest.param({"CA_FILE": "/nowhere/ca.pem"}, ["CA_FILE"], id="no such CA file"),
        pytest.param({"CA_FILE": __file__}, ["CA_FILE"], id="a CA file without a certificate"),
        pytest.param({"CERT_FILE": "/nowhere/me.pem"}, ["CERT_FILE"], id="no such certificate"),
        pytest.param({"KEY_FILE": __file__}, ["KEY_FILE", "CERT_FILE"], id="a key without a certificate"),
        pytest.param({"TIMEOUT_S": "0"}, ["TIMEOUT_S"], id="no time at all"),
    ],
)
def test_row_65_a_registry_that_is_set_wrongly_is_refused_with_its_key(given: dict[str, str], named: list[str]) -> None:
    refused = run({f"KINGUIN_REGISTRY__{key}": value for key, value in given.items()}, "config", "check")
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    for key in named:
        assert f"KINGUIN_REGISTRY__{key}" in refused.stderr
    assert "hidden" not in refused.stderr


def test_a_key_that_does_not_go_with_its_certificate_is_refused(certificates: Certificates, tmp_path: Path) -> None:
    locked = tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "pkey", "-in", certificates.client_key, "-aes128", "-passout", "pass:hidden", "-out", locked],  # noqa: S607
        check=True,
    )
    for key in (certificates.server_key, locked, None):
        given = {"KINGUIN_REGISTRY__CERT_FILE": str(certificates.client)}
        if key is not None:
            given["KINGUIN_REGISTRY__KEY_FILE"] = str(key)
        refused = run(given, "config", "check")
        assert refused.returncode == 2
        assert "KINGUIN_REGISTRY__CERT_FILE" in refused.stderr


def test_files_of_certificates_are_paths_and_secrets_may_come_from_mounted_files(
    certificates: Certificates, tmp_path: Path
) -> None:
    """KINGUIN_…_FILE reads a setting from a file; what is a file by its own name is left alone."""
    (tmp_path / "password").write_text("hidden\n")
    given = {
        "KINGUIN_REGISTRY__URL": "https://registry",
        "KINGUIN_REGISTRY__USERNAME": "me",
        "KINGUIN_REGISTRY__PASSWORD_FILE": str(tmp_path / "password"),
        "KINGUIN_REGISTRY__CA_FILE": str(certificates.ca),
        "KINGUIN_REGISTRY__CERT_FILE": str(certificates.client),
        "KINGUIN_REGISTRY__KEY_FILE": str(certificates.client_key),
        "KINGUIN_REGISTRY__CACHE_FILE": str(tmp_path / "ids.json"),
    }
    shown = run(given, "config", "show")
    assert shown.returncode == 0, shown.stderr
    assert f"KINGUIN_REGISTRY__CA_FILE={certificates.ca}\n" in shown.stdout
    assert f"KINGUIN_REGISTRY__CACHE_FILE={tmp_path / 'ids.json'}\n" in shown.stdout
    assert "KINGUIN_REGISTRY__PASSWORD=****" in shown.stdout
    assert "hidden" not in shown.stdout + shown.stderr


def test_ids_are_kept_in_the_data_folder_unless_said_otherwise() -> None:
    shown = run({"KINGUIN_LOCAL__DATA_DIR": "/srv/data"}, "config", "show")
    assert "KINGUIN_REGISTRY__CACHE_FILE=/srv/data/registry-ids.json\n" in shown.stdout
