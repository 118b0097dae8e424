"""fedq in Kubernetes: the namespace of kubectl's context, asked by kubectl."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from services.cli.ops.orchestrators import tools
from services.cli.ops.orchestrators.tools import Source
from shared.errors import BadInput, FedqError

OURS = "app.kubernetes.io/name=fedq"
TRAINERS = f"{OURS},app.kubernetes.io/component=trainer"
LOGGED = f"{OURS},app.kubernetes.io/component in (aggregator,registry,trainer)"
POOL = "fedq/pool"  #: the label of a pool's Deployment
MOST_LOGS = 500  #: containers whose logs are followed at once; kubectl's own limit is 5
ANSWER = "10s"  #: until kubectl gives a server up; less than `tools.QUERY`, so that it is kubectl who says why


@dataclass(frozen=True)
class Scaler:
    """An autoscaler that keeps the size of a Deployment between two bounds, which are keys of its spec."""

    kind: str
    resource: str  # as kubectl knows the kind, whatever else a cluster calls so
    least: str
    most: str
    default: int  # of `most`
    name: str = ""
    bound: int = 0  # the upper one

    def serves(self, found: Any, deployment: str) -> "Scaler | None":
        """The autoscaler that `found` in the cluster is, if it scales the Deployment."""
        spec = found["spec"]
        target = spec["scaleTargetRef"]
        if target.get("kind", "Deployment") != "Deployment" or target["name"] != deployment:
            return None
        return replace(self, name=found["metadata"]["name"], bound=spec.get(self.most, self.default))

    def bounds(self, wanted: int) -> dict[str, int]:
        """The values of its spec under which it asks for `wanted` replicas at least."""
        return {self.least: wanted} | ({self.most: wanted} if self.bound < wanted else {})


KEDA = Scaler("ScaledObject", "scaledobjects.keda.sh", "minReplicaCount", "maxReplicaCount", 100)
HPA = Scaler("HPA", "horizontalpodautoscalers.autoscaling", "minReplicas", "maxReplicas", 1)


@dataclass(frozen=True)
class Kubernetes:
    """One namespace of one cluster."""

    context: str
    namespace: str

    name = "kubernetes"

    @property
    def place(self) -> str:
        return f"namespace {self.namespace} of {self.context}"

    def command(self, *words: str) -> list[str]:
        """kubectl for this place, whatever context is chosen meanwhile."""
        return ["kubectl", f"--context={self.context}", f"--namespace={self.namespace}", *words]

    def get(self, kind: str, *words: str, seconds: float = tools.QUERY) -> Any:
        """Gets from the cluster the objects of a kind, or one object by its name."""
        command = self.command(f"--request-timeout={ANSWER}", "get", kind, *words, "--output=json")
        return json.loads(tools.run(command, seconds=seconds))

    def deployments(self, seconds: float = tools.QUERY) -> list[Any]:
        """The Deployments of all pools."""
        return list(self.get("deployments", f"--selector={TRAINERS}", seconds=seconds)["items"])

    def count(self, pool: str) -> int:
        """Number of trainers of a pool that are wanted now."""
        return int(self._deployment(pool)["spec"].get("replicas", 1))

    def scale(self, pool: str, wanted: int) -> str:
        """Sets the size of a pool's Deployment, or what an autoscaler may make of it; what that was, in words."""
        found = self._deployment(pool)
        name, before = found["metadata"]["name"], int(found["spec"].get("replicas", 1))
        told = [f"Deployment {name} in {self.place}"]
        scaler = self._scaler(name)
        if scaler is not None and (wanted or scaler.kind != HPA.kind):
            # It would undo what is set on the Deployment alone. But a Deployment of none switches an HPA off, whose
            # lower bound may not be 0.
            bounds = scaler.bounds(wanted)
            self._change(
                "patch", scaler.resource, scaler.name, "--type=merge", f"--patch={json.dumps({'spec': bounds})}"
            )
            most = f"{max(scaler.bound, wanted)}" + (f", raised from {scaler.bound}" if scaler.most in bounds else "")
            told.append(f"{scaler.kind} {scaler.name} keeps it at {wanted} to {most}, by the work that waits")
        # Beside an autoscaler too: it would take its time to begin, and goes down by its own rules.
        if scaler is None or wanted > before or not wanted:
            self._change("scale", f"deployment/{name}", f"--replicas={wanted}")
        return "; ".join(told)

    def sources(self, follow: bool) -> list[Source]:
        """The logs of all containers of fedq's own pods."""
        # One that has not started yet has no log, and would end those of the others.
        words = ["logs", f"--selector={LOGGED}", "--all-containers", "--prefix", "--tail=-1", "--ignore-errors"]
        more = ["--follow", f"--max-log-requests={MOST_LOGS}"] if follow else []
        return [Source(None, tuple(self.command(*words, *more)))]

    def _deployment(self, pool: str) -> Any:
        every = self.deployments()
        mine = [one for one in every if one["metadata"].get("labels", {}).get(POOL) == pool]
        if len(mine) == 1:
            return mine[0]
        pools = sorted({one["metadata"].get("labels", {}).get(POOL, "") for one in every} - {""})
        raise BadInput(
            f"{self.place} has {'several Deployments' if mine else 'no Deployment'} of pool {pool} "
            f"({TRAINERS},{POOL}={pool}); its pools: {', '.join(pools) or 'none'}"
        )

    def _scaler(self, deployment: str) -> Scaler | None:
        """Finds the autoscaler of a Deployment: a ScaledObject first, because KEDA writes an HPA for it, and again."""
        every = (kind.serves(one, deployment) for kind in (KEDA, HPA) for one in self._all(kind.resource))
        return next((found for found in every if found is not None), None)

    def _all(self, kind: str) -> Sequence[Any]:
        try:
            return list(self.get(kind)["items"])
        except FedqError as error:
            if "doesn't have a resource type" in str(error):  # a cluster without KEDA
                return []
            raise

    def _change(self, *words: str) -> None:
        tools.run(self.command(f"--request-timeout={ANSWER}", *words))


def at(namespace: str | None) -> Kubernetes:
    """The namespace given, or that of kubectl's context; `BadInput` where kubectl is not set up."""
    view = json.loads(tools.run(["kubectl", "config", "view", "--minify", "--output=json"]))
    context = view["contexts"][0]
    return Kubernetes(context["name"], namespace or context["context"].get("namespace") or "default")


def find(namespace: str | None, seconds: float) -> Kubernetes | None:
    """The place where its namespace holds a Deployment of trainers, else None; the cluster has `seconds` to answer."""
    place = at(namespace)
    return place if place.deployments(seconds) else None
