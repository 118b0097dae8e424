"""What must hold whatever fails, each promise a small function; and the witness who saw what happened."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from services.aggregator.rounds import RINGS
from shared import names, weights
from shared.blobs import NotFound
from shared.errors import Fenced, Refused
from shared.events import BlobRef, RoundEnd, RoundStart, TrainingEnd
from shared.jobs import CLAIMS
from shared.ledger import ENDED, JobRecord

if TYPE_CHECKING:
    from tests.simulation.world import Replica, World

Manifest = dict[str, Any]

JOB = "sim-abc234"


class Violation(BaseException):
    """A promise is broken; no handler of the code under test may catch this."""


def hold(condition: object, promise: str) -> None:
    if not condition:
        raise Violation(promise)


class Witness:
    """Sees every call of a replica that took effect."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.manifests: dict[int, Manifest] = {}
        self.fenced: set[str] = set()  # replicas that were told that the job is another's
        self.lost: set[str] = set()  # keys that the store lost
        self.accepted: dict[int, dict[str, str]] = defaultdict(dict)  # of each round's attempt: client → its blob
        self.rings: Counter[tuple[int, int, int]] = Counter()  # (round, attempt, fence) → round-starts
        self.round = -1  # the last committed one that Redis showed since it went back

    def went_back(self) -> None:
        """Redis was flushed or thrown back. A round that it has as closed, it has as closed with what it has."""
        self.round = -1
        for number in self.accepted:
            record = self._world.ledger.round(JOB, number)
            if record is not None and record.state == "closed":
                self.accepted[number] = {client: entry["blob"]["key"] for client, entry in record.accepted.items()}

    def surprise(self, who: str, error: Exception) -> None:
        if self.lost and isinstance(error, Refused | NotFound):
            return  # what is frozen and gone cannot be folded: the job fails
        raise Violation(f"{who} did not foresee {type(error).__name__}: {error}") from error

    def watch(self, replica: "Replica", where: str, call: Callable[..., Any], args: Any, options: Any) -> Any:
        """Does what a replica asks of a server, and notes it."""
        who = replica.name
        if where in WRITES:
            hold(who not in self.fenced, f"P7: {who} was fenced, and goes on with {where} {args[0]}")
        if where == "blobs.put_json" and args[0].endswith(("/manifest.json", "/result.json")):
            only_the_owner_commits(self._world.job(), replica, args[0])
        try:
            found = call(*args, **options)
        except Fenced:
            if where != "ledger.renew":  # that is another thread's
                self.fenced.add(who)
            raise
        match where:
            case "ledger.accept_all" if found == "ok":
                self.accepted[args[2]] |= {client: entry["blob"]["key"] for client, entry in args[3].items()}
            case "ledger.exclude":
                self.accepted[args[2]].pop(args[3], None)
            case "ledger.fail_round":
                self.accepted.pop(args[2], None)
            case "blobs.put_json" if args[0].endswith("/manifest.json"):
                self._manifest(args[1])
            case "bus.publish":
                self._published(args[0])
        return found

    def _manifest(self, manifest: Manifest) -> None:
        number = manifest["round"]
        before = self.manifests.get(number)
        one_model_per_round(before, manifest)
        if before is None:
            self.manifests[number] = manifest
            counted = {client for client, key in self.accepted[number].items() if key not in self.lost}
            every_accepted_update_counts(counted, manifest)
            each_client_once(manifest)
            base_is_the_model_before(self.manifests, manifest)
            holds_no_garbage(self._world.trainers.sound, manifest)
            is_the_fold_of_its_updates(self._world, manifest)

    def _published(self, event: Any) -> None:
        match event:
            case RoundEnd(outcome="committed"):
                told_of_what_is_recorded(self.manifests.get(event.round), event)
            case RoundStart():
                self.rings[event.round, event.attempt, event.fence] += 1
                rings_are_bounded(self._world, event, self.rings[event.round, event.attempt, event.fence])
            case TrainingEnd():
                hold(
                    self._world.blobs.exists(names.result_blob(event.job)), "P3: the end is told before it is recorded"
                )

    def check(self) -> None:
        """After each step."""
        record = self._world.job()
        if record is None:
            return
        rounds_move_forward(self.round, record)
        self.round = record.round
        claims_are_bounded(record)

    def check_end(self) -> None:
        """When all is over."""
        record = self._world.job()
        assert record is not None
        the_end_is_recorded(self._world, record, self.manifests)


#: What a zombie must not do. Models and updates are named for their content: to write them again changes nothing.
WRITES = ("blobs.put_json", "blobs.delete", "blobs.remove", "bus.delete")

# --- the promises -------------------------------------------------------------------------------


def every_accepted_update_counts(accepted: set[str], manifest: Manifest) -> None:
    listed = {update["client"] for update in manifest["updates"]} | manifest["rejected"].keys()
    missing = sorted((accepted - listed) & set(manifest["cohort"]))  # another cohort, after Redis lost the first
    hold(not missing, f"P1: round {manifest['round']} accepted {missing} and its manifest does not list them")


def each_client_once(manifest: Manifest) -> None:
    clients = [update["client"] for update in manifest["updates"]]
    hold(len(clients) == len(set(clients)), f"P2: a client counts twice in round {manifest['round']}: {clients}")
    strangers = set(clients) - set(manifest["cohort"])
    hold(not strangers, f"P2: {strangers} were not asked in round {manifest['round']}")


