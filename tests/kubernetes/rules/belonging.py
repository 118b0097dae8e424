"""Who belongs to whom: labels, selectors, ports, and names that lead somewhere."""

from tests.kubernetes.manifests import Manifests, selects
from tests.kubernetes.rules.rule import NAME, POOL, Complaints, rule


@rule
def everything_is_labelled(manifests: Manifests) -> Complaints:
    """And lies in the one namespace, but for the right to read who asks, which lies where Kubernetes has it."""
    kinds = {"Namespace", "ClusterRoleBinding", "APIService"}
    for one in manifests.objects:
        name, labels = f"{one['kind']} {one['metadata']['name']}", one["metadata"].get("labels", {})
        if labels.get(NAME) != "fedq":
            yield f"{name}: is not labelled {NAME}=fedq"
        place = one["metadata"].get("namespace")
        elsewhere = one["kind"] == "RoleBinding" and place == "kube-system"
        if place != (None if one["kind"] in kinds else "fedq") and not elsewhere:
            yield f"{name}: is in the namespace {place}"
    for workload in manifests.workloads:
        labels = workload.object["metadata"]["labels"]
        if labels != workload.labels:
            yield f"{workload.name}: has other labels than its pods"
    for trainer in manifests.trainers:
        pool = trainer.labels.get(POOL)
        if trainer.container["args"] != ["--pool", pool, "--slots", "1"]:
            yield f"{trainer.name}: its arguments are not those of a trainer of {pool} with one slot"
        if trainer.object["metadata"]["name"] != f"trainer-{pool}":
            yield f"{trainer.name}: `fedq scale --pool {pool}` looks for trainer-{pool}"


@rule
def selectors_match(manifests: Manifests) -> Complaints:
    """A workload selects its own pods, and nobody else's; a spread counts the pods it is about."""
    for one in manifests.workloads:
        if one.object["kind"] == "Job":
            continue
        wanted = one.object["spec"]["selector"]["matchLabels"]
        owners = [other.name for other in manifests.workloads if selects(wanted, other.labels)]
        if owners != [one.name]:
            yield f"{one.name}: selects the pods of {owners or 'nobody'}"
        for spread in one.pod.get("topologySpreadConstraints", []):
            if spread["labelSelector"]["matchLabels"] != wanted:
                yield f"{one.name}: is spread by the pods of others"


@rule
def services_lead_somewhere(manifests: Manifests) -> Complaints:
    """Each selects pods that have the port it leads to; each name of a headless one is that of its StatefulSet."""
    for one in manifests.kind("Service"):
        name = f"Service {one['metadata']['name']}"
        selected = [ports for labels, ports in manifests.pods if selects(one["spec"]["selector"], labels)]
        if not selected:
            yield f"{name}: selects nothing"
        for port in one["spec"]["ports"]:
            if any(port["targetPort"] not in ports for ports in selected):
                yield f"{name}: leads to a port {port['targetPort']} that is not there"
            if (
                any(ports.get(port["targetPort"], port["port"]) != port["port"] for ports in selected)
                and port["port"] != 443
            ):
                yield f"{name}: port {port['port']} is another one in the pod"
    for one in manifests.kind("StatefulSet"):
        if manifests.find("Service", one["spec"]["serviceName"]) is None:
            yield f"StatefulSet {one['metadata']['name']}: has no Service {one['spec']['serviceName']}"
    for one in manifests.kind("APIService"):
        if one["spec"]["service"]["port"] not in manifests.service_ports(one["spec"]["service"]["name"]):
            yield f"APIService {one['metadata']['name']}: its Service does not listen there"


@rule
def monitors_find_their_ports(manifests: Manifests) -> Complaints:
    for one in manifests.kind("PodMonitor"):
        wanted = one["spec"]["selector"]["matchLabels"]
        ports = [ports for labels, ports in manifests.pods if selects(wanted, labels)]
        for endpoint in one["spec"]["podMetricsEndpoints"]:
            if not ports or any(endpoint["port"] not in each for each in ports):
                yield f"PodMonitor {one['metadata']['name']}: there is no port {endpoint['port']}"
    for one in manifests.kind("ServiceMonitor"):
        wanted = one["spec"]["selector"]["matchLabels"]
        services = [s for s in manifests.kind("Service") if selects(wanted, s["metadata"]["labels"])]
        for endpoint in one["spec"]["endpoints"]:
            if not services or any(endpoint["port"] not in {p["name"] for p in s["spec"]["ports"]} for s in services):
                yield f"ServiceMonitor {one['metadata']['name']}: there is no port {endpoint['port']}"


@rule
def budgets_protect_somebody(manifests: Manifests) -> Complaints:
    """A budget that keeps one is of two at least, or no node could ever be emptied."""
    for one in manifests.kind("PodDisruptionBudget"):
        name, wanted = f"PodDisruptionBudget {one['metadata']['name']}", one["spec"]["selector"]["matchLabels"]
        if not any(selects(wanted, labels) for labels, _ in manifests.pods):
            yield f"{name}: protects nothing"
        least = one["spec"].get("minAvailable", 0)
        for workload in manifests.workloads:
            if least and selects(wanted, workload.labels) and workload.object["spec"].get("replicas", 1) <= least:
                yield f"{name}: lets {workload.name} never go"
