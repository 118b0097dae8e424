"""Who may talk to whom."""

from collections.abc import Iterator
from urllib.parse import urlsplit

from tests.kubernetes.manifests import Manifests, Object, Workload
from tests.kubernetes.rules.rule import COMPONENT, PORTS, SETTINGS, Complaints, rule


@rule
def policies_allow_what_is_needed(manifests: Manifests) -> Complaints:
    """Exactly what the settings lead to, seen from either end."""
    policies = manifests.kind("NetworkPolicy")
    if not policies:
        return
    closed = [
        p
        for p in policies
        if p["spec"]["podSelector"] == {} and "ingress" not in p["spec"] and "egress" not in p["spec"]
    ]
    if not any(set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"} for policy in closed):
        yield "NetworkPolicy: nothing is closed by default"
    needed = {(one.component, *place) for one in manifests.ours for place in _needs(manifests, one)}
    peers = {("rabbitmq", "rabbitmq", port) for port in (4369, 25672, 35672)}
    metrics = {
        port for labels, ports in manifests.pods for name, port in ports.items() if name.startswith("prometheus")
    }
    scraped = {("monitoring", "rabbitmq", port) for port in metrics} | {("monitoring", "registry", 8080)}
    names = {("*", "kube-dns", 53)}
    out, into = set(_edges(policies, "egress")), set(_edges(policies, "ingress"))
    for direction, found, wanted in (("out", out, needed | peers | names), ("in", into, needed | peers | scraped)):
        for source, to, port in sorted(found - wanted):
            yield f"NetworkPolicy: {source} may reach {to} at {port} and need not ({direction})"
        for source, to, port in sorted(wanted - found):
            yield f"NetworkPolicy: {source} cannot reach {to} at {port} ({direction})"


def _needs(manifests: Manifests, one: Workload) -> Iterator[tuple[str, int]]:
    """Whom a service calls, by its settings: the component and the port."""
    fields = SETTINGS[one.component].model_fields
    for name, value in manifests.environment(one).items():
        if name.removeprefix("FEDQ_").lower() not in fields or not name.endswith("_URL") or name == "FEDQ_REGISTRY_URL":
            continue
        if one.component == "setup" and name == "FEDQ_AMQP_URL":
            continue  # it reads the login, and asks the management API
        url = urlsplit(value)
        yield str(url.hostname), url.port or PORTS[url.scheme]


def _edges(policies: list[Object], direction: str) -> Iterator[tuple[str, str, int]]:
    """Who may reach whom where, by one direction's rules."""
    for policy in policies:
        here = policy["spec"]["podSelector"].get("matchLabels", {}).get(COMPONENT, "*")
        for one in policy["spec"].get(direction, []):
            for peer in one["to" if direction == "egress" else "from"]:
                labels = peer.get("podSelector", {}).get("matchLabels", {})
                place = peer.get("namespaceSelector", {}).get("matchLabels", {}).get("kubernetes.io/metadata.name")
                there = labels.get(COMPONENT) or labels.get("k8s-app") or place
                for port in one["ports"]:
                    pair = (here, there) if direction == "egress" else (there, here)
                    yield (*pair, port["port"])
