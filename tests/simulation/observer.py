"""The witness who sees what happens, and holds each promise to it."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from services.trainer.train_task import TrainTask
from shared import names
from shared.errors import Fenced, Refused
from shared.events import EvaluateModel, RoundEnd, RoundStart, TrainingEnd
from shared.record import parts
from shared.s3.store import NotFound
from tests.simulation import invariants, keeping
from tests.simulation.chain import Manifest
from tests.simulation.invariants import JOB, Violation, hold

if TYPE_CHECKING:
    from tests.simulation.world import Replica, World

#: What a zombie must not do. Models and updates are named for their content: to write them again changes nothing.
WRITES = ("blobs.put_json", "blobs.delete", "blobs.remove", "bus.delete")


class Observer:
    """Sees every call of a replica that took effect."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.manifests: dict[int, Manifest] = {}
        self.fenced: set[str] = set()  # replicas that were told that the job is another's
        self.lost: set[str] = set()  # keys that the store lost
        self.accepted: dict[int, dict[str, str]] = defaultdict(dict)  # of each round's attempt: client → its blob
        self.asks: Counter[tuple[int, int, int]] = Counter()  # (round, attempt, fence) → round-starts
        self.round = -1  # the last committed one that Redis showed since it went back
        self.evaluators: dict[tuple[str, int], set[str]] = defaultdict(set)  # (replica, round) → clients it asked last
        self.testers: dict[tuple[str, int], set[str]] = defaultdict(set)  # of a test set, whom it asked
        self.looked: set[str] = set()  # replicas that have read the roster since they last asked for an evaluation
        self.evaluated: dict[int, int] = {}  # round → the owner that has its evaluation, by its fence
        self.enough: dict[int, int] = {}  # an owner, by its fence → the round after which it needs no other
        self.opened: set[int] = set()
        self.committed: dict[int, float] = {}  # round → when
        self.uncounted = 0  # rounds that were committed before Redis began to count

    def went_back(self) -> None:
        """Redis was flushed or thrown back. A round that it has as closed, it has as closed with what it has."""
        self.round = -1
        job, rounds = self._world.job(), self._world.ledger.totals().rounds
        if job is not None:
            self.uncounted = job.round + 1 - (rounds["committed"].times if "committed" in rounds else 0)
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
            invariants.only_the_owner_commits(self._world.job(), replica, args[0])
        try:
            found = call(*args, **options)
        except Fenced:
            if where != "ledger.renew":  # that is another thread's
                self.fenced.add(who)
            raise
        self._happened(who, where, args, found)
        return found

    def _happened(self, who: str, where: str, args: Any, found: Any) -> None:  # noqa: C901 - one line per case
        match where:
            case "ledger.accept_all" if found == "ok":
                invariants.those_accepted_were_asked(self._world.ledger.round(args[0], args[2]), args[3])
                self.accepted[args[2]] |= {client: entry["blob"]["key"] for client, entry in args[3].items()}
            case "ledger.exclude":
                self.accepted[args[2]].pop(args[3], None)
            case "ledger.fail_round":
                self.accepted.pop(args[2], None)
            case "ledger.claim":
                self._claimed(found)
            case "ledger.restore" if found:
                self.uncounted = args[0].round + 1
            case "ledger.commit_round" | "ledger.advance":
                invariants.totals_are_the_manifests(self._world, self.uncounted)
            case "ledger.open_round":
                self._opened(*args)
            case "blobs.put_json" if args[0].endswith("/manifest.json"):
                self._manifest(parts.joined(self._world.blobs, args[0], args[1]))  # type: ignore[arg-type]
            case "blobs.put_json" if args[0].endswith("/evaluation.json"):
                self._evaluated(who, parts.joined(self._world.blobs, args[0], args[1]))  # type: ignore[arg-type]
            case "blobs.delete" | "blobs.remove":
                keeping.nothing_needed_is_gone(self._world, self.manifests)
            case "roster.alive":
                self.looked.add(who)
            case "bus.publish":
                self._published(who, args[0])

    def _claimed(self, fence: int) -> None:
        last = max(self.manifests, default=-1)
        if last >= 0 and self._world.blobs.exists(names.evaluation_blob(JOB, last)):
            self.evaluated[last] = fence
        if last + 1 not in self.opened and invariants.is_enough(self._world, last):
            self.enough[fence] = last

    def _evaluated(self, who: str, record: Mapping[str, Any]) -> None:
        place = who, record["round"]
        keeping.evaluation_is_whole(self._world.spec, record, self.evaluators[place], self.testers[place])
        job, number = self._world.job(), record["round"]
        if job is None or job.owner != who:
            return
        self.evaluated[number] = job.fence
        last = max(self.manifests)
        waited_for = self._world.now < self.committed[last] + self._world.spec.evaluate.deadline
        if number == last and last + 1 not in self.opened and waited_for and invariants.is_enough(self._world, last):
            self.enough[job.fence] = last

    def _opened(
        self, _: str, fence: int, number: int, ___: int, cohort: tuple[str, ...], __: float, carried: dict[str, int]
    ) -> None:
        self.opened.add(number)
        enough = self.enough.get(fence) == number - 1 and invariants.is_enough(self._world, number - 1)
        hold(not enough, f"P5: round {number} is opened, and the one before was enough")
        # With an attempt that is abandoned, all are told to stop.
        if not self._world.blobs.exists(names.abandoned_blob(JOB, number, 1)):
            staleness = self._world.spec.max_staleness
            invariants.those_at_work_are_not_asked_again(self.manifests, number, cohort, carried, staleness)

    def _manifest(self, manifest: Manifest) -> None:
        number, world, made = manifest["round"], self._world, self._world.trainers.training.made
        before = self.manifests.get(number)
        invariants.one_model_per_round(before, manifest)
        if before is not None:
            return
        self.manifests[number], self.committed[number] = manifest, world.now
        counted = {client for client, key in self.accepted[number].items() if key not in self.lost}
        invariants.every_accepted_update_counts(counted, manifest)
        invariants.base_is_the_model_before(self.manifests, manifest)
        invariants.each_client_once(self.manifests, manifest)
        invariants.batches_count_as_one(made, manifest)
        invariants.holds_no_garbage(made, self.manifests, manifest, world.spec.max_staleness)
        keeping.what_is_named_is_there(world, manifest)
        invariants.is_made_of_its_updates(world, self.manifests, manifest)
        keeping.states_follow_what_counted(made, self.manifests, manifest)
        keeping.memory_follows_the_rounds(world, self.manifests, manifest)
        if self.evaluated.get(number - 1) == manifest["fence"]:
            keeping.evaluations_are_remembered(world, manifest)

    def _published(self, who: str, event: Any) -> None:
        match event:
            case RoundEnd(outcome="committed"):
                invariants.told_of_what_is_recorded(self.manifests.get(event.round), event)
            case RoundStart():
                self.asks[event.round, event.attempt, event.fence] += 1
                invariants.asks_are_bounded(self._world, event, self.asks[event.round, event.attempt, event.fence])
                keeping.asks_with_what_is_kept(self._world, self.manifests, event, owned=self._owns(event.fence))
            case EvaluateModel():
                if not event.clients:
                    self.testers[who, event.round].add(event.group)
                elif who in self.looked:
                    self.evaluators[who, event.round].clear()
                    self.looked.discard(who)
                self.evaluators[who, event.round].update(event.clients)
                keeping.asks_about_the_model(self.manifests, event)
            case TrainingEnd():
                recorded = self._world.blobs.exists(names.result_blob(event.job))
                hold(recorded, "P3: the end is told before it is recorded")

    def _owns(self, fence: int) -> bool:
        record = self._world.job()
        return record is not None and record.fence == fence

    def state_missed(self, order: TrainTask, why: str) -> None:
        """A client's state is not in the store: only where nobody waits for what it is for."""
        wanted = order.round > max(self.manifests, default=-1) and self._owns(order.fence)
        hold(not wanted, f"P3: round {order.round} needs a state: {why}")

    def check(self) -> None:
        """After each step."""
        record = self._world.job()
        if record is None:
            return
        invariants.rounds_move_forward(self.round, record)
        self.round = record.round
        invariants.claims_are_bounded(record)

    def check_end(self) -> None:
        """When all is over."""
        record = self._world.job()
        assert record is not None
        invariants.totals_are_the_manifests(self._world, self.uncounted)
        invariants.the_end_is_recorded(self._world, record, self.manifests)
