"""Kubernetes as orchestrator: the namespace of kubectl's context, queried with kubectl."""

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
ANSWER = "10s"  #: timeout of kubectl; below `tools.QUERY`, so that kubectl can report the reason


@dataclass(frozen=True)
class Scaler:
    """Autoscaler that keeps the size of a Deployment between two bounds; `least` and `most` are their spec keys."""

    kind: str
    resource: str  # the full resource name, because a cluster may have another kind with the same short name
    least: str
    most: str
    default: int  # upper bound if the spec does not set `most`
    name: str = ""
    bound: int = 0  # current upper bound

    def serves(self, found: Any, deployment: str) -> "Scaler | None":
        """The autoscaler described by the cluster's object `found` if it scales the Deployment, else None."""
        spec = found["spec"]
        target = spec["scaleTargetRef"]
        if target.get("kind", "Deployment") != "Deployment" or target["name"] != deployment:
            return None
        return replace(self, name=found["metadata"]["name"], bound=spec.get(self.most, self.default))

    def bounds(self, wanted: int) -> dict[str, int]:
        """The spec values with which the autoscaler requests at least `wanted` replicas."""
        return {self.least: wanted} | ({self.most: wanted} if self.bound < wanted else {})


KEDA = Scaler("ScaledObject", "scaledobjects.keda.sh", "minReplicaCount", "maxReplicaCount", 100)
HPA = Scaler("HPA", "horizontalpodautoscalers.autoscaling", "minReplicas", "maxReplicas", 1)


@dataclass(frozen=True)
class Kubernetes:
    """Namespace of a cluster."""

    context: str
    namespace: str

    name = "kubernetes"

    @property
    def place(self) -> str:
        return f"namespace {self.namespace} of {self.context}"

    def command(self, *words: str) -> list[str]:
        """A kubectl command for this namespace and context, even if the user switches contexts meanwhile."""
        return ["kubectl", f"--context={self.context}", f"--namespace={self.namespace}", *words]

    def get(self, kind: str, *words: str, seconds: float = tools.QUERY) -> Any:
        """Gets from the cluster the objects of a kind, or one object by its name."""
        command = self.command(f"--request-timeout={ANSWER}", "get", kind, *words, "--output=json")
        return json.loads(tools.run(command, seconds=seconds))

    def deployments(self, seconds: float = tools.QUERY) -> list[Any]:
        """The Deployments of all pools."""
        return list(self.get("deployments", f"--selector={TRAINERS}", seconds=seconds)["items"])

    def count(self, pool: str) -> int:
        """Number of trainers that the pool's Deployment requests now."""
        return int(self._deployment(pool)["spec"].get("replicas", 1))

    def scale(self, pool: str, wanted: int) -> str:
        """Sets the size of a pool's Deployment, or its autoscaler's bounds; describes the change in a sentence."""
        found = self._deployment(pool)
        name, before = found["metadata"]["name"], int(found["spec"].get("replicas", 1))
        told = [f"Deployment {name} in {self.place}"]
        scaler = self._scaler(name)
        if scaler is not None and (wanted or scaler.kind != HPA.kind):
            # An autoscaler would undo a change to the Deployment alone. The lower bound of an HPA may not be 0, but
            # scaling its Deployment to 0 disables it.
            bounds = scaler.bounds(wanted)
            self._change(
                "patch", scaler.resource, scaler.name, "--type=merge", f"--patch={json.dumps({'spec': bounds})}"
            )
            most = f"{max(scaler.bound, wanted)}" + (f", raised from {scaler.bound}" if scaler.most in bounds else "")
            told.append(f"{scaler.kind} {scaler.name} keeps it at {wanted} to {most}, by the work that waits")
        # The Deployment is scaled even with an autoscaler, which would start late; only it decides when to scale down.
        if scaler is None or wanted > before or not wanted:
            self._change("scale", f"deployment/{name}", f"--replicas={wanted}")
        return "; ".join(told)

    def sources(self, follow: bool) -> list[Source]:
        """The logs of all containers in fedq's pods."""
        # A container that has not started has no log yet; without --ignore-errors it would end the other logs.
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
        """The autoscaler of a Deployment; a ScaledObject comes first, because KEDA keeps rewriting an HPA for it."""
        every = (kind.serves(one, deployment) for kind in (KEDA, HPA) for one in self._all(kind.resource))
        return next((found for found in every if found is not None), None)

    def _all(self, kind: str) -> Sequence[Any]:
        try:
            return list(self.get(kind)["items"])
        except FedqError as error:
            if "doesn't have a resource type" in str(error):  # the cluster has no KEDA
                return []
            raise

    def _change(self, *words: str) -> None:
        tools.run(self.command(f"--request-timeout={ANSWER}", *words))


def at(namespace: str | None) -> Kubernetes:
    """The given namespace, or that of kubectl's context; `BadInput` if kubectl is not set up."""
    view = json.loads(tools.run(["kubectl", "config", "view", "--minify", "--output=json"]))
    context = view["contexts"][0]
    return Kubernetes(context["name"], namespace or context["context"].get("namespace") or "default")


def find(namespace: str | None, seconds: float) -> Kubernetes | None:
    """The namespace if it holds a Deployment of trainers, else None; the cluster has `seconds` to answer."""
    place = at(namespace)
    return place if place.deployments(seconds) else None
