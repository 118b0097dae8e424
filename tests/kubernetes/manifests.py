"""What deploy/k8s comes to: its overlays as kubectl builds them, and questions about what is in them."""

import copy
import functools
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from deploy.k8s import secrets
from deploy.native import kubectl

ROOT = Path(__file__).parents[2]
K8S = ROOT / "deploy/k8s"
OVERLAYS = sorted(folder.name for folder in (K8S / "overlays").iterdir())
COMPONENTS = sorted(folder.name for folder in (K8S / "components").iterdir())
WORKLOADS = ("Deployment", "StatefulSet", "Job")
OURS = ("setup", "registry", "aggregator", "trainer")  #: components whose containers run fedq

Object = dict[str, Any]

#: What docs/guide/kubernetes.md asks of whoever runs the servers elsewhere, with values as they may be.
EXTERNAL = {
    "fedq-operator": {
        "FEDQ_AMQP_URL": "amqps://operator:secret@mq.example.com/fedq",
        "FEDQ_RABBITMQ_URL": "https://mq.example.com",
        "FEDQ_REDIS_URL": "rediss://:secret@redis.example.com:6379/0",
        "FEDQ_S3_URL": "https://s3.example.com",
        "FEDQ_S3_BUCKET": "hospital-models",
        "FEDQ_S3_ACCESS_KEY": "operator",
        "FEDQ_S3_SECRET_KEY": "secret",
    },
    "fedq-trainer": {
        "FEDQ_AMQP_URL": "amqps://trainer:secret@mq.example.com/fedq",
        "FEDQ_S3_URL": "https://s3.example.com",
        "FEDQ_S3_BUCKET": "hospital-models",
        "FEDQ_S3_ACCESS_KEY": "trainer",
        "FEDQ_S3_SECRET_KEY": "secret",
    },
    "fedq-setup": {
        "FEDQ_TRAINER_AMQP_PASSWORD": "secret",
        "FEDQ_TRAINER_S3_ACCESS_KEY": "trainer",
        "FEDQ_TRAINER_S3_SECRET_KEY": "secret",
    },
}

#: The overlays with what their comments and the guide say may be added.
VARIATIONS: dict[str, dict[str, Any]] = {
    "autoscaled on one machine": {
        "resources": ["base"],
        "components": ["rabbitmq", "redis", "minio", "prometheus", "prometheus-adapter"],
    },
    "GPUs in turns": {"resources": ["overlays/gpu"], "components": ["gpu-time-slicing"]},
    "slices of GPUs": {"resources": ["overlays/gpu"], "components": ["gpu-mig"]},
    "GPUs scaled by KEDA": {"resources": ["overlays/keda"], "components": ["trainer-gpu", "keda-gpu"]},
    "data on a volume": {"resources": ["overlays/gpu"], "components": ["data"]},
    "small and closed": {"resources": ["overlays/local"], "components": ["network-policies"]},
    "KEDA and TLS": {"resources": ["base"], "components": ["rabbitmq-cluster", "redis", "minio", "keda", "tls"]},
    "GPUs in production": {"resources": ["overlays/production"], "components": ["trainer-gpu"]},
}


@dataclass(frozen=True)
class Workload:
    """A Deployment, StatefulSet or Job."""

    object: Object

    @property
    def name(self) -> str:
        return f"{self.object['kind']} {self.object['metadata']['name']}"

    @property
    def labels(self) -> dict[str, str]:
        """Of its pods."""
        found: dict[str, str] = self.object["spec"]["template"]["metadata"]["labels"]
        return found

    @property
    def component(self) -> str:
        return self.labels["app.kubernetes.io/component"]

    @property
    def pod(self) -> dict[str, Any]:
        found: dict[str, Any] = self.object["spec"]["template"]["spec"]
        return found

    @property
    def container(self) -> dict[str, Any]:
        """The only one: a second would need rules of its own."""
        (only,) = self.pod["containers"]
        found: dict[str, Any] = only
        return found

    @property
    def ports(self) -> dict[str, int]:
        return {port["name"]: port["containerPort"] for port in self.container.get("ports", [])}

    @property
    def claims(self) -> list[Object]:
        return list(self.object["spec"].get("volumeClaimTemplates", []))


