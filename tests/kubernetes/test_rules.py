"""Each rule finds the mistake it is there for: planted in an overlay that has none."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.kubernetes.manifests import Manifests, overlay
from tests.kubernetes.rules import RULES

Break = Callable[[Manifests], Any]


@dataclass(frozen=True)
class Mistake:
    rule: str
    overlay: str
    plant: Break
    says: str  # a part of the complaint

    def __str__(self) -> str:
        return f"{self.rule}: {self.says}"


def pod(kind: str, name: str, change: Callable[[dict[str, Any]], Any]) -> Break:
    return lambda manifests: change(manifests.workload(kind, name).pod)


def container(name: str, change: Callable[[dict[str, Any]], Any], kind: str = "Deployment") -> Break:
    return lambda manifests: change(manifests.workload(kind, name).container)


def thing(kind: str, name: str, change: Callable[[dict[str, Any]], Any]) -> Break:
    def plant(manifests: Manifests) -> None:
        found = manifests.find(kind, name)
        assert found is not None
        change(found)

    return plant


def without(kind: str, name: str) -> Break:
    return lambda manifests: manifests.objects.remove(manifests.find(kind, name))  # type: ignore[arg-type]


def variable(name: str, value: str) -> Callable[[dict[str, Any]], Any]:
    """Gives a container a variable, or another value."""

    def change(found: dict[str, Any]) -> None:
        found["env"] = [one for one in found.get("env", []) if one["name"] != name] + [{"name": name, "value": value}]

    return change


def secret(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda found: found["envFrom"].append({"secretRef": {"name": name}})


def put(path: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    """Sets what lies at a path of keys and indices, with spaces between."""
    *steps, last = (int(step) if step.isdecimal() else step for step in path.split())

    def change(found: Any) -> None:
        for step in steps:
            found = found[step]
        found[last] = value

    return change


def drop(path: str) -> Callable[[dict[str, Any]], Any]:
    *steps, last = (int(step) if step.isdecimal() else step for step in path.split())

    def change(found: Any) -> None:
        for step in steps:
            found = found[step]
        del found[last]

    return change


TASKS = "spec triggers 0 metadata"
MISTAKES = [
    Mistake("resources_are_bounded", "local", container("registry", drop("resources limits memory")), "memory has no"),
    Mistake(
        "resources_are_bounded",
        "local",
        container("redis", put("resources requests cpu", "2"), "StatefulSet"),
        "more cpu",
    ),
    Mistake("containers_are_probed", "local", container("minio", drop("livenessProbe"), "StatefulSet"), "no liveness"),
    Mistake(
        "containers_are_probed",
        "gpu",
        container("trainer-gpu", put("livenessProbe exec command", ["celery", "inspect", "ping"])),
        "its liveness probe is not the file's",
    ),
    Mistake(
        "containers_are_probed",
        "local",
        container("registry", put("readinessProbe", {"httpGet": {"path": "/healthz", "port": "http"}})),
        "its readiness probe is not the file's",
    ),
    Mistake(
        "containers_are_probed",
        "local",
        container("trainer-cpu", put("startupProbe failureThreshold", 9)),
        "two minutes",
    ),
    Mistake(
        "containers_are_probed", "local", container("registry", put("livenessProbe periodSeconds", 5)), "killed within"
    ),
    Mistake("nobody_has_rights", "local", pod("Job", "setup", drop("securityContext runAsNonRoot")), "runAsNonRoot"),
    Mistake(
        "nobody_has_rights", "local", pod("Deployment", "registry", put("securityContext runAsUser", 0)), "runAsUser"
    ),
    Mistake(
        "nobody_has_rights", "local", pod("Deployment", "registry", drop("securityContext seccompProfile")), "seccomp"
    ),
    Mistake("nobody_has_rights", "local", container("registry", drop("securityContext capabilities")), "capabilities"),
    Mistake(
        "nobody_has_rights",
        "local",
        container("rabbitmq", put("securityContext readOnlyRootFilesystem", False), "StatefulSet"),
        "readOnlyRootFilesystem",
    ),
    Mistake(
        "nobody_has_rights",
        "gpu",
        container("trainer-gpu", drop("securityContext allowPrivilegeEscalation")),
        "allowPrivilege",
    ),
    Mistake(
        "nobody_has_rights", "keda", pod("Deployment", "aggregator", drop("automountServiceAccountToken")), "token"
    ),
    Mistake("nobody_has_rights", "keda", pod("StatefulSet", "redis", drop("enableServiceLinks")), "every Service"),
    Mistake(
        "nobody_has_rights",
        "production",
        thing("Namespace", "fedq", put("metadata labels", {"app.kubernetes.io/name": "fedq"})),
        "Namespace fedq: is not restricted",
    ),
    Mistake(
        "images_are_pinned", "local", container("redis", put("image", "redis:latest"), "StatefulSet"), "redis:latest"
    ),
    Mistake(
        "images_are_pinned", "local", container("redis", put("image", "host:5000/redis"), "StatefulSet"), "any version"
    ),
    Mistake(
        "images_are_pinned", "external", container("registry", put("image", "fedq/registry:0.0.9")), "this version"
    ),
    Mistake(
        "images_are_pinned", "external", container("registry", put("image", "fedq/web:0.1.0")), "makes no fedq/web"
    ),
    Mistake(
        "images_are_pinned",
        "production",
        thing("RabbitmqCluster", "rabbitmq", put("spec image", "rabbitmq")),
        "any version",
    ),
    Mistake(
        "volumes_are_mounted",
        "local",
        container("minio", put("volumeMounts 0 name", "disk"), "StatefulSet"),
        "volume data is",
    ),
    Mistake(
        "volumes_are_mounted",
        "local",
        container("trainer-cpu", put("volumeMounts 0 mountPath", "/data")),
        "mounted twice",
    ),
    Mistake(
        "volumes_are_mounted", "local", container("registry", put("volumeMounts 0 mountPath", "/scratch")), "its probes"
    ),
    Mistake(
        "volumes_are_mounted",
        "local",
        pod("Deployment", "registry", lambda found: found["volumes"].append({"name": "more", "emptyDir": {}})),
        "volume more has no limit",
    ),
    Mistake("trainers_have_room", "local", container("trainer-cpu", variable("FEDQ_CACHE_MB", "5120")), "does not fit"),
    Mistake(
        "trainers_have_room",
        "gpu",
        container("trainer-gpu", put("resources limits ephemeral-storage", "1Gi")),
        "than its disk",
    ),
    Mistake(
        "trainers_have_room", "gpu", container("trainer-gpu", put("resources limits memory", "3Gi")), "more than half"
    ),
    Mistake(
        "trainers_may_finish", "gpu", container("trainer-gpu", variable("FEDQ_GRACE_S", "3595")), "FEDQ_GRACE_S is over"
    ),
    Mistake(
        "trainers_may_finish",
        "local",
        pod("Deployment", "trainer-cpu", drop("terminationGracePeriodSeconds")),
        "is over",
    ),
    Mistake(
        "trainers_may_finish",
        "keda",
        lambda found: found.trainers[0].object["spec"]["template"]["metadata"].pop("annotations"),
        "Karpenter may disrupt it",
    ),
    Mistake(
        "trainers_may_finish",
        "keda",
        lambda found: found.trainers[0].object["spec"]["template"]["metadata"].pop("annotations"),
        "the cluster autoscaler may evict it",
    ),
    Mistake(
        "trainers_may_finish",
        "gpu",
        thing("Deployment", "trainer-gpu", put("spec strategy rollingUpdate maxSurge", 1)),
        "wait for ever for a GPU",
    ),
    Mistake(
        "services_hand_over",
        "local",
        thing("Deployment", "aggregator", put("spec strategy rollingUpdate maxUnavailable", 1)),
        "leaves fewer",
    ),
    Mistake(
        "services_hand_over",
        "local",
        pod("Deployment", "aggregator", put("terminationGracePeriodSeconds", 20)),
        "hands its",
    ),
    Mistake(
        "gpu_trainers_differ_by_settings_alone",
        "gpu",
        container("trainer-gpu", put("command", ["python", "train_on_gpu.py"])),
        "containers/trainer/command",
    ),
    Mistake(
        "gpu_trainers_differ_by_settings_alone",
        "gpu",
        container("trainer-gpu", drop("resources limits nvidia.com/gpu")),
        "asks for no GPU",
    ),
    Mistake(
        "gpu_trainers_differ_by_settings_alone",
        "gpu",
        pod("Deployment", "trainer-gpu", drop("tolerations")),
        "onto nodes",
    ),
    Mistake("everything_is_labelled", "local", thing("Service", "redis", drop("metadata labels")), "is not labelled"),
    Mistake(
        "everything_is_labelled", "local", thing("Service", "redis", put("metadata namespace", "default")), "default"
    ),
    Mistake("everything_is_labelled", "gpu", container("trainer-gpu", put("args 1", "cpu")), "its arguments"),
    Mistake("everything_is_labelled", "gpu", container("trainer-gpu", put("args 3", "2")), "its arguments"),
    Mistake(
        "everything_is_labelled", "gpu", thing("Deployment", "trainer-gpu", put("metadata name", "gpus")), "looks for"
    ),
    Mistake(
        "everything_is_labelled",
        "local",
        thing("Deployment", "registry", put("metadata labels app.kubernetes.io/component", "web")),
        "other labels",
    ),
    Mistake(
        "selectors_match",
        "gpu",
        thing(
            "Deployment", "trainer-cpu", put("spec selector matchLabels", {"app.kubernetes.io/component": "trainer"})
        ),
        "selects the pods of ['Deployment trainer-cpu', 'Deployment trainer-gpu']",
    ),
    Mistake(
        "selectors_match",
        "gpu",
        thing("Deployment", "registry", put("spec selector matchLabels", {"a": "b"})),
        "nobody",
    ),
    Mistake(
        "selectors_match",
        "gpu",
        pod("Deployment", "trainer-gpu", put("topologySpreadConstraints 0 labelSelector matchLabels fedq/pool", "cpu")),
        "spread by the pods of others",
    ),
    Mistake(
        "services_lead_somewhere",
        "local",
        thing("Service", "minio", put("spec selector", {"app": "minio"})),
        "selects nothing",
    ),
    Mistake(
        "services_lead_somewhere",
        "local",
        thing("Service", "minio", put("spec ports 0 targetPort", "http")),
        "port http",
    ),
    Mistake(
        "services_lead_somewhere", "local", thing("Service", "minio", put("spec ports 0 port", 9002)), "another one"
    ),
    Mistake("services_lead_somewhere", "local", without("Service", "rabbitmq-nodes"), "has no Service rabbitmq-nodes"),
    Mistake(
        "services_lead_somewhere",
        "local",
        lambda found: found.objects.append(
            {"kind": "APIService", "metadata": {"name": "x"}, "spec": {"service": {"name": "adapter", "port": 443}}}
        ),
        "APIService x: its Service does not listen",
    ),
    Mistake(
        "monitors_find_their_ports",
        "production",
        thing("PodMonitor", "rabbitmq", put("spec podMetricsEndpoints 0 port", "prometheus")),
        "no port prometheus",
    ),
    Mistake(
        "monitors_find_their_ports",
        "production",
        thing("ServiceMonitor", "registry", put("spec endpoints 0 port", "metrics")),
        "no port metrics",
    ),
    Mistake(
        "budgets_protect_somebody",
        "production",
        thing("PodDisruptionBudget", "rabbitmq", put("spec selector matchLabels", {"app": "rabbitmq"})),
        "protects nothing",
    ),
    Mistake(
        "budgets_protect_somebody",
        "production",
        thing("Deployment", "aggregator", put("spec replicas", 1)),
        "lets Deployment aggregator never go",
    ),
    Mistake("references_are_there", "local", without("ServiceAccount", "fedq"), "nobody makes the ServiceAccount fedq"),
    Mistake("references_are_there", "local", without("ConfigMap", "fedq"), "nobody makes the ConfigMap fedq"),
    Mistake(
        "references_are_there",
        "local",
        container("registry", put("env 1 valueFrom secretKeyRef key", "URL")),
        "has no URL",
    ),
    Mistake(
        "references_are_there", "local", container("setup", secret("fedq-mine"), "Job"), "makes the Secret fedq-mine"
    ),
    Mistake(
        "references_are_there",
        "local",
        container("rabbitmq", put("volumeMounts 0 subPath", "30-fedq.conf"), "StatefulSet"),
        "has no 30-fedq.conf",
    ),
    Mistake("references_are_there", "production", without("Certificate", "minio"), "the Secret minio-tls"),
    Mistake("references_are_there", "production", without("Certificate", "rabbitmq"), "the Secret rabbitmq-tls"),
    Mistake("references_are_there", "production", without("Certificate", "fedq-ca"), "the Secret fedq-ca"),
    Mistake("references_are_there", "production", without("Issuer", "fedq-ca"), "nobody makes the Issuer fedq-ca"),
    Mistake(
        "references_are_there",
        "keda",
        without("TriggerAuthentication", "rabbitmq"),
        "nobody makes the TriggerAuthentication",
    ),
    Mistake(
        "references_are_there",
        "keda",
        thing("TriggerAuthentication", "rabbitmq", put("spec secretTargetRef 0 key", "url")),
        "the Secret fedq-keda has no url",
    ),
    Mistake(
        "references_are_there",
        "local",
        lambda found: found.objects.append(
            {
                "kind": "RoleBinding",
                "metadata": {"name": "x"},
                "subjects": [{"kind": "ServiceAccount", "name": "adapter"}],
            }
        ),
        "nobody makes the ServiceAccount adapter",
    ),
    Mistake(
        "references_are_there",
        "local",
        pod(
            "Deployment",
            "trainer-cpu",
            lambda found: found["volumes"].append({"name": "d", "persistentVolumeClaim": {"claimName": "data"}}),
        ),
        "nobody makes the PersistentVolumeClaim data",
    ),
    Mistake(
        "objects_have_names_of_their_own",
        "production",
        thing("Certificate", "redis", put("spec secretName", "minio-tls")),
        "Secret minio-tls",
    ),
    Mistake("services_have_their_settings", "local", container("registry", drop("env 2")), "FEDQ_REDIS_URL is not set"),
    Mistake(
        "services_have_their_settings",
        "local",
        container("setup", drop("envFrom 2"), "Job"),
        "FEDQ_TRAINER_AMQP_PASSWORD",
    ),
    Mistake(
        "services_have_their_settings",
        "external",
        lambda found: found.promised["fedq-trainer"].pop("FEDQ_S3_URL"),  # type: ignore[attr-defined]
        "Deployment trainer-cpu: FEDQ_S3_URL is not set",
    ),
    Mistake(
        "services_have_their_settings",
        "local",
        container("aggregator", variable("FEDQ_MAX_JOB", "2")),
        "nobody reads FEDQ_MAX_JOB",
    ),
    Mistake(
        "services_have_their_settings", "local", container("aggregator", variable("FEDQ_LEASE_S", "1h")), "FEDQ_LEASE_S"
    ),
    Mistake(
        "services_have_their_settings", "local", container("aggregator", variable("LEASE", "1")), "LEASE is no setting"
    ),
    Mistake(
        "trainers_hold_little",
        "local",
        container("trainer-cpu", variable("FEDQ_REDIS_URL", "redis://redis")),
        "FEDQ_REDIS_URL",
    ),
    Mistake(
        "trainers_hold_little",
        "local",
        container("trainer-cpu", secret("fedq-operator")),
        "given the Secret fedq-operator",
    ),
    Mistake(
        "trainers_hold_little",
        "local",
        container("trainer-cpu", variable("FEDQ_AMQP_URL", "amqp://operator:x@rabbitmq/fedq")),
        "is the user operator",
    ),
    Mistake(
        "addresses_lead_to_services",
        "local",
        thing("ConfigMap", "fedq", put("data FEDQ_S3_URL", "http://s3:9000")),
        "port 9000 of s3, where nothing listens",
    ),
    Mistake(
        "addresses_lead_to_services",
        "production",
        thing("ConfigMap", "fedq", put("data FEDQ_RABBITMQ_URL", "http://rabbitmq:15672")),
        "port 15672 of rabbitmq",
    ),
    Mistake(
        "addresses_lead_to_services",
        "production",
        thing("Certificate", "redis", put("spec dnsNames", ["redis"])),
        "no certificate has the names redis and localhost",
    ),
    Mistake(
        "addresses_lead_to_services", "production", thing("ConfigMap", "fedq", drop("data SSL_CERT_FILE")), "has no CA"
    ),
    Mistake(
        "rabbitmq_is_configured_alike",
        "production",
        thing("RabbitmqCluster", "rabbitmq", put("spec rabbitmq additionalConfig", "consumer_timeout = 1800000\n")),
        "consumer_timeout is not 14400000",
    ),
    Mistake(
        "rabbitmq_is_configured_alike",
        "local",
        lambda found: next(c for c in found.kind("ConfigMap") if "20-fedq.conf" in c["data"])["data"].update(
            {"20-fedq.conf": ""}
        ),
        "max_message_size",
    ),
    Mistake(
        "scalers_have_a_target",
        "gpu",
        thing("HorizontalPodAutoscaler", "trainer-cpu", put("spec scaleTargetRef name", "trainer")),
        "no Deployment trainer",
    ),
    Mistake(
        "scalers_have_a_target",
        "gpu",
        thing("HorizontalPodAutoscaler", "trainer-cpu", put("spec scaleTargetRef name", "trainer-gpu")),
        "trainer-gpu: is scaled by two",
    ),
    Mistake(
        "scalers_have_a_target",
        "gpu",
        thing("HorizontalPodAutoscaler", "trainer-cpu", put("spec scaleTargetRef name", "trainer-gpu")),
        "scales another pool",
    ),
    Mistake("scalers_have_a_target", "keda", thing("Deployment", "trainer-cpu", put("spec replicas", 2)), "would undo"),
    Mistake(
        "scalers_have_a_target",
        "gpu",
        thing("HorizontalPodAutoscaler", "trainer-gpu", put("spec minReplicas", 0)),
        "go to none",
    ),
    Mistake(
        "scalers_have_a_target", "keda", thing("ScaledObject", "trainer-cpu", put("spec maxReplicaCount", 0)), "no room"
    ),
    Mistake(
        "scalers_are_slow_to_go_down",
        "production",
        thing("HorizontalPodAutoscaler", "trainer-cpu", put("spec behavior scaleDown stabilizationWindowSeconds", 60)),
        "its behaviour is another",
    ),
    Mistake(
        "scalers_are_slow_to_go_down",
        "keda",
        thing("ScaledObject", "trainer-cpu", put("spec cooldownPeriod", 30)),
        "to none",
    ),
    Mistake(
        "scalers_count_tasks",
        "gpu",
        thing(
            "HorizontalPodAutoscaler",
            "trainer-gpu",
            put("spec metrics 0 external metric selector matchLabels pool", "cpu"),
        ),
        "the tasks of another pool",
    ),
    Mistake(
        "scalers_count_tasks",
        "gpu",
        thing("HorizontalPodAutoscaler", "trainer-gpu", put("spec metrics 0 external metric name", "queue_depth")),
        "the adapter knows no queue_depth",
    ),
    Mistake(
        "scalers_count_tasks",
        "gpu",
        thing("HorizontalPodAutoscaler", "trainer-gpu", put("spec metrics 0 external metric name", "fedq_waiting")),
        "is not of the queue trainer.tasks.gpu",
    ),
    Mistake(
        "scalers_count_tasks",
        "gpu",
        thing("HorizontalPodAutoscaler", "trainer-gpu", put("spec metrics 0 external target averageValue", "2")),
        "counts for one task",
    ),
    Mistake(
        "scalers_count_tasks",
        "keda",
        thing("ScaledObject", "trainer-cpu", put(f"{TASKS} protocol", "amqp")),
        "does not count",
    ),
    Mistake(
        "scalers_count_tasks",
        "keda",
        thing("ScaledObject", "trainer-cpu", put(f"{TASKS} queueName", "tasks")),
        "does not count",
    ),
    Mistake(
        "scalers_count_tasks",
        "keda",
        thing("ScaledObject", "trainer-cpu", put("spec triggers 1 metadata valueLocation", '#(detail%"nobody*")#|#')),
        "in other words",
    ),
    Mistake(
        "policies_allow_what_is_needed", "production", without("NetworkPolicy", "default-deny"), "nothing is closed"
    ),
    Mistake(
        "policies_allow_what_is_needed", "production", without("NetworkPolicy", "trainer"), "trainer cannot reach minio"
    ),
    Mistake("policies_allow_what_is_needed", "production", without("NetworkPolicy", "dns"), "* cannot reach kube-dns"),
    Mistake(
        "policies_allow_what_is_needed",
        "production",
        thing(
            "NetworkPolicy",
            "redis",
            lambda found: found["spec"]["ingress"][0]["from"].append(
                {"podSelector": {"matchLabels": {"app.kubernetes.io/component": "trainer"}}}
            ),
        ),
        "trainer may reach redis at 6379 and need not (in)",
    ),
    Mistake(
        "policies_allow_what_is_needed",
        "production",
        thing("NetworkPolicy", "trainer", put("spec egress 0 ports 0 port", 5672)),
        "trainer cannot reach rabbitmq at 5671 (out)",
    ),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=str)
def test_a_mistake_is_found(mistake: Mistake) -> None:
    manifests, rule = overlay(mistake.overlay), RULES[mistake.rule]
    assert list(rule(manifests)) == []

    mistake.plant(manifests)

    found = list(rule(manifests))
    assert any(mistake.says in complaint for complaint in found), found


def test_every_rule_can_be_broken() -> None:
    assert {mistake.rule for mistake in MISTAKES} == set(RULES)
