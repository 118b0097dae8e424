"""What every container must be: bounded, probed, without rights, of a known version, with room to write."""

import json
import re
from collections import Counter
from typing import Any

from tests.kubernetes.manifests import OURS, ROOT, Manifests, quantity
from tests.kubernetes.rules.rule import Complaints, rule

READY = ["test", "-e", "/tmp/fedq/ready"]  # noqa: S108 - a container's
ALIVE = ["sh", "-c", 'test -n "$(find /tmp/fedq/alive -mmin -3 2>/dev/null)"']


@rule
def resources_are_bounded(manifests: Manifests) -> Complaints:
    """Requests and limits of CPU and memory, and no request beyond its limit."""
    for one in manifests.workloads:
        found = one.container.get("resources", {})
        requests, limits = found.get("requests", {}), found.get("limits", {})
        for resource in ("cpu", "memory"):
            if resource not in requests or resource not in limits:
                yield f"{one.name}: {resource} has no request or no limit"
            elif quantity(requests[resource]) > quantity(limits[resource]):
                yield f"{one.name}: requests more {resource} than its limit"


@rule
def containers_are_probed(manifests: Manifests) -> Complaints:
    """fedq's own by the two files, which need no connection; the servers by a port, or a word of theirs."""
    for one in manifests.workloads:
        if one.object["kind"] == "Job":
            continue
        probes = {kind: one.container.get(f"{kind}Probe") for kind in ("startup", "readiness", "liveness")}
        missing = [kind for kind, probe in probes.items() if probe is None]
        if missing:
            yield f"{one.name}: has no {' and no '.join(missing)} probe"
            continue
        if one.component in OURS:
            for kind, command in (("startup", READY), ("readiness", READY), ("liveness", ALIVE)):
                if probes[kind].get("exec", {}).get("command") != command:
                    yield f"{one.name}: its {kind} probe is not the file's: {json.dumps(command)}"
        if _patience(probes["startup"]) < 120:
            yield f"{one.name}: has less than two minutes to start"
        if _patience(probes["liveness"]) < 60:
            yield f"{one.name}: is killed within a minute of being found dead"


@rule
def nobody_has_rights(manifests: Manifests) -> Complaints:
    """What PodSecurity calls restricted, and a root file system that is read-only."""
    for one in manifests.workloads:
        pod, container = one.pod.get("securityContext", {}), one.container.get("securityContext", {})
        user = 10001 if one.component in OURS else pod.get("runAsUser", 0)
        wanted = {
            "runAsNonRoot": pod.get("runAsNonRoot") is True,
            "runAsUser": bool(user) and pod.get("runAsUser") == user,
            "seccompProfile": pod.get("seccompProfile") == {"type": "RuntimeDefault"},
            "allowPrivilegeEscalation": container.get("allowPrivilegeEscalation") is False,
            "readOnlyRootFilesystem": container.get("readOnlyRootFilesystem") is True,
            "capabilities": container.get("capabilities") == {"drop": ["ALL"]},
        }
        for setting, right in wanted.items():
            if not right:
                yield f"{one.name}: {setting} is not restricted"
        if one.component != "prometheus-adapter" and one.pod.get("automountServiceAccountToken") is not False:
            yield f"{one.name}: has a token for Kubernetes"
        if one.pod.get("enableServiceLinks") is not False:
            yield f"{one.name}: is told of every Service in its environment"
    for namespace in manifests.kind("Namespace"):
        if namespace["metadata"]["labels"].get("pod-security.kubernetes.io/enforce") != "restricted":
            yield f"Namespace {namespace['metadata']['name']}: is not restricted"


@rule
def images_are_pinned(manifests: Manifests) -> Complaints:
    """No `latest`; fedq's own have the project's version, and each is a target of the Dockerfile."""
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    targets = set(re.findall(r"^FROM \S+ AS (\S+)", (ROOT / "deploy/images/Dockerfile").read_text(), re.MULTILINE))
    images = {one.name: one.container["image"] for one in manifests.workloads}
    images |= {
        f"RabbitmqCluster {one['metadata']['name']}": one["spec"]["image"] for one in manifests.kind("RabbitmqCluster")
    }
    for owner, image in images.items():
        name, _, tag = image.rpartition(":")
        if not name or "/" in tag or tag == "latest":
            yield f"{owner}: {image} may be any version"
        elif name.startswith("fedq/"):
            if version is None or tag != version[1]:
                yield f"{owner}: {image} is not of this version"
            if name.removeprefix("fedq/") not in targets:
                yield f"{owner}: deploy/images/Dockerfile makes no {name}"


@rule
def volumes_are_mounted(manifests: Manifests) -> Complaints:
    """Each that is mounted is there, each that is there is mounted, and what may fill up has an end."""
    for one in manifests.workloads:
        volumes = {volume["name"]: volume for volume in one.pod.get("volumes", [])}
        there = {*volumes, *(claim["metadata"]["name"] for claim in one.claims)}
        mounted = {mount["name"] for mount in one.container.get("volumeMounts", [])}
        for name in sorted(there ^ mounted):
            yield f"{one.name}: volume {name} is {'mounted and not there' if name in mounted else 'not mounted'}"
        paths = Counter(mount["mountPath"] for mount in one.container.get("volumeMounts", []))
        for path in (path for path, times in paths.items() if times > 1):
            yield f"{one.name}: {path} is mounted twice"
        for name, volume in volumes.items():
            if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
                yield f"{one.name}: volume {name} has no limit"
        if one.component in OURS and "/tmp" not in paths:  # noqa: S108 - a container's
            yield f"{one.name}: cannot write its probes below /tmp"


def _patience(probe: dict[str, Any]) -> int:
    """Seconds that a probe may fail for."""
    seconds: int = probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3)
    return seconds
