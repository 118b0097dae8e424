"""Every name of something else is the name of something."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.kubernetes.manifests import Manifests, Object, Workload
from tests.kubernetes.rules.rule import Complaints, rule


class Reference(NamedTuple):
    kind: str
    name: str
    keys: frozenset[str] = frozenset()  #: that a ConfigMap or Secret must have
    optional: bool = False


@rule
def references_are_there(manifests: Manifests) -> Complaints:
    """In the manifests, or promised from outside; with the keys that are read."""
    secrets = manifests.secrets()
    for owner, reference in _all(manifests):
        if reference.kind == "Secret":
            data = secrets.get(reference.name)
        else:
            found = manifests.find(reference.kind, reference.name)
            data = None if found is None else found.get("data", {})
        if data is None:
            if not reference.optional:
                yield f"{owner}: nobody makes the {reference.kind} {reference.name}"
        elif missing := sorted(reference.keys - data.keys()):
            yield f"{owner}: the {reference.kind} {reference.name} has no {', '.join(missing)}"


@rule
def objects_have_names_of_their_own(manifests: Manifests) -> Complaints:
    """cert-manager writes a Secret for each Certificate: two into one would fight."""
    written = Counter(one["spec"]["secretName"] for one in manifests.kind("Certificate"))
    fought_for = {name for name, times in written.items() if times > 1 or name in manifests.promised}
    for name in sorted(fought_for):
        yield f"Secret {name}: is made by more than one"


def _all(manifests: Manifests) -> Iterator[tuple[str, Reference]]:
    for workload in manifests.workloads:
        for reference in of_pod(workload):
            yield workload.name, reference
    for one in manifests.objects:
        for reference in _OF_KIND.get(one["kind"], lambda _: iter(()))(one):
            yield f"{one['kind']} {one['metadata']['name']}", reference


def of_pod(workload: Workload) -> Iterator[Reference]:
    """What a pod is given, and whose name it acts in."""
    if "serviceAccountName" in workload.pod:
        yield Reference("ServiceAccount", workload.pod["serviceAccountName"])
    yield from _variables(workload.container)
    mounts = {mount["name"]: mount for mount in workload.container.get("volumeMounts", [])}
    for volume in workload.pod.get("volumes", []):
        match volume:
            case {"configMap": {"name": name}}:
                one_file = mounts.get(volume["name"], {}).get("subPath")
                yield Reference("ConfigMap", name, frozenset([one_file] if one_file else []))
            case {"secret": {"secretName": name, **rest}}:
                keys = frozenset(item["key"] for item in rest.get("items", []))
                yield Reference("Secret", name, keys, rest.get("optional", False))
            case {"persistentVolumeClaim": {"claimName": name}}:
                yield Reference("PersistentVolumeClaim", name)


def _variables(container: dict[str, Any]) -> Iterator[Reference]:
    for source in (*container.get("envFrom", []), *container.get("env", [])):
        match source:
            case {"configMapRef": {"name": name}}:
                yield Reference("ConfigMap", name)
            case {"secretRef": {"name": name}}:
                yield Reference("Secret", name)
            case {"valueFrom": {"secretKeyRef": {"name": name, "key": key}}}:
                yield Reference("Secret", name, frozenset([key]))


def _of_cluster(cluster: Object) -> Iterator[Reference]:
    yield Reference(
        "Secret", cluster["spec"]["secretBackend"]["externalSecret"]["name"], frozenset(["default_user.conf"])
    )
    if tls := cluster["spec"].get("tls"):
        yield Reference("Secret", tls["secretName"], frozenset(["tls.crt", "tls.key"]))


def _of_authentication(one: Object) -> Iterator[Reference]:
    for source in one["spec"]["secretTargetRef"]:
        yield Reference("Secret", source["name"], frozenset([source["key"]]))


def _of_scaled(one: Object) -> Iterator[Reference]:
    for trigger in one["spec"]["triggers"]:
        if "authenticationRef" in trigger:
            yield Reference("TriggerAuthentication", trigger["authenticationRef"]["name"])


def _of_binding(one: Object) -> Iterator[Reference]:
    for subject in one["subjects"]:
        yield Reference(subject["kind"], subject["name"])


def _of_issuer(one: Object) -> Iterator[Reference]:
    if authority := one["spec"].get("ca"):
        yield Reference("Secret", authority["secretName"], frozenset(["tls.crt", "tls.key"]))


def _of_certificate(one: Object) -> Iterator[Reference]:
    yield Reference("Issuer", one["spec"]["issuerRef"]["name"])


def _of_monitor(one: Object) -> Iterator[Reference]:
    for endpoint in one["spec"]["podMetricsEndpoints"]:
        if "tlsConfig" in endpoint:
            authority = endpoint["tlsConfig"]["ca"]["secret"]
            yield Reference("Secret", authority["name"], frozenset([authority["key"]]))


_OF_KIND = {
    "RabbitmqCluster": _of_cluster,
    "TriggerAuthentication": _of_authentication,
    "ScaledObject": _of_scaled,
    "RoleBinding": _of_binding,
    "ClusterRoleBinding": _of_binding,
    "Issuer": _of_issuer,
    "Certificate": _of_certificate,
    "PodMonitor": _of_monitor,
}
