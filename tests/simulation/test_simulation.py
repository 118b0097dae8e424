"""The aggregator in a world that fails: many seeds, a machine that searches, and bugs planted to see that both look."""

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from services.aggregator import (
    client_history,
    committing,
    ending,
    evaluating,
    job_state,
    manifests,
    protocol,
    receiving,
    recovery,
    takeover,
)
from services.aggregator.accumulator import Accumulator
from services.aggregator.client_history import ClientHistory
from services.aggregator.context import JobContext
from services.aggregator.coordinator import Coordinator
from services.aggregator.evaluation import Evaluation
from services.aggregator.leases import JobLeases
from shared.aggregation import fold, weights
from shared.aggregation.fold import Measures
from shared.errors import Fenced, Unavailable
from shared.job.job_spec import JobSpec
from shared.process import failpoints
from shared.record import archive
from shared.record.rounds import AcceptedUpdate
from shared.redis.ledger import Ledger
from tests.simulation import model, nemesis, story
from tests.simulation.invariants import JOB
from tests.simulation.nemesis import Nemesis
from tests.simulation.world import World

STEPS = 60_000  #: at least, over all seeds
BUDGET = 300  #: seeds that must find a planted bug
FIRST = 1  #: of the seeds that are always told


def told(seed: int) -> World:
    """A seed's story; where it ends badly, how to hear it alone."""
    try:
        return story.tell(seed)
    except Exception as error:
        pytest.fail(f"seed {seed}: {error}\nalone: python -m tests.simulation --seed {seed} --steps {story.STEPS}")


