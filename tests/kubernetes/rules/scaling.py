"""What says how many trainers there are; docs/adr/0023 says why so."""

import re
from collections import Counter

import yaml

from services.aggregator.selection.cohort import lacking
from shared import names
from tests.kubernetes.manifests import K8S, Manifests
from tests.kubernetes.rules.rule import POOL, Complaints, rule
from tests.unit.test_job_spec import spec


@rule
def scalers_have_a_target(manifests: Manifests) -> Complaints:
    """Each scales one Deployment, which leaves its number to it; nobody else does."""
    targets = Counter[str]()
    for one in manifests.kind("HorizontalPodAutoscaler", "ScaledObject"):
        name, spec = f"{one['kind']} {one['metadata']['name']}", one["spec"]
        wanted = spec["scaleTargetRef"]["name"]
        targets[wanted] += 1
        target = manifests.find("Deployment", wanted)
        if target is None:
            yield f"{name}: there is no Deployment {wanted}"
        elif "replicas" in target["spec"]:
            yield f"{name}: every `kubectl apply` would undo what it did, for {wanted} states its replicas"
        elif target["metadata"]["labels"].get(POOL) != one["metadata"]["labels"].get(POOL):
            yield f"{name}: scales another pool"
        least = spec.get("minReplicas", spec.get("minReplicaCount"))
        if one["kind"] == "HorizontalPodAutoscaler" and not least:
            yield f"{name}: may go to none, and nothing would wake the first one"
        if spec.get("maxReplicas", spec.get("maxReplicaCount")) <= (least or 0):
            yield f"{name}: has no room to scale"
    for wanted in (name for name, times in targets.items() if times > 1):
        yield f"Deployment {wanted}: is scaled by two"


@rule
def scalers_are_slow_to_go_down(manifests: Manifests) -> Complaints:
    """The same for the HPA and for KEDA's: docs/adr/0023 says why."""
    wanted = {
        "scaleUp": {"stabilizationWindowSeconds": 0, "policies": [{"type": "Pods", "value": 4, "periodSeconds": 30}]},
        "scaleDown": {
            "stabilizationWindowSeconds": 600,
            "policies": [{"type": "Pods", "value": 1, "periodSeconds": 120}],
        },
    }
    for one in manifests.kind("HorizontalPodAutoscaler", "ScaledObject"):
        spec = one["spec"]
        found = spec.get("behavior") or spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        if found != wanted:
            yield f"{one['kind']} {one['metadata']['name']}: its behaviour is another"
        if spec.get("cooldownPeriod", 600) != 600:
            yield f"ScaledObject {one['metadata']['name']}: goes to none at another pace"


@rule
def scalers_count_tasks(manifests: Manifests) -> Complaints:
    """One pod for each task of the pool, waiting or being trained; the adapter's rule knows the metric by that name."""
    rules = yaml.safe_load((K8S / "components/prometheus-adapter/config.yaml").read_text())["externalRules"]
    queries = {rule["name"]["as"]: rule["metricsQuery"] for rule in rules}
    for one in manifests.kind("HorizontalPodAutoscaler"):
        name, pool = f"HorizontalPodAutoscaler {one['metadata']['name']}", one["metadata"]["labels"].get(POOL)
        (metric,) = one["spec"]["metrics"]
        asked = metric["external"]["metric"]
        if asked["selector"]["matchLabels"] != {"pool": pool}:
            yield f"{name}: counts the tasks of another pool"
        if asked["name"] not in queries:
            yield f"{name}: the adapter knows no {asked['name']}"
        elif f'queue="{names.tasks_queue("<<.LabelValuesByName.pool>>")}"' not in queries[asked["name"]]:
            yield f"{name}: {asked['name']} is not of the queue {names.tasks_queue(str(pool))}"
        if metric["external"]["target"] != {"type": "AverageValue", "averageValue": "1"}:
            yield f"{name}: a pod has one slot, and so counts for one task"
    for one in manifests.kind("ScaledObject"):
        name, pool = f"ScaledObject {one['metadata']['name']}", one["metadata"]["labels"][POOL]
        tasks, waiting = (trigger["metadata"] for trigger in one["spec"]["triggers"])
        wanted = {
            "protocol": "http",  # AMQP does not tell of tasks that are being trained
            "vhostName": "fedq",
            "queueName": names.tasks_queue(pool),
            "mode": "QueueLength",
            "value": "1",
            "excludeUnacknowledged": "false",
        }
        if tasks != wanted:
            yield f"{name}: does not count the tasks of {pool} that wait or are being trained"
        said = re.search(r'#\(detail%"(.+)\*"\)', waiting["valueLocation"])
        if said is None or not lacking(spec(pool=pool), {}).startswith(said[1]):
            yield f"{name}: a job without a trainer of {pool} says it in other words"
