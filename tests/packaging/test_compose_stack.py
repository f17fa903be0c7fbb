"""docker-compose.yml, the Dockerfile and deploy/, as far as they can be checked without a container engine.

The rest is deploy/smoke.sh, which runs the stack.
"""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from kinguin_streams.cluster.kafka_jars import KAFKA_VERSION
from kinguin_streams.ingress.settings import IngressSettings
from tests.conftest import IMAGE

ROOT = Path(__file__).parents[2]
COMPOSE_FILE = ROOT / "docker-compose.yml"
COMPOSE = COMPOSE_FILE.read_text("utf-8")
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
GIT = shutil.which("git") or "git"
DOCKER = shutil.which("docker")
PROGRAM = Path(sys.executable).with_name("kinguin-streams")
ROOMS = {path.name for path in (ROOT / "kinguin_streams").iterdir() if path.is_symlink()}


def settings_check(secrets_file: Path) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KINGUIN_")}
    return subprocess.run(
        [PROGRAM, "config", "check"],
        env={**environment, "KINGUIN_INGRESS__SECRETS_FILE": str(secrets_file)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_compose_and_the_tests_run_the_kafka_that_up_starts() -> None:
    assert re.findall(r"image: (apache/kafka:\S+)", COMPOSE) == [f"apache/kafka:{KAFKA_VERSION}"]
    assert f"apache/kafka:{KAFKA_VERSION}" == IMAGE


def test_every_image_of_another_has_a_fixed_version() -> None:
    foreign = [image for image in re.findall(r"^\s+image: (\S+)", COMPOSE, re.MULTILINE) if not image.startswith("${")]
    assert len(foreign) == 6
    # HAProxy's branches with long support and PostgreSQL's majors get nothing but fixes, and one wants those.
    assert all(
        re.fullmatch(r"[a-z/-]+:v?\d+\.\d+\.\d+|haproxy:\d+\.\d*[02468]|postgres:\d+", image) for image in foreign
    )


def test_no_port_is_published_beyond_this_machine() -> None:
    published = re.findall(r'"([^"]*[\d}]:\d+)"', COMPOSE)
    assert len(published) == 6
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_the_image_is_built_from_every_room() -> None:
    copied = set(re.findall(r"^COPY (\w+) \1$", DOCKERFILE, re.MULTILINE))
    let_through = {
        line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")
    }
    assert copied == ROOMS | {"kinguin_streams"}
    assert copied <= let_through


def test_the_image_has_every_extra_but_the_local_broker_and_what_tests_need() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert set(re.findall(r"--extra (\w+)", DOCKERFILE)) == extras.keys() - {"local", "testing"}


def test_the_image_and_ci_build_with_the_same_uv() -> None:
    found = {version for text in (DOCKERFILE, (ROOT / ".ci" / "run").read_text("utf-8")) for version in uv_pins(text)}
    assert len(found) == 1


def uv_pins(text: str) -> list[str]:
    return re.findall(r"\buv==(\S+)", text)


def test_the_secret_of_the_example_is_refused() -> None:
    done = settings_check(ROOT / "deploy" / "secrets" / "ingress.example.json")
    assert done.returncode == 2
    assert "from an example" in done.stderr
    assert "change-me" not in done.stdout + done.stderr


def test_a_new_secret_is_accepted_readable_by_the_container_and_never_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "secrets" / "ingress.json"
    command = [ROOT / "deploy" / "new-secret", file]
    made = subprocess.run(command, capture_output=True, text=True, check=True, umask=0o077)
    secret = made.stdout.strip()
    assert json.loads(file.read_text()) == {"default": [secret]}
    assert len(bytes.fromhex(secret)) == 32
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert settings_check(file).returncode == 0

    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert json.loads(file.read_text()) == {"default": [secret]}


def test_a_new_secret_in_a_folder_that_others_may_enter_is_its_owners_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    made = subprocess.run(
        [ROOT / "deploy" / "new-secret", tmp_path / "ours.json"], capture_output=True, text=True, check=True, umask=0
    )
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours.json", "state-url")] == [0o600, 0o600]
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
    assert "chown 10001" in made.stderr


def test_the_password_of_the_database_is_random_and_never_overwritten(tmp_path: Path) -> None:
    """Its volume keeps the first one: another in the file would lock the consumers out."""
    (tmp_path / "one").mkdir(0o700)
    (tmp_path / "two").mkdir(0o700)
    urls = [new_state_url(tmp_path / "one"), new_state_url(tmp_path / "one"), new_state_url(tmp_path / "two")]
    assert urls[0] == urls[1] != urls[2]
    found = re.fullmatch(r"postgresql\+psycopg://(\w+):([0-9a-f]{64})@postgres:5432/(\w+)\n", urls[0])
    assert found is not None
    database = yaml.safe_load(COMPOSE)["services"]["postgres"]
    assert (found[1], found[3]) == (database["environment"]["POSTGRES_USER"], database["environment"]["POSTGRES_DB"])


def test_postgresql_gets_the_password_out_of_the_consumers_url(tmp_path: Path) -> None:
    (tmp_path / "state-url").write_text("postgresql+psycopg://kinguin_streams:0123abcd@postgres:5432/kinguin_streams\n")
    database = yaml.safe_load(COMPOSE)["services"]["postgres"]
    command = [part.replace("$$", "$").replace("/run/secrets", str(tmp_path)) for part in database["entrypoint"]]
    program = tmp_path / "docker-entrypoint.sh"
    program.write_text('#!/bin/sh\necho "$POSTGRES_PASSWORD $*"\n')
    program.chmod(0o755)
    said = subprocess.run(
        [*command, *database["command"]],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == "0123abcd -c max_connections=100\n"


def new_state_url(folder: Path) -> str:
    subprocess.run([ROOT / "deploy" / "new-secret", folder / "ingress.json"], capture_output=True, check=False)
    return (folder / "state-url").read_text()


def test_git_would_not_take_a_secret() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    ignored = subprocess.run([GIT, "check-ignore", "--quiet", "deploy/secrets/ingress.json"], cwd=ROOT, check=False)
    example = subprocess.run(
        [GIT, "check-ignore", "--quiet", "deploy/secrets/ingress.example.json"], cwd=ROOT, check=False
    )
    assert (ignored.returncode, example.returncode) == (0, 1)


def compose_config(folder: Path, *files: Path, **environment: str) -> dict[str, Any]:
    """Return the services as compose understands them."""
    if DOCKER is None:
        pytest.skip("docker is not installed")
    if subprocess.run([DOCKER, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker has no compose plugin")
    chosen = [part for file in (COMPOSE_FILE, *files) for part in ("--file", file)]
    ours = {name: value for name, value in os.environ.items() if not name.startswith("KINGUIN_")}
    done = subprocess.run(
        [DOCKER, "compose", *chosen, "--profile", "*", "config", "--format", "json"],
        env={**ours, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    services: dict[str, Any] = json.loads(done.stdout)["services"]
    return services


def test_a_cluster_and_a_registry_of_ones_own_take_the_place_of_ours(tmp_path: Path) -> None:
    (block,) = re.findall(
        r"^```yaml\n(.*?)^```", (ROOT / "deploy" / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    file = tmp_path / "own-kafka.yml"
    file.write_text(block, "utf-8")
    own = {
        "KINGUIN_KAFKA__BOOTSTRAP_SERVERS": "broker-1:9093",
        "KINGUIN_KAFKA__CONFIG": '{"security.protocol": "SSL"}',
        "KINGUIN_REGISTRY__URL": "https://registry.example",
    }
    services = compose_config(tmp_path, file, **own)
    assert not {"kafka", "registry"} & services.keys()
    for name in ("topics", "schemas", "ingress-1", "ingress-2", "order-state", "product-changes"):
        assert own.items() <= services[name]["environment"].items(), name
        assert not {"kafka", "registry"} & services[name].get("depends_on", {}).keys(), name


def test_compose_takes_the_file_and_every_setting_in_it_exists(tmp_path: Path) -> None:
    services = compose_config(tmp_path)
    ours = {"topics", "schemas", "ingress-1", "ingress-2", "order-state", "product-changes"}
    assert services.keys() == ours | {"kafka", "registry", "postgres", "haproxy", "prometheus", "grafana"}
    assert {name for name, service in services.items() if "profiles" in service} == {"prometheus", "grafana"}
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert int(service["mem_limit"]) > 0, name
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}, name
        if name not in ours:
            continue
        assert service["read_only"] is True, name
        environment = {key: value for key, value in service["environment"].items() if not key.endswith("_FILE")}
        checked = subprocess.run(
            [PROGRAM, "config", "check"],
            env={"PATH": os.environ["PATH"], **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert checked.returncode == 0, (name, checked.stderr)


def test_two_ingresses_share_no_spool_and_no_webhook_port_goes_round_the_proxy() -> None:
    services = yaml.safe_load(COMPOSE)["services"]
    ingresses = [services["ingress-1"], services["ingress-2"]]
    assert [one["volumes"] for one in ingresses] == [
        ["spool-1:/var/lib/kinguin-streams"],
        ["spool-2:/var/lib/kinguin-streams"],
    ]
    assert all(one["environment"]["KINGUIN_SPOOL__REQUIRE_DURABLE"] == "true" for one in ingresses)
    assert all(port.endswith(":8081") for one in ingresses for port in one["ports"])
    assert [port.rpartition(":")[2] for port in services["haproxy"]["ports"]] == ["8080"]


def test_an_ingress_has_the_time_that_it_may_take_to_stop_and_haproxy_the_time_to_notice() -> None:
    ingress = yaml.safe_load(COMPOSE)["services"]["ingress-1"]
    settings = IngressSettings()
    pre_stop_s = ingress["environment"]["KINGUIN_INGRESS__PRE_STOP_S"]
    grace_s = int(ingress["stop_grace_period"].removesuffix("s"))
    assert grace_s > pre_stop_s + settings.deadline_s + settings.stop_timeout_s
    haproxy = (ROOT / "deploy" / "haproxy" / "haproxy.cfg").read_text("utf-8")
    inter_s, fall = map(int, re.findall(r"check inter (\d+)s fall (\d+)", haproxy)[0])
    (check_s,) = map(int, re.findall(r"timeout check (\d+)s", haproxy))
    assert pre_stop_s > inter_s * fall + check_s


def test_consumers_are_probed_and_scraped_on_the_admin_port_that_they_are_given() -> None:
    services = yaml.safe_load(COMPOSE)["services"]
    jobs = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text("utf-8"))["scrape_configs"]
    (discovery,) = next(job["dns_sd_configs"] for job in jobs if job["job_name"] == "consumers")
    assert discovery["names"] == ["order-state", "product-changes"]
    for name in discovery["names"]:
        assert services[name]["environment"]["KINGUIN_CONSUMER__ADMIN_PORT"] == discovery["port"]
        assert f"'127.0.0.1', {discovery['port']}" in services[name]["healthcheck"]["test"][-1]
        assert "ports" not in services[name]
    assert "KINGUIN_CONSUMER__ADMIN_HOST=0.0.0.0" in DOCKERFILE


def test_the_image_spools_on_its_volume_and_refuses_to_spool_without_one() -> None:
    assert "KINGUIN_SPOOL__PATH=/var/lib/kinguin-streams/spool" in DOCKERFILE
    assert "KINGUIN_SPOOL__REQUIRE_DURABLE=true" in DOCKERFILE


def test_changelog_speaks_of_the_version_that_is_built() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")