def test_promises_hold_whatever_fails() -> None:
    """Kills at every boundary, zombies, a Redis that forgets: a job ends as if nothing had been; each fault was met."""
    today = int(os.environ.get("FEDQ_SIMULATION_SEED", datetime.now(UTC).strftime("%Y%m%d")))
    print(f"seeds from {FIRST} and from {1000 * today}")  # noqa: T201 - for whoever reads of a failure
    total, reached, done, ends, partings = 0, Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for number in range(10_000):
        world = told(FIRST + number // 2 if number % 2 else 1000 * today + number // 2)
        total += world.steps
        reached += world.reached
        done += world.nemesis.done
        partings += world.partings
        record = world.job()
        ends[record.status if record else "gone"] += 1
        if total >= STEPS and len(done) >= len(nemesis.FAULTS):
            break

    assert total >= STEPS
    assert set(done) == set(nemesis.FAULTS), "a fault that was not tried proves nothing"
    assert set(reached) == {name for name in failpoints.POINTS if name.startswith("aggregator.")}
    assert set(ends) >= {"finished", "failed"}
    assert set(partings) >= {"Fenced", "LedgerLost"}
    print(f"{total} steps; faults {dict(done)}; ends {dict(ends)}; partings {dict(partings)}")  # noqa: T201 - figures


def test_a_seed_tells_the_same_story_twice() -> None:
    """So a failure that was printed can be looked at."""
    for seed in range(5):
        first, second = [], []
        story.tell(seed, trace=lambda world, text: first.append((world.steps, world.now, text)))  # noqa: B023
        story.tell(seed, trace=lambda world, text: second.append((world.steps, world.now, text)))  # noqa: B023
        assert first == second


# --- a machine that searches --------------------------------------------------------------------


class Scripted(Nemesis):
    """Does nothing of its own accord: at the boundary that is named next, what is named."""

    def __init__(self) -> None:
        super().__init__(Random(0))  # noqa: S311 - no secret
        self.rates = dict.fromkeys(self.rates, 0.0)
        self.next: tuple[int, str] | None = None
        self.fates: list[str] = []
        self.copied: list[int] = []

    def fate(self, world: World, where: str) -> str | None:
        if self.next is None:
            return None
        left, fate = self.next
        self.next = (left - 1, fate) if left else None
        return None if left else self._granted(world, fate, where)

    def strike(self, world: World) -> None:
        world.broker.copies = self.copies

    def training_fate(self) -> str:
        return self.fates.pop() if self.fates else "good"

    def copies(self, _: object) -> int:
        return self.copied.pop() if self.copied else 1

    def nap(self) -> float:
        return 20.0

    def cease(self) -> None:
        super().cease()
        self.next, self.fates, self.copied = None, [], []


class Machine(RuleBasedStateMachine):
    """The same world, driven by rules that hypothesis combines and shrinks."""

    def __init__(self) -> None:
        super().__init__()
        self.nemesis = Scripted()
        self.world: World | None = None

    @initialize(seed=st.integers(0, 50))
    def begin(self, seed: int) -> None:
        self.world = World(story.job(Random(seed), fair=True), Random(seed), self.nemesis)  # noqa: S311 - no secret
        self.installed = self.world.installed()
        self.installed.__enter__()
        self.world.begin()

    @property
    def w(self) -> World:
        assert self.world is not None
        return self.world

    @rule(count=st.integers(1, 40))
    def tick(self, count: int) -> None:
        for _ in range(count):
            self.w.step()

    @rule(left=st.integers(0, 60), fate=st.sampled_from(["kill", "stop", "fail"]))
    def at_a_boundary(self, left: int, fate: str) -> None:
        self.nemesis.next = (left, fate)

    @rule(fates=st.lists(st.sampled_from(nemesis.GOOD), max_size=3))
    def trainers_go_wrong(self, fates: list[str]) -> None:
        self.nemesis.fates = fates

    @rule(copies=st.lists(st.sampled_from([0, 2, 3]), max_size=3))
    def messages_are_lost_or_repeated(self, copies: list[int]) -> None:
        self.nemesis.copied = copies

    @rule(
        strike=st.sampled_from(
            [nemesis.kill, nemesis.stop, nemesis.flush, nemesis.save, nemesis.disconnect, nemesis.delete_queue,
             nemesis.trainer_leaves, nemesis.hand_over]
        )
    )  # fmt: skip
    def strike(self, strike: Callable[[World], None]) -> None:
        strike(self.w)

    @rule()
    def roll_back(self) -> None:
        nemesis.rollback(self.w)

    @rule()
    def fail_a_server(self) -> None:
        self.nemesis.outage(self.w)

    def teardown(self) -> None:
        if self.world is None:
            return
        try:
            if self.world.broken:
                return
            self.world.calm_down()
            story.ended_well(self.world)
        finally:
            self.installed.__exit__(None, None, None)


def test_no_sequence_of_faults_breaks_a_promise() -> None:
    """Hypothesis looks for one, and would show the shortest."""
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=150, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_the_machine_finds_a_planted_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes a message that came twice."""
    counted_twice(monkeypatch)
    brief = settings(
        max_examples=300,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
        derandomize=True,
        database=None,
        report_multiple_bugs=False,
    )
    with pytest.raises(AssertionError, match="P3"):
        run_state_machine_as_test(Machine, settings=brief)


# --- what a seed found once ---------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_an_update_that_redis_forgot_is_not_folded_twice(seed: int) -> None:
    """It was counted, Redis went back to before that, and its message comes again."""
    nemesis = Scripted()
    nemesis.copies = lambda _: 2  # type: ignore[method-assign]
    world = World(story.job(Random(seed), fair=True), Random(seed), nemesis)  # noqa: S311 - no secret
    with world.installed():
        world.begin()
        before = world.ledger.snapshot()
        while not world.observer.accepted[1]:
            before = world.ledger.snapshot()
            world.step()
        world.rollback(before)
        for _ in range(20):
            world.step()
        world.calm_down()

    story.ended_well(world)


def test_an_initial_model_that_came_with_the_end_of_its_attempt_is_no_base_of_the_next() -> None:
    """A client's first answer is refused, which ends the attempt, and its second is taken in with it."""
    machine = Machine()
    machine.begin(seed=0)
    for _ in range(5):
        machine.fail_a_server()
    machine.tick(count=4)
    machine.at_a_boundary(left=0, fate="kill")
    machine.fail_a_server()
    machine.fail_a_server()
    machine.trainers_go_wrong(fates=["die early", "die early", "nan"])
    for _ in range(3):
        machine.fail_a_server()
    machine.tick(count=37)
    machine.teardown()


# --- a test set that not everybody has -----------------------------------------------------------


@pytest.mark.parametrize("where", ["server", "both"])
@pytest.mark.parametrize("seed", [2, 3], ids=["the last silo has one", "nobody has one"])
def test_a_test_set_is_looked_for_once_and_what_nobody_measured_is_said(seed: int, where: str) -> None:
    """Each silo is asked until one has a test set, which alone is asked from then on."""
    silos = [f"silo-{number}" for number in range(3)]
    document = {
        "name": "sim",
        "seed": seed,
        "model": {"name": "softmax"},
        "data": {"name": "tests:data", "local_test": 0.2},
        "rounds": {"count": 3},
        "evaluate": {"where": where},
        "silos": silos,
    }
    world = told_quietly(JobSpec.model_validate(document))
    asked: dict[int, set[str]] = {}
    for (_, number), testers in world.observer.testers.items():
        asked.setdefault(number, set()).update(testers)
    record = world.job()
    assert record is not None
    said = "no silo that is there has a test set, and the model was not measured on any"
    faults = [line["detail"] for line in world.ledger.log(JOB) if line["fault"] == "not-evaluated"]

    assert record.status == "finished"
    assert set().union(*asked.values()) == set(silos)
    if seed == 2:
        assert asked[3] == {"silo-2"}
        assert (record.detail, faults) == ("", [])
        assert record.metrics["accuracy"] > 0
    else:
        assert not asked.get(3)
        assert record.detail.startswith(said)
        assert len(faults) == 1
        assert faults[0].startswith(said)


def told_quietly(spec: JobSpec) -> World:
    """The life of a job that nothing befalls."""
    random = Random(0)  # noqa: S311 - no secret
    nemesis = Nemesis(random)
    nemesis.cease()
    world = World(spec, random, nemesis)
    with world.installed():
        world.begin()
        world.run(0)
    return world


# --- planted bugs: does anybody look? -----------------------------------------------------------

Plant = Callable[[pytest.MonkeyPatch], None]


def no_bucket(patch: pytest.MonkeyPatch) -> None:
    """A round that Redis forgot begins without a look at what the store has of it."""
    patch.setattr(recovery, "updates", lambda *_: iter(()))


def blind_close(patch: pytest.MonkeyPatch) -> None:
    """A round is closed with what Redis has, however much was counted, and nobody is unseated where Redis went back."""

    def close(data: model.Data, now: int, keys: list[str], fence: str, _: str) -> str:
        return model.close(data, now, keys, fence, "0")

    patch.setitem(model.RULES, model.steps.CLOSE, close)
    patch.setitem(model.RULES, model.steps.DROP_OWNERS, lambda *_: "ok")


def open_doors(patch: pytest.MonkeyPatch) -> None:
    """Whoever sends an update is counted."""

    def admission(data: model.Data, now: int, keys: list[str], client: str) -> str:
        row = data.get(keys[0])
        if row.get("state") != "open" or int(row["deadline"]) < now:
            return "late"
        return "duplicate" if client in data.get(keys[1]) else "ok"

    patch.setattr(model, "admission", admission)
    patch.setitem(model.RULES, model.steps.ADMISSION, admission)


def counted_twice(patch: pytest.MonkeyPatch) -> None:
    """A repeated update is folded again."""

    def on_duplicate(context: JobContext, state: job_state.State, update: Any) -> Any:
        found = context.edges.ledger.accepted(context.job, state.round, [update.client])
        context.accumulator.count_again(list(AcceptedUpdate.of_ledger("", found).values()))
        return (protocol.Accepted(update.client),)

    patch.setattr(receiving, "_on_duplicate", on_duplicate)


def folded_first(patch: pytest.MonkeyPatch) -> None:
    """An update is folded before the ledger says whether it counts."""
    real = receiving._take_in

    def take_in(context: JobContext, number: int, update: Any) -> str:
        if context.accumulator.model is not None and update.round:
            context.accumulator._round.add(context.accumulator.receive(update, number))
            known = context.accumulator.counted
            context.accumulator.count = lambda pending: known.update(  # type: ignore[method-assign]
                dict.fromkeys(pending.updates, pending.blob.digest)
            )
        return real(context, number, update)

    patch.setattr(receiving, "_take_in", take_in)


def unfrozen(patch: pytest.MonkeyPatch) -> None:
    """The model is made of what is in the fold, whatever was frozen."""

    def advance(accumulator: Accumulator, number: int, cohort: int, accepted: Any) -> Any:
        fold = accumulator._current.aggregation.fold if accumulator._current is not None else None
        if number and fold is not None and fold.weight and accumulator._advanced is None:
            accumulator.counted = {client: update.blob.digest for client, update in accepted.items()}
        return real(accumulator, number, cohort, accepted)

    real = Accumulator.advance
    patch.setattr(Accumulator, "advance", advance)
    patch.setattr(receiving, "_take_in", _accept_alone)


def _accept_alone(context: JobContext, number: int, update: Any) -> str:
    pending = context.accumulator.receive(update, number)
    answer = context.edges.ledger.accept_all(
        context.job, context.fence, number, {client: one.entry for client, one in pending.updates.items()}
    )
    if answer == "ok" and not (update.client.endswith("1") and update.round):  # else its fold is forgotten
        context.accumulator.count(pending)
    return answer


def told_too_soon(patch: pytest.MonkeyPatch) -> None:
    """The round's end is published before the manifest is in the store."""
    real, make, contexts = committing.commit_round, manifests.manifest, []

    def close(context: JobContext, state: job_state.State, number: int) -> Any:
        contexts.append(context)
        return real(context, state, number)

    def manifest(**about: Any) -> Any:
        made = make(**about)
        told = archive.CommittedRound("", made, made.document(), contexts[-1].edges.blobs)
        committing.tell_round_end(contexts[-1], told)
        return made

    patch.setattr(committing, "commit_round", close)
    patch.setattr(manifests, "manifest", manifest)


def old_model(patch: pytest.MonkeyPatch) -> None:
    """A new owner goes on from the model before the last."""
    real = takeover._catch_up

    def catch_up(context: JobContext, record: Any) -> job_state.State:
        known = real(context, record)
        if (committed := known.artifacts.round) > 0:
            before = archive.committed_round(context.edges.blobs, context.job, committed - 1)
            assert before is not None
            context.accumulator.load(before.round.model)
        return known

    patch.setattr(takeover, "_catch_up", catch_up)


def no_deadline(patch: pytest.MonkeyPatch) -> None:
    """Time passes unnoticed, and nobody looks for lost work."""
    real = job_state.step
    quiet = lambda state, what, now: (state, ()) if isinstance(what, protocol.Ticked) else real(state, what, now)  # noqa: E731
    patch.setattr(job_state, "step", quiet)
    patch.setattr(Coordinator, "look_for_lost_work", lambda _: None)


def no_heirs(patch: pytest.MonkeyPatch) -> None:
    """Jobs whose owner died are left alone."""
    patch.setattr(JobLeases, "_adopt", lambda *_: None)


def no_pulse(patch: pytest.MonkeyPatch) -> None:
    """Nobody notices that Redis was emptied."""
    patch.setattr(JobLeases, "_watch_redis", lambda _: None)


def hasty_pulse(patch: pytest.MonkeyPatch) -> None:
    """The first look at a Redis that went back hides it from the others, and from itself where the next call fails."""

    def pulse(data: model.Data, now: int, keys: list[str], known: str) -> list[str]:
        return model.pulse(data, now, keys, "-1")

    def watch(owner: JobLeases) -> None:
        before, now = owner._edges.ledger.pulse("all", owner._pulse)
        went_back, owner._pulse = before < owner._pulse < 2**62, now
        if went_back:
            owner._edges.ledger.drop_owners(now)
            recovery.restore(owner._edges.blobs, owner._edges.ledger)

    patch.setitem(model.RULES, model.steps.PULSE, pulse)
    patch.setattr(JobLeases, "_watch_redis", watch)


def no_end_of_trying(patch: pytest.MonkeyPatch) -> None:
    """A round that fails is tried again for ever."""

    def again(state: job_state.State, _: str) -> Any:
        return job_state.replace(state, phase="looking", attempt=state.attempt + 1, deadline=None), (protocol.Look(),)

    patch.setattr(job_state, "_retry_or_fail", again)


def no_checks(patch: pytest.MonkeyPatch) -> None:
    """An update is folded whatever it holds."""
    patch.setattr(fold, "check", lambda *_: Measures(0.0, 0.0))
    patch.setattr(weights, "check_initial_model", lambda *_: None)


def any_base(patch: pytest.MonkeyPatch) -> None:
    """An update is folded whatever it was trained on."""
    real = Accumulator.receive

    def receive(accumulator: Accumulator, update: Any, number: int) -> Any:
        base = accumulator.bases[update.round].digest if accumulator.model else update.base
        return real(accumulator, update.model_copy(update={"base": base}), number)

    patch.setattr(Accumulator, "receive", receive)


def no_fence(patch: pytest.MonkeyPatch) -> None:
    """Nobody asks whether the job is still ours before its manifest is written."""
    patch.setattr(Ledger, "check_owned", lambda *_: None)


def deaf_to_fences(patch: pytest.MonkeyPatch) -> None:
    """A replica that is told that the job is another's goes on."""
    real = Coordinator._apply_all

    def do(runner: Coordinator, wanted: tuple[protocol.Effect, ...]) -> None:
        for effect in wanted:
            try:
                real(runner, (effect,))
            except Fenced:
                ending.end(*runner._context_and_state, "failed", "fenced")

    patch.setattr(Coordinator, "_apply_all", do)
    patch.setattr(Ledger, "check_owned", lambda *_: None)


def no_fences_at_all(patch: pytest.MonkeyPatch) -> None:
    """The referee lets anybody change a job."""
    real = model.owned
    patch.setattr(model, "owned", lambda data, keys, _: real(data, keys, data.get(keys[0]).get("fence", "")))


def forgotten_server(patch: pytest.MonkeyPatch) -> None:
    """A new owner begins with the server state of no round."""
    real = Accumulator.load
    patch.setattr(Accumulator, "load", lambda accumulator, blob, _=None: real(accumulator, blob))


def forgotten_memory(patch: pytest.MonkeyPatch) -> None:
    """A new owner knows nothing of the clients."""
    patch.setattr(takeover.client_history, "read", lambda _: ClientHistory())


def restless_states(patch: pytest.MonkeyPatch) -> None:
    """A client's state moves when its update comes, whether it counts or not."""
    real = receiving._take_in
    admit = receiving._admit
    states: list[job_state.State] = []

    def remember(context: JobContext, state: job_state.State, update: Any) -> Any:
        states[:] = [state]
        return admit(context, state, update)

    def take_in(context: JobContext, number: int, update: Any) -> str:
        if update.state is not None:
            left = states[0].artifacts
            moved = replace(left.client_history, states={**left.client_history.states, update.client: update.state})
            object.__setattr__(left, "client_history", moved)
        return real(context, number, update)

    patch.setattr(receiving, "_admit", remember)
    patch.setattr(receiving, "_take_in", take_in)


def hasty_broom(patch: pytest.MonkeyPatch) -> None:
    """The states that have just become the clients' are cleared away, and not those that they replace."""
    real = client_history.superseded
    patch.setattr(client_history, "superseded", lambda before, now: real(now, before))


def old_news(patch: pytest.MonkeyPatch) -> None:
    """Whatever round an update answers, as long as its base is known, it counts."""

    def asked(state: job_state.State, client: str) -> int:
        return state.hears if state.hears is not None else state.in_flight.get(client, state.round)  # type: ignore[attr-defined, no-any-return]

    def on_model_update(context: JobContext, state: job_state.State, update: Any) -> Any:
        known = update.round in context.accumulator.bases and update.client in state.cohort
        object.__setattr__(state, "hears", update.round if known else None)
        try:
            return real(context, state, update)
        finally:
            object.__setattr__(state, "hears", None)

    real = receiving.on_model_update
    patch.setattr(job_state.State, "hears", None, raising=False)
    patch.setattr(job_state.State, "asked", asked)
    patch.setattr(receiving, "on_model_update", on_model_update)


def half_a_batch(patch: pytest.MonkeyPatch) -> None:
    """Of a batch, those count whose turn comes before one that cannot."""

    def accept(data: model.Data, now: int, keys: list[str], fence: str, *pairs: str) -> str:
        answer = "ok"
        for place in range(0, len(pairs), 2):
            answer = model.accept(data, now, keys, fence, *pairs[place : place + 2])
            if answer != "ok":
                break
        return answer

    patch.setitem(model.RULES, model.steps.ACCEPT, accept)


def forgotten_flight(patch: pytest.MonkeyPatch) -> None:
    """A new owner does not know who is at work since an earlier round."""
    patch.setattr(takeover, "_in_flight", lambda *_: {})


def endless_flight(patch: pytest.MonkeyPatch) -> None:
    """However long ago a client was asked, its update is waited for."""

    def still_in_flight(_: Any, committed: int, unanswered: Any, carried: Any) -> dict[str, int]:
        return {client: carried.get(client, committed) for client in unanswered}

    def begin(accumulator: Accumulator, cohort: int, number: int) -> None:
        known = dict(accumulator.bases)
        real(accumulator, cohort, number)
        accumulator.bases = known | accumulator.bases

    real = Accumulator.begin
    patch.setattr(job_state, "still_in_flight", still_in_flight)
    patch.setattr(Accumulator, "begin", begin)


def fresh_weights(patch: pytest.MonkeyPatch) -> None:
    """However stale, an update weighs as if it were new."""
    real = AcceptedUpdate.counted.fget
    assert real is not None
    patch.setattr(AcceptedUpdate, "counted", property(lambda own: replace(real(own), staleness=0)))


def first_part(patch: pytest.MonkeyPatch) -> None:
    """An evaluation is over with the first answer."""
    patch.setattr(Evaluation, "complete", property(lambda own: bool(own.answered)))


def mixed_parts(patch: pytest.MonkeyPatch) -> None:
    """An answer that an earlier owner had asked for is taken for one to another question."""
    patch.setattr(evaluating, "part_of", lambda clients: 1 + int(clients[0].rpartition("-")[2]) if clients else 0)


def heard_once(patch: pytest.MonkeyPatch) -> None:
    """An evaluation whose record failed is not heard when it comes again."""

    def on_model_evaluated(context: JobContext, state: job_state.State, event: Any) -> Any:
        try:
            return real(context, state, event)
        except Unavailable:
            known = state.evaluations
            pending = {number: one for number, one in known.pending.items() if number != event.round}
            object.__setattr__(state, "evaluations", replace(known, pending=pending))
            raise

    real = evaluating.on_model_evaluated
    patch.setattr(evaluating, "on_model_evaluated", on_model_evaluated)


def no_progress(patch: pytest.MonkeyPatch) -> None:
    """A new owner does not know how good the models were so far."""
    patch.setattr(takeover, "_recall_progress", lambda *_: {})


def forgotten_figures(patch: pytest.MonkeyPatch) -> None:
    """A new owner does not know what clients found of the last model."""
    real = takeover._catch_up

    def catch_up(context: JobContext, record: Any) -> job_state.State:
        known = real(context, record)
        return replace(known, evaluations=replace(known.evaluations, clients={}))

    patch.setattr(takeover, "_catch_up", catch_up)


def uncounted_commits(patch: pytest.MonkeyPatch) -> None:
    """What a dead owner had in the store, and had not told Redis of, is in no total."""
    advance = model.advance
    patch.setitem(
        model.RULES,
        model.steps.ADVANCE,
        lambda data, now, keys, fence, number, *_: advance(data, now, keys, fence, number),
    )


def guided_by_clients(random: Random, document: story.Document, clients: int) -> None:
    """Selection goes by the clients, which evaluate."""
    story.on_clients(random, document, clients)
    story.guided(random, document, clients)


def early_by_clients(random: Random, document: story.Document, clients: int) -> None:
    """What clients find of a model may end the job."""
    story.on_clients(random, document, clients)
    story.early(random, document, clients)


Focus = tuple[dict[str, float], tuple[Callable[[World], None], ...]]  #: rates of faults, and what may befall the whole
Kind = tuple[story.Twist, ...]  #: what the jobs are like
ANY: Focus = ({}, ())
CLUMSY: Focus = ({"training": 0.5}, ())
DROWSY: Focus = ({"stop": 0.02}, ())
SHAKY: Focus = ({"fail": 0.05, "kill": 0.0}, ())
DEADLY: Focus = ({"kill": 0.01}, ())
FORGETFUL: Focus = ({"strike": 0.03, "fail": 0.03}, (nemesis.flush,))
BACKWARD: Focus = ({"strike": 0.2, "kill": 0.0, "stop": 0.0}, (nemesis.save, nemesis.rollback))

#: The promise that each breaks, how many of the jobs are fair, and the faults that bring it to light.
PLANTED: dict[Plant, tuple[str, float, Focus]] = {
    no_bucket: ("P1", 0.0, FORGETFUL),
    blind_close: ("P1", 0.0, BACKWARD),
    open_doors: ("P2", story.FAIR, CLUMSY),
    counted_twice: ("P3", story.FAIR, ANY),
    folded_first: ("P3", story.FAIR, ANY),
    unfrozen: ("P3", story.FAIR, ANY),
    told_too_soon: ("P3", story.FAIR, ANY),
    old_model: ("P4", story.FAIR, DEADLY),
    no_deadline: ("P5", story.FAIR, ANY),
    no_heirs: ("P5", story.FAIR, DEADLY),
    no_pulse: ("P5", story.FAIR, FORGETFUL),
    hasty_pulse: ("P5", story.FAIR, FORGETFUL),
    no_end_of_trying: ("P6", 0.0, CLUMSY),
    no_checks: ("P7", story.FAIR, CLUMSY),
    any_base: ("P7", story.FAIR, CLUMSY),
    no_fence: ("P7", story.FAIR, DROWSY),
    deaf_to_fences: ("P7", story.FAIR, DROWSY),
    no_fences_at_all: ("P", story.FAIR, DROWSY),
    forgotten_server: ("P3", story.FAIR, DEADLY),
    forgotten_memory: ("P3", story.FAIR, DEADLY),
    restless_states: ("P3", 0.0, CLUMSY),
    hasty_broom: ("P3", story.FAIR, ANY),
    old_news: ("P2", story.FAIR, CLUMSY),
    half_a_batch: ("P2", story.FAIR, CLUMSY),
    forgotten_flight: ("P2", story.FAIR, DEADLY),
    endless_flight: ("P7", story.FAIR, ANY),
    fresh_weights: ("P3", story.FAIR, ANY),
    first_part: ("P2", story.FAIR, ANY),
    mixed_parts: ("P2", story.FAIR, DEADLY),
    heard_once: ("P5", story.FAIR, SHAKY),
    no_progress: ("P5", story.FAIR, DEADLY),
    forgotten_figures: ("P3", story.FAIR, DEADLY),
    uncounted_commits: ("totals", story.FAIR, DEADLY),
}

#: Of bugs that befall some kinds of jobs alone: these.
KINDS: dict[Plant, Kind] = {
    forgotten_server: (story.optimized, story.small_models),
    forgotten_memory: (story.controlled, story.guided),
    restless_states: (story.controlled, story.small_updates),
    hasty_broom: (story.controlled, story.small_updates),
    old_news: (story.buffered,),
    half_a_batch: (story.batches,),
    forgotten_flight: (story.buffered,),
    endless_flight: (story.buffered,),
    fresh_weights: (story.buffered,),
    first_part: (story.on_clients,),
    mixed_parts: (story.on_clients,),
    heard_once: (early_by_clients,),
    no_progress: (story.early,),
    forgotten_figures: (guided_by_clients,),
}


def focus_on(patch: pytest.MonkeyPatch, fair: float, focus: Focus, kind: Kind) -> None:
    real, (rates, strikes) = Nemesis.__init__, focus

    def init(own: Nemesis, *given: Any, **options: Any) -> None:
        real(own, *given, **options)
        own.rates |= rates
        own.strikes = list(strikes) or own.strikes

    patch.setattr(Nemesis, "__init__", init)
    patch.setattr(story, "FAIR", fair)
    if kind:
        patch.setattr(story, "STRATEGIES", kind)
    for share, value in (("STRATEGIC", 1.0 if kind else 0.0), ("EVALUATED", 0.0), ("SELECTIVE", 0.0)):
        patch.setattr(story, share, value)


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_found(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the budget, and by the promise that it breaks."""
    story.undisturbed.cache_clear()
    plant(monkeypatch)
    promise, fair, focus = PLANTED[plant]
    focus_on(monkeypatch, fair, focus, KINDS.get(plant, ()))
    began, found = time.monotonic(), Counter[str]()
    for seed in range(FIRST, FIRST + BUDGET):
        try:
            story.tell(seed)
        except AssertionError as error:
            found[str(error)] += 1
            if str(error).startswith(promise):
                print(f"{plant.__name__}: seed {seed}, {time.monotonic() - began:.1f} s: {error}")  # noqa: T201 - figures
                return
    pytest.fail(f"{BUDGET} seeds did not find that {plant.__doc__} They found {found.most_common(3)}")
