"""fedq in Kubernetes: the namespace of kubectl's context, asked by kubectl."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.cli.orchestrators import tools
from services.cli.orchestrators.tools import Source
from shared.errors import BadInput, FedqError

OURS = "app.kubernetes.io/name=fedq"
TRAINERS = f"{OURS},app.kubernetes.io/component=trainer"
LOGGED = f"{OURS},app.kubernetes.io/component in (aggregator,registry,trainer)"
POOL = "fedq/pool"  #: the label of a pool's Deployment
MOST_LOGS = 500  #: containers whose logs are followed at once; kubectl's own limit is 5
ANSWER = "10s"  #: until kubectl gives a server up; less than `tools.QUERY`, so that it is kubectl who says why


@dataclass(frozen=True)
class Scaler:
    """What keeps the size of a Deployment between two bounds: an HPA, or a ScaledObject of KEDA, which has its HPA."""

    kind: str
    name: str
    least: int
    most: int
    keys: tuple[str, str]  # of the bounds, in its spec

    def bounds(self, wanted: int) -> dict[str, int]:
        """The spec's values under which it asks for `wanted` replicas at least."""
        least, most = self.keys
        return {least: wanted} | ({most: wanted} if self.most < wanted else {})


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
        """What the cluster has of a kind, or one thing by its name."""
        command = self.command(f"--request-timeout={ANSWER}", "get", kind, *words, "--output=json")
        return json.loads(tools.run(command, seconds=seconds))

    def deployments(self, seconds: float = tools.QUERY) -> list[Any]:
        """The Deployments of all pools."""
        return list(self.get("deployments", f"--selector={TRAINERS}", seconds=seconds)["items"])

    def count(self, pool: str) -> int:
        """How many trainers of a pool are wanted now."""
        return int(self._deployment(pool)["spec"].get("replicas", 1))

    def scale(self, pool: str, wanted: int) -> str:
        """Sets the size of a pool's Deployment, or what an autoscaler may make of it; what that was, in words."""
        found = self._deployment(pool)
        name, before = found["metadata"]["name"], int(found["spec"].get("replicas", 1))
        told = [f"Deployment {name} in {self.place}"]
        scaler = self._scaler(name)
        if scaler is not None and (wanted or scaler.keys[0] != "minReplicas"):
            # It would undo what is set on the Deployment alone. A Deployment of none switches an HPA off, which is
            # what somebody means who wants none; so nothing has to be told to it then.
            bounds = scaler.bounds(wanted)
            self._change("patch", scaler.kind, scaler.name, "--type=merge", f"--patch={json.dumps({'spec': bounds})}")
            told.append(f"{scaler.name} ({scaler.kind}) keeps {self._kept(scaler, bounds)}")
        # Beside an autoscaler too: it would take its time to begin, and goes down by its own rules.
        if scaler is None or wanted > before or not wanted:
            self._change("scale", f"deployment/{name}", f"--replicas={wanted}")
        return "; ".join(told)

    def sources(self, follow: bool) -> list[Source]:
        """The logs of all containers of fedq's own pods."""
        words = ["logs", f"--selector={LOGGED}", "--all-containers", "--prefix", "--tail=-1"]
        more = ["--follow", "--ignore-errors", f"--max-log-requests={MOST_LOGS}"] if follow else []
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
        """What scales a Deployment: KEDA's, where there is one, for the HPA of that is written by KEDA."""
        for kind, keys, most in (
            ("scaledobjects.keda.sh", ("minReplicaCount", "maxReplicaCount"), 100),  # KEDA's default
            ("horizontalpodautoscalers.autoscaling", ("minReplicas", "maxReplicas"), 1),
        ):
            for one in self._all(kind):
                spec = one["spec"]
                target = spec["scaleTargetRef"]
                if target.get("kind", "Deployment") == "Deployment" and target["name"] == deployment:
                    least = spec.get(keys[0], 0 if keys[0] == "minReplicaCount" else 1)
                    return Scaler(kind.partition(".")[0], one["metadata"]["name"], least, spec.get(keys[1], most), keys)
        return None

    def _all(self, kind: str) -> Sequence[Any]:
        try:
            return list(self.get(kind)["items"])
        except FedqError as error:
            if "doesn't have a resource type" in str(error):  # a cluster without KEDA
                return []
            raise

    @staticmethod
    def _kept(scaler: Scaler, bounds: dict[str, int]) -> str:
        least, most = scaler.keys
        raised = f" (raised from {scaler.most})" if most in bounds else ""
        return f"{bounds[least]} to {bounds.get(most, scaler.most)}{raised} of them, by the work that waits"

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
