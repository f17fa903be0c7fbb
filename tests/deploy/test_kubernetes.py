"""deploy/kubernetes: valid to Kubernetes, usable by our settings, and safe where a default would not be."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from kinguin_streams.cli import running
from kinguin_streams.consumers import membership, relay, watch
from kinguin_streams.ingress.settings import IngressSettings, SpoolSettings
from kinguin_streams.telemetry import admin_server
from tests.commands import run
from tests.deploy.proxies import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((FOLDER / "kustomization.yaml").read_text("utf-8"))
FILES = sorted(set(FOLDER.glob("*.yaml")) - {FOLDER / "kustomization.yaml"})
OBJECTS: list[dict[str, Any]] = [found for file in FILES for found in yaml.safe_load_all(file.read_text("utf-8"))]
WORKLOADS = [found for found in OBJECTS if found["kind"] in ("StatefulSet", "Deployment", "Job")]
VALIDATOR = "kubernetes-validate==1.37.0"
KUBERNETES_VERSIONS = ("1.30", "1.37")


def one(kind: str, name: str) -> dict[str, Any]:
    """Return the spec of the only such object."""
    (found,) = [found for found in OBJECTS if (found["kind"], found["metadata"]["name"]) == (kind, name)]
    spec: dict[str, Any] = found["spec"]
    return spec


def name_of(workload: dict[str, Any]) -> str:
    return f"{workload['kind']} {workload['metadata']['name']}"


def pod(workload: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = workload["spec"]["template"]["spec"]
    return spec


def test_every_manifest_is_applied_except_the_one_that_is_filled_in_by_hand() -> None:
    assert {FOLDER / name for name in KUSTOMIZATION["resources"]} == set(FILES) - {FOLDER / "spool-drain.yaml"}


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_kubernetes_has_every_field_that_is_set(version: str) -> None:
    """Against the schemas that Kubernetes publishes; one that it does not know is an error, not a surprise."""
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not installed")
    validate = [uv, "tool", "run", "--quiet", "--from", VALIDATOR, "kubernetes-validate"]
    if subprocess.run([*validate, "--version"], capture_output=True, check=False, timeout=120).returncode:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI=true, and {VALIDATOR} cannot be had", pytrace=False)
        pytest.skip(f"{VALIDATOR} cannot be had")
    done = subprocess.run(
        [*validate, "--strict", "--no-warn", "-k", version, *FILES],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_kustomize_puts_them_together() -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run([kubectl, "kustomize", FOLDER], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    built = list(yaml.safe_load_all(done.stdout))
    assert len(built) == len(OBJECTS) - 1
    assert {found["metadata"].get("namespace", "kinguin-streams") for found in built} == {"kinguin-streams"}
    images = {
        container["image"]
        for found in built
        if "template" in found.get("spec", {})
        for container in pod(found)["containers"]
    }
    assert len(images) == 1
    assert re.fullmatch(r"kinguin-streams:\d+\.\d+\.\d+", *images)


@pytest.mark.parametrize("workload", WORKLOADS, ids=name_of)
def test_no_pod_has_a_right_that_it_does_not_need(workload: dict[str, Any]) -> None:
    spec = pod(workload)
    assert spec["automountServiceAccountToken"] is False
    security = spec["securityContext"]
    assert security["runAsNonRoot"] is True
    assert (security["runAsUser"], security["fsGroup"]) == (10001, 10001)
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in spec["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("workload", WORKLOADS, ids=name_of)
def test_no_service_can_set_one_of_our_settings(workload: dict[str, Any]) -> None:
    """Kubernetes makes variables of the names of Services; one named kinguin-… would be an unknown setting: exit 2."""
    assert pod(workload)["enableServiceLinks"] is False


@pytest.mark.parametrize("workload", WORKLOADS, ids=name_of)
def test_every_command_exists_and_its_settings_can_be_used(workload: dict[str, Any], tmp_path: Path) -> None:
    (config,) = [found for found in OBJECTS if found["kind"] == "ConfigMap"]
    (container,) = pod(workload)["containers"]
    environment = {**config["data"], **{one["name"]: one["value"] for one in container.get("env", ())}}
    if "KINGUIN_INGRESS__SECRETS_DIR" in environment:
        # As the kubelet mounts a Secret: links to a folder that it swaps.
        (tmp_path / "..data").mkdir()
        (tmp_path / "..data" / "default").write_text("a-secret-of-one's-own\n")
        (tmp_path / "default").symlink_to(tmp_path / "..data" / "default")
        environment["KINGUIN_INGRESS__SECRETS_DIR"] = str(tmp_path)
    assert all(isinstance(value, str) for value in environment.values())
    checked = run(environment, "config", "check")
    assert checked.returncode == 0, checked.stderr
    assert run({}, *container["args"], "--help").returncode == 0


@pytest.mark.parametrize("job", [found for found in WORKLOADS if found["kind"] == "Job"], ids=name_of)
def test_the_log_of_a_job_that_failed_can_still_be_read(job: dict[str, Any]) -> None:
    """A pod that restarts its container keeps one log before; one that the backoff limit ends is deleted with its log."""
    assert pod(job)["restartPolicy"] == "Never"


def test_claims_ask_for_what_every_kind_of_volume_has() -> None:
    claims = [found["spec"] for found in OBJECTS if found["kind"] == "PersistentVolumeClaim"]
    claims += [claim["spec"] for claim in one("StatefulSet", "ingress")["volumeClaimTemplates"]]
    assert [claim["accessModes"] for claim in claims] == [["ReadWriteOnce"]] * 3


# --- the ingress ---


def test_the_admin_port_is_not_among_the_webhooks() -> None:
    assert [port["targetPort"] for port in one("Service", "ingress")["ports"]] == ["webhooks"]
    policy = [found["spec"] for found in OBJECTS if found["kind"] == "NetworkPolicy"]
    assert {"podSelector": {}, "policyTypes": ["Ingress"]} in policy


@pytest.mark.parametrize("name", ["order-state", "product-changes"])
def test_a_consumer_has_the_time_that_it_may_take_to_stop_where_kafka_says_nothing(name: str) -> None:
    stop_s = membership.LEAVE_WAIT_S + admin_server.STOP_S + watch.STOP_S + relay.STOP_S + running.FLUSH_S
    assert one("Deployment", name)["template"]["spec"]["terminationGracePeriodSeconds"] > stop_s
    service = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"][name]
    assert int(service["stop_grace_period"].removesuffix("s")) > stop_s


def test_an_ingress_has_the_time_that_it_may_take_to_stop() -> None:
    spec = one("StatefulSet", "ingress")["template"]["spec"]
    (container,) = spec["containers"]
    settings = IngressSettings()
    pre_stop_s = float(*(env["value"] for env in container["env"] if env["name"] == "KINGUIN_INGRESS__PRE_STOP_S"))
    assert spec["terminationGracePeriodSeconds"] > pre_stop_s + settings.deadline_s + settings.stop_timeout_s
    probe = container["readinessProbe"]
    assert pre_stop_s > probe["periodSeconds"] * probe["failureThreshold"] + probe["timeoutSeconds"]


def test_probes_ask_the_admin_port_and_only_readiness_asks_for_more_than_life() -> None:
    (container,) = one("StatefulSet", "ingress")["template"]["spec"]["containers"]
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {"webhooks": 8080, "admin": 8081}
    assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "admin"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "admin"}


def test_the_spool_is_on_a_claim_that_outlives_the_pod_and_is_larger_than_the_spool_may_become() -> None:
    stateful = one("StatefulSet", "ingress")
    (claim,) = stateful["volumeClaimTemplates"]
    (container,) = stateful["template"]["spec"]["containers"]
    assert {"name": claim["metadata"]["name"], "mountPath": "/var/lib/kinguin-streams"} in container["volumeMounts"]
    size = claim["spec"]["resources"]["requests"]["storage"]
    assert int(size.removesuffix("Gi")) * 2**30 > SpoolSettings().max_bytes
    assert stateful["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    assert {"name": "KINGUIN_SPOOL__REQUIRE_DURABLE", "value": "true"} in container["env"]


def test_an_eviction_takes_one_ingress_at_a_time() -> None:
    budget = one("PodDisruptionBudget", "ingress")
    assert budget["maxUnavailable"] == 1
    assert budget["selector"] == one("StatefulSet", "ingress")["selector"]
    assert one("StatefulSet", "ingress")["replicas"] > 1


def test_secrets_are_mounted_as_a_folder_so_that_a_change_is_seen() -> None:
    (container,) = one("StatefulSet", "ingress")["template"]["spec"]["containers"]
    (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == "secrets"]
    assert "subPath" not in mount
    assert mount["mountPath"] in [env["value"] for env in container["env"]]


# --- the others ---


@pytest.mark.parametrize("name", ["order-state", "product-changes"])
def test_two_processes_never_write_one_database(name: str) -> None:
    spec = one("Deployment", name)
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    claims = [
        volume["persistentVolumeClaim"]["claimName"]
        for volume in spec["template"]["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    ]
    assert claims == [name]


@pytest.mark.parametrize("name", ["order-state", "product-changes"])
def test_a_consumer_is_probed_on_its_own_admin_port(name: str) -> None:
    template = one("Deployment", name)["template"]
    (container,) = template["spec"]["containers"]
    environment = {env["name"]: env["value"] for env in container["env"]}
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {
        "admin": int(environment["KINGUIN_CONSUMER__ADMIN_PORT"])
    }
    assert (
        container["startupProbe"]["httpGet"]
        == container["livenessProbe"]["httpGet"]
        == {"path": "/livez", "port": "admin"}
    )
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "admin"}
    service = one("Service", "consumers-admin")
    assert service["selector"].items() <= template["metadata"]["labels"].items()
    assert one("NetworkPolicy", "consumers")["podSelector"]["matchLabels"] == service["selector"]


def test_a_volume_without_a_pod_is_drained_where_an_ingress_would_have_looked() -> None:
    stateful = one("StatefulSet", "ingress")
    (ingress,) = stateful["template"]["spec"]["containers"]
    job = one("Job", "spool-drain")["template"]["spec"]
    (container,) = job["containers"]
    (claim,) = [volume for volume in job["volumes"] if "persistentVolumeClaim" in volume]
    assert re.fullmatch(r"spool-ingress-\d", claim["persistentVolumeClaim"]["claimName"])
    where = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}[claim["name"]]
    assert where == {mount["name"]: mount["mountPath"] for mount in ingress["volumeMounts"]}["spool"]
