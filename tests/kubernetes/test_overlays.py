"""Every overlay and component builds, is what the API server takes, and obeys our rules."""

import functools
import json
import os
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubernetes_validate import utils

from deploy.k8s import secrets
from tests.kubernetes import crds
from tests.kubernetes.manifests import (
    COMPONENTS,
    EXTERNAL,
    K8S,
    OVERLAYS,
    ROOT,
    VARIATIONS,
    Manifests,
    Object,
    build,
    component,
    overlay,
    variation,
)
from tests.kubernetes.rules import RULES

VERSIONS = ("1.32", "1.37")  #: of Kubernetes: the oldest that we say, and the newest that the schemas are there for
GUIDE = (ROOT / "docs/guide/kubernetes.md").read_text()

# It reads a megabyte of JSON for every object otherwise.
utils.schema_contents = functools.cache(utils.schema_contents)


def rejected(objects: list[Object]) -> list[str]:
    """What an API server would say, for each thing it would not take."""
    return [reason for one in objects for reason in _rejected(json.dumps(one))]


@functools.cache
def _rejected(text: str) -> tuple[str, ...]:
    found = json.loads(text)
    name = f"{found['kind']} {found['metadata']['name']}"
    if (found["apiVersion"], found["kind"]) in crds.SHAPES:
        return tuple(crds.complaints(found) + rejected(_parts(found)))
    reasons = []
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(found, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            reasons.append(f"{name} ({version}): {'.'.join(map(str, error.path))}: {error.message}")
    return tuple(reasons)


def _parts(found: Object) -> list[Object]:
    """What an operator puts into objects of Kubernetes' own as it is."""
    metadata, spec = {"name": found["metadata"]["name"]}, found["spec"]
    if found["kind"] == "RabbitmqCluster":
        container = {"name": "rabbitmq", "image": spec["image"], "resources": spec["resources"]}
        pod: dict[str, Any] = {"affinity": spec["affinity"], "containers": [container]}
        return [{"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod}]
    if found["kind"] == "ScaledObject":
        behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        target = {"kind": "Deployment", **spec["scaleTargetRef"]}
        hpa = {"scaleTargetRef": target, "maxReplicas": spec["maxReplicaCount"], "behavior": behavior}
        return [{"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": metadata, "spec": hpa}]
    return []


def broken(manifests: Manifests) -> list[str]:
    return [f"{name}: {complaint}" for name, rule in RULES.items() for complaint in rule(manifests)]


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_is_accepted_and_obeys(name: str) -> None:
    found = overlay(name)

    assert rejected(found.objects) == []
    assert broken(found) == []


@pytest.mark.parametrize("name", VARIATIONS)
def test_what_may_be_added_fits(name: str, tmp_path: Path) -> None:
    """As the comments of the overlays and the guide say."""
    found = variation(name, tmp_path)

    assert rejected(found.objects) == []
    assert broken(found) == []


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_component_builds_by_itself(name: str) -> None:
    """Patches of what is not there are no errors, so that components may be combined."""
    assert rejected(component(name)) == []


def test_every_component_is_in_use() -> None:
    """In an overlay, or in a variation that is tested."""
    files = [yaml.safe_load((K8S / "overlays" / name / "kustomization.yaml").read_text()) for name in OVERLAYS]
    used = {Path(path).name for file in files for path in file.get("components", [])}

    assert used | {part for one in VARIATIONS.values() for part in one["components"]} == set(COMPONENTS)


def test_the_guide_lists_them() -> None:
    """And each Secret that somebody must make for servers elsewhere, with its keys."""
    first_cells = re.findall(r"^\| (`.+?) \|", GUIDE, re.MULTILINE)
    listed = {name for cell in first_cells for name in re.findall(r"`([a-z-]+)`", cell)}
    rows = {
        name: set(re.findall(r"`(FEDQ_\w+)`", keys))
        for name, keys in re.findall(r"^\| `(fedq-\w+)` \| (.+) \|$", GUIDE, re.MULTILINE)
    }

    assert {*OVERLAYS, *COMPONENTS} <= listed
    assert {name: keys - {"FEDQ_S3_REGION"} for name, keys in rows.items()} == {n: set(v) for n, v in EXTERNAL.items()}


def test_an_overlay_of_ones_own_is_as_the_guide_shows_it(tmp_path: Path) -> None:
    """With one's own registry for all that is fedq's, and for nothing else."""
    (shown,) = re.findall(r"```yaml\n# my-overlay/kustomization.yaml\n(.+?)```", GUIDE, re.DOTALL)
    (tmp_path / "kustomization.yaml").write_text(
        shown.replace("../deploy/k8s", os.path.relpath(K8S, tmp_path.resolve()))
    )
    found = Manifests(list(yaml.load_all(build(tmp_path), yaml.CSafeLoader)))

    ours = {one.container["image"] for one in found.ours}
    others = {one.container["image"] for one in found.workloads} - ours
    names = ("cli", "registry", "aggregator", "trainer-cpu", "trainer-cuda")
    assert ours == {f"registry.example.com/me/{name}:0.1.0" for name in names}  # as `make push` calls them
    assert not any("example.com" in image for image in others)


def test_the_overlays_are_the_five() -> None:
    assert OVERLAYS == ["external", "gpu", "keda", "local", "production"]


def test_an_overlay_is_what_its_name_says() -> None:
    """What nobody would miss by the rules: they speak of what is there."""
    local, gpu, keda, external, production = map(overlay, ("local", "gpu", "keda", "external", "production"))
    names = {one["metadata"]["name"] for one in local.kind("Deployment", "StatefulSet", "Job")}

    assert names == {"registry", "aggregator", "trainer-cpu", "setup", "rabbitmq", "redis", "minio"}
    assert local.kind("HorizontalPodAutoscaler", "ScaledObject") == []
    assert all(one.container["imagePullPolicy"] == "Never" for one in local.ours)
    assert {one["metadata"]["name"] for one in gpu.kind("HorizontalPodAutoscaler")} == {"trainer-cpu", "trainer-gpu"}
    assert [one["spec"]["minReplicaCount"] for one in keda.kind("ScaledObject")] == [0]
    assert external.kind("StatefulSet", "RabbitmqCluster") == []
    assert production.workload("Deployment", "aggregator").object["spec"]["replicas"] == 2
    (rabbitmq,) = production.kind("RabbitmqCluster")
    assert rabbitmq["spec"]["replicas"] == 3
    assert len(production.kind("NetworkPolicy")) == 9
    assert {one["metadata"]["name"] for one in production.kind("PodDisruptionBudget")} == {
        "aggregator",
        "registry",
        "trainers",
        "rabbitmq",
    }
    urls = {value.partition(":")[0] for one in production.ours for name, value in production.environment(one).items()
            if name in ("FEDQ_AMQP_URL", "FEDQ_REDIS_URL", "FEDQ_S3_URL", "FEDQ_RABBITMQ_URL")}  # fmt: skip
    assert urls == {"amqps", "rediss", "https"}


def test_the_metric_is_the_same_for_a_chart() -> None:
    """Whoever installs the adapter by Helm gives it the rules that ours has."""
    folder = K8S / "components/prometheus-adapter"
    ours = yaml.safe_load((folder / "config.yaml").read_text())["externalRules"]

    assert yaml.safe_load((folder / "helm-values.yaml").read_text())["rules"] == {"default": False, "external": ours}


def test_whoever_scrapes_asks_for_the_same() -> None:
    """Our Prometheus and an operator's: the queues, of the vhost that the rule speaks of."""
    jobs = yaml.safe_load((K8S / "components/prometheus/prometheus.yml").read_text())["scrape_configs"]
    (queues,) = [job for job in jobs if job.get("metrics_path") == "/metrics/detailed"]
    (monitor,) = [one for one in component("monitors") if one["kind"] == "PodMonitor"]
    (endpoint,) = [one for one in monitor["spec"]["podMetricsEndpoints"] if one["path"] == queues["metrics_path"]]

    assert queues["params"] == endpoint["params"]
    assert queues["params"]["vhost"] == ["fedq"]


def test_nothing_secret_is_in_the_manifests() -> None:
    for name in OVERLAYS:
        assert overlay(name).kind("Secret") == []


def test_passwords_are_random_and_agree() -> None:
    """Each is one at every place where it is told, and another the next time."""
    one, other = secrets.make(), secrets.make()
    password = one["fedq-rabbitmq"]["password"]

    assert f"operator:{password}@" in one["fedq-operator"]["FEDQ_AMQP_URL"]
    assert f"operator:{password}@" in one["fedq-keda"]["host"]
    assert f"default_pass = {password}\n" in one["fedq-rabbitmq"]["default_user.conf"]
    assert f":{one['fedq-redis']['password']}@" in one["fedq-operator"]["FEDQ_REDIS_URL"]
    trainer = one["fedq-setup"]
    assert f"trainer:{trainer['FEDQ_TRAINER_AMQP_PASSWORD']}@" in one["fedq-trainer"]["FEDQ_AMQP_URL"]
    assert trainer["FEDQ_TRAINER_S3_SECRET_KEY"] == one["fedq-trainer"]["FEDQ_S3_SECRET_KEY"]
    values = [
        {value for secret in each.values() for value in secret.values() if len(value) >= 32} for each in (one, other)
    ]
    assert values[0] & values[1] == set()


def test_a_wrong_field_is_rejected() -> None:
    """The API server's schemas are strict here, and so are ours of what operators add."""
    local, production, keda = overlay("local"), overlay("production"), overlay("keda")
    local.workload("Deployment", "registry").container["livenesProbe"] = {}
    (cluster,) = production.kind("RabbitmqCluster")
    cluster["spec"]["tls"]["secret"] = "rabbitmq-tls"
    cluster["spec"]["resources"]["limit"] = {}
    (scaled,) = keda.kind("ScaledObject")
    scaled["spec"]["triggers"][0]["metadata"]["value"] = 1
    scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]["policies"][0][
        "periodSecond"
    ] = 1
    (minio,) = [one for one in production.kind("Certificate") if one["metadata"]["name"] == "minio"]
    minio["spec"]["dnsName"] = ["minio"]

    found = "\n".join(rejected([*local.objects, *production.objects, *keda.objects]))

    for expected in ("livenesProbe", "'secret' was unexpected", "'limit' was unexpected", "1 is not of type 'string'",
                     "'periodSecond' was unexpected", "'dnsName' was unexpected"):  # fmt: skip
        assert expected in found, found
    assert found.count("livenesProbe") == len(VERSIONS)