def one_model_per_round(before: Manifest | None, manifest: Manifest) -> None:
    if before is not None:
        hold(inputs(before) == inputs(manifest), f"P3: round {manifest['round']} has a second, other manifest")


def inputs(manifest: Manifest) -> tuple[Any, ...]:
    updates = sorted((update["client"], update["blob"]["digest"], update["examples"]) for update in manifest["updates"])
    return manifest["model"]["digest"], updates, (manifest["base"] or {}).get("digest")


def is_the_fold_of_its_updates(world: "World", manifest: Manifest) -> None:
    """Against the mean in fractions, written apart from `shared.fold`."""
    number, held = manifest["round"], world.blobs.held
    model = parameters(world, manifest["model"])
    if number == 0:
        (only,) = manifest["updates"]
        hold(only["blob"]["digest"] == manifest["model"]["digest"], "P3: the initial model is not the one that came")
        return
    if any(update["blob"]["key"] not in held for update in manifest["updates"]):
        return  # the store has lost one since
    total = sum(update["examples"] for update in manifest["updates"])
    expected = parameters(world, manifest["base"]).astype(np.float64)
    deltas = [(parameters(world, update["blob"]), update["examples"]) for update in manifest["updates"]]
    for place in range(expected.size):
        summed = sum(Fraction(float(delta[place])) * examples for delta, examples in deltas)
        expected[place] += float(summed / Fraction(total))
    hold(
        np.allclose(model, expected, rtol=1e-6, atol=1e-7), f"P3: the model of round {number} is not its updates' mean"
    )
    hold(manifest["weight"] == total, f"P3: the weight of round {number} is not its updates'")


def parameters(world: "World", ref: dict[str, Any]) -> Any:
    file = world.blobs.get(BlobRef.model_validate(ref))
    return weights.read_layout(file).flat(file)


def told_of_what_is_recorded(manifest: Manifest | None, event: RoundEnd) -> None:
    hold(manifest is not None, f"P3: the end of round {event.round} is told and not recorded")
    assert manifest is not None
    digest = event.model.digest if event.model else None
    hold(digest == manifest["model"]["digest"], f"P3: another model of round {event.round} is told than is recorded")


def rounds_move_forward(before: int, record: JobRecord) -> None:
    hold(record.round >= before, f"P4: Redis went from round {before} to round {record.round}")


def base_is_the_model_before(manifests: dict[int, Manifest], manifest: Manifest) -> None:
    number, base = manifest["round"], manifest["base"]
    if number == 0:
        hold(base is None, "P4: round 0 has a base")
        return
    hold(number - 1 in manifests, f"P4: round {number} is committed before round {number - 1}")
    hold(base["digest"] == manifests[number - 1]["model"]["digest"], f"P4: round {number} has another base")


def rings_are_bounded(world: "World", event: RoundStart, count: int) -> None:
    groups = 1 if world.spec.pool else 1 + RINGS  # to each silo its own
    hold(count <= (1 + RINGS) * max(groups, len(world.spec.clients)), f"P6: round {event.round} was rung {count} times")
    hold(event.attempt <= world.spec.rounds.attempts, f"P6: attempt {event.attempt} at round {event.round}")


def claims_are_bounded(record: JobRecord) -> None:
    hold(record.claims <= CLAIMS + 2 or record.status in ENDED, f"P6: {record.claims} owners and no commit")


def holds_no_garbage(sound: dict[str, tuple[int, str, str]], manifest: Manifest) -> None:
    base = (manifest["base"] or {}).get("digest", "")
    for update in manifest["updates"]:
        expected = (manifest["round"], update["client"], base)
        found = sound.get(update["blob"]["digest"])
        hold(
            found == expected or (found is not None and not base and found[0] == 0),
            f"P7: round {manifest['round']} holds {update['client']}'s update that is {found}",
        )


def only_the_owner_commits(record: JobRecord | None, replica: "Replica", key: str) -> None:
    """Whoever Redis says owns the job; where Redis has lost that, whoever did last."""
    owner = any(record is None or running.runner.fence == record.fence for running in replica.running.values())
    hold(owner, f"P7: {replica.name} does not own the job, and writes {key}")


def the_end_is_recorded(world: "World", record: JobRecord, manifests: dict[int, Manifest]) -> None:
    last = max(manifests, default=-1)
    hold(sorted(manifests) == list(range(last + 1)), f"P4: the manifests are {sorted(manifests)}")
    if record.status not in ENDED:
        return
    hold(world.blobs.exists(names.result_blob(record.id)), f"P5: the job is {record.status} and has no result")
    result = json.loads(world.blobs.held[names.result_blob(record.id)][0])
    hold(result["outcome"] == record.status, f"P5: Redis says {record.status}, the store {result['outcome']}")
    hold(result["rounds"] == max(0, last), f"P4: {last} rounds are committed, the result says {result['rounds']}")
    if manifests:
        hold(result["model"]["digest"] == manifests[last]["model"]["digest"], "P3: the result is not the last model")
    if record.status == "finished":
        hold(last == world.spec.rounds.count, f"P5: finished after {last} of {world.spec.rounds.count} rounds")
