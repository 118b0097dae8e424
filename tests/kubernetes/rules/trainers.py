"""What trainers are beside that: with room and time for their work, and the same on a GPU."""

import re
from collections.abc import Iterator
from typing import Any

from services.aggregator.__main__ import GRACE
from services.trainer.__main__ import CLOSING, HEED, LEAVE
from tests.kubernetes.manifests import Manifests, quantity
from tests.kubernetes.rules.rule import Complaints, rule


@rule
def trainers_have_room(manifests: Manifests) -> Complaints:
    """The cache fits its volume, the volumes the disk and the memory that the pod may use."""
    for one in manifests.trainers:
        empty = {v["name"]: v["emptyDir"] for v in one.pod["volumes"] if "emptyDir" in v}
        cache = float(manifests.environment(one).get("FEDQ_CACHE_MB", "4096")) * 2**20
        if cache >= quantity(empty["cache"]["sizeLimit"]):
            yield f"{one.name}: FEDQ_CACHE_MB does not fit its volume"
        limits = one.container["resources"]["limits"]
        disk = sum(quantity(volume["sizeLimit"]) for volume in empty.values() if volume.get("medium") != "Memory")
        memory = sum(quantity(volume["sizeLimit"]) for volume in empty.values() if volume.get("medium") == "Memory")
        if disk > quantity(limits["ephemeral-storage"]):
            yield f"{one.name}: its volumes may hold more than its disk"
        if memory > quantity(limits["memory"]) / 2:
            yield f"{one.name}: /dev/shm may take more than half of its memory"


@rule
def trainers_may_finish(manifests: Manifests) -> Complaints:
    """Their grace, and what they may take after it, is less than the pod's; nobody evicts them for tidiness."""
    for one in manifests.trainers:
        grace = float(manifests.environment(one).get("FEDQ_GRACE_S", "25")) + HEED + LEAVE + CLOSING
        if grace >= one.pod.get("terminationGracePeriodSeconds", 30):
            yield f"{one.name}: is killed before FEDQ_GRACE_S is over"
        annotations = one.object["spec"]["template"]["metadata"].get("annotations", {})
        if annotations.get("cluster-autoscaler.kubernetes.io/safe-to-evict") != "false":
            yield f"{one.name}: the cluster autoscaler may evict it"
        if annotations.get("karpenter.sh/do-not-disrupt") != "true":
            yield f"{one.name}: Karpenter may disrupt it"
        update = one.object["spec"]["strategy"]["rollingUpdate"]
        if update["maxSurge"] != 0:
            yield f"{one.name}: an update may wait for ever for a GPU that the old ones hold"


@rule
def services_hand_over(manifests: Manifests) -> Complaints:
    """Their successors are there first, and they have the time for it."""
    for one in manifests.workloads:
        if one.component not in ("aggregator", "registry"):
            continue
        if one.object["spec"]["strategy"]["rollingUpdate"] != {"maxSurge": 1, "maxUnavailable": 0}:
            yield f"{one.name}: an update leaves fewer than there are"
        if one.component == "aggregator" and one.pod.get("terminationGracePeriodSeconds", 30) < GRACE + 10:
            yield f"{one.name}: is killed while it hands its jobs over"


@rule
def gpu_trainers_differ_by_settings_alone(manifests: Manifests) -> Complaints:
    """A trainer with a GPU is the other in all but its pool's name, its image, its resources and its nodes."""
    cpu, gpu = manifests.find("Deployment", "trainer-cpu"), manifests.find("Deployment", "trainer-gpu")
    if gpu is None:
        return
    assert cpu is not None
    settings_of = (
        r"/metadata/name|.*/fedq~1pool|/spec/template/spec/containers/trainer/(args/1|image)"
        r"|/spec/template/spec/containers/trainer/resources/.*|/spec/template/spec/(tolerations|affinity)(/.*)?"
        r"|/spec/template/spec/volumes/(shm/emptyDir/sizeLimit|ca/secret/optional)"
    )
    for path in _differences(cpu, gpu):
        if not re.fullmatch(settings_of, path):
            yield f"Deployment trainer-gpu: differs from trainer-cpu in {path}"
    limits = gpu["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    found = {name: value for name, value in limits.items() if name.startswith("nvidia.com/")}
    if list(found.values()) != [1]:
        yield f"Deployment trainer-gpu: asks for {found or 'no GPU'}, and has one slot"
    if not any(one["key"] == "nvidia.com/gpu" for one in gpu["spec"]["template"]["spec"].get("tolerations", [])):
        yield "Deployment trainer-gpu: is not let onto nodes with GPUs"


def _differences(one: Any, other: Any, path: str = "") -> Iterator[str]:
    """Where two values differ, as JSON pointers; what has a name is found by it."""
    if _are_named(one) and _are_named(other):
        one, other = ({item["name"]: item for item in items} for items in (one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            yield from _differences(one.get(key), other.get(key), f"{path}/{key.replace('/', '~1')}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, pair in enumerate(zip(one, other, strict=True)):
            yield from _differences(*pair, f"{path}/{index}")
    elif one != other:
        yield path


def _are_named(found: Any) -> bool:
    return isinstance(found, list) and all(isinstance(item, dict) and "name" in item for item in found)