@dataclass
class Manifests:
    """All that one `kubectl apply -k` creates, and the Secrets that it counts on."""

    objects: list[Object]
    promised: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # Secret → key → a value as it may be

    def kind(self, *kinds: str) -> list[Object]:
        return [one for one in self.objects if one["kind"] in kinds]

    def find(self, kind: str, name: str) -> Object | None:
        return next((one for one in self.kind(kind) if one["metadata"]["name"] == name), None)

    def workload(self, kind: str, name: str) -> Workload:
        found = self.find(kind, name)
        assert found is not None, f"there is no {kind} {name}"
        return Workload(found)

    @property
    def workloads(self) -> list[Workload]:
        return [Workload(one) for one in self.kind(*WORKLOADS)]

    @property
    def ours(self) -> list[Workload]:
        return [one for one in self.workloads if one.component in OURS]

    @property
    def trainers(self) -> list[Workload]:
        return [one for one in self.workloads if one.component == "trainer"]

    @property
    def pods(self) -> Iterator[tuple[dict[str, str], dict[str, int]]]:
        """Labels and ports of every pod, those of RabbitMQ's cluster operator included."""
        for one in self.workloads:
            yield one.labels, one.ports
        for cluster in self.kind("RabbitmqCluster"):
            name = cluster["metadata"]["name"]
            labels = {"app.kubernetes.io/name": name, "app.kubernetes.io/component": "rabbitmq"}
            yield labels | {"app.kubernetes.io/part-of": "rabbitmq"}, cluster_ports(cluster)

    def service_ports(self, name: str) -> set[int]:
        """Where a Service answers; none where there is no such Service."""
        if cluster := self.find("RabbitmqCluster", name):
            return set(cluster_ports(cluster).values())
        found = self.find("Service", name)
        return {port["port"] for port in found["spec"]["ports"]} if found else set()

    def secrets(self) -> dict[str, dict[str, str]]:
        """Every Secret's keys: those that are promised, and those that cert-manager makes."""
        found = {name: dict(values) for name, values in self.promised.items()}
        for one in self.kind("Certificate"):
            found[one["spec"]["secretName"]] = dict.fromkeys(("tls.crt", "tls.key", "ca.crt"), "")
        return found

    def environment(self, workload: Workload) -> dict[str, str]:
        """What a container's process is told: from ConfigMaps and Secrets, then what is given to it alone."""
        found: dict[str, str] = {}
        for source in workload.container.get("envFrom", []):
            if "configMapRef" in source:
                config = self.find("ConfigMap", source["configMapRef"]["name"]) or {"data": {}}
                found |= config["data"]
            else:
                found |= self.secrets().get(source["secretRef"]["name"], {})
        for variable in workload.container.get("env", []):
            if "value" in variable:
                found[variable["name"]] = variable["value"]
            else:
                reference = variable["valueFrom"]["secretKeyRef"]
                found[variable["name"]] = self.secrets().get(reference["name"], {}).get(reference["key"], "")
        return found


def cluster_ports(cluster: Object) -> dict[str, int]:
    """The ports that RabbitMQ's cluster operator gives its nodes and its Service."""
    if cluster["spec"].get("tls", {}).get("disableNonTLSListeners"):
        return {"amqps": 5671, "management-tls": 15671, "prometheus-tls": 15691}
    return {"amqp": 5672, "management": 15672, "prometheus": 15692}


def selects(wanted: dict[str, str], labels: dict[str, str]) -> bool:
    return wanted.items() <= labels.items()


def quantity(text: object) -> float:
    """Kubernetes' numbers: 250m, 2, 1Gi."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(m|[KMGT]i|)", str(text))
    assert match, f"{text} is no quantity"
    powers = {"": 1.0, "m": 1e-3} | {f"{letter}i": 1024.0**n for n, letter in enumerate("KMGT", 1)}
    return float(match[1]) * powers[match[2]]


def overlay(name: str) -> Manifests:
    """An overlay with the Secrets that it counts on; a copy, to be changed at will."""
    promised = copy.deepcopy(EXTERNAL) if name == "external" else secrets.make(tls=name == "production")
    return Manifests(copy.deepcopy(_objects(K8S / "overlays" / name)), promised)


def variation(name: str, folder: Path) -> Manifests:
    """An overlay with more components, as somebody may write it into `folder`."""
    wanted = VARIATIONS[name]
    layers = [f"../{os.path.relpath(K8S / layer, folder.resolve().parent)}" for layer in wanted["resources"]]
    parts = [
        f"../{os.path.relpath(K8S / 'components' / part, folder.resolve().parent)}" for part in wanted["components"]
    ]
    (folder / "kustomization.yaml").write_text(yaml.safe_dump({"resources": layers, "components": parts}))
    tls = "overlays/production" in wanted["resources"] or "tls" in wanted["components"]
    return Manifests(list(yaml.load_all(build(folder), yaml.CSafeLoader)), secrets.make(tls=tls))


def component(name: str) -> list[Object]:
    """What a component adds, by itself."""
    return copy.deepcopy(_objects(K8S / "components" / name))


@functools.cache
def _objects(folder: Path) -> list[Object]:
    return [one for one in yaml.load_all(build(folder), yaml.CSafeLoader) if one is not None]


def build(folder: Path) -> str:
    """What `kubectl kustomize` prints."""
    done = subprocess.run([kubectl.find(), "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr.lower(), done.stderr
    return done.stdout
