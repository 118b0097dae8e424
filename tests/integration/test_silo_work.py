"""A silo's work: on no queue of tasks, and kept by the broker until it is done, whatever befalls the silo."""

import signal

import pytest

from shared import names
from shared.events import EvaluateModel, ModelUpdate
from shared.job.job_spec import JobSpec
from tests.by_hand import WAIT, Federation, digits, until

SILO = ("--client", "north")


def of(name: str, **more: object) -> JobSpec:
    return digits(
        data={"name": "own_job:Ward"}, pool=None, silos=["north"], select={"name": "all"}, train={"name": name, **more}
    )


PLAIN = digits(data={"name": "own_job:Ward"}, pool=None, silos=["north"], select={"name": "all"})


def rounds(federation: Federation) -> int:
    return federation.waiting(names.rounds_queue("north"))


def test_a_silo_has_no_queue_of_tasks_and_a_killed_one_is_given_its_work_again(federation: Federation) -> None:
    """The broker takes the round-start for unsettled until the update is out, and hands it out again."""
    trainer = federation.start(*SILO)
    base = federation.initial(PLAIN, group="north")
    signs = {"signs": str(federation.directory), "seconds": 600}
    federation.ask(1, "north", base=base, spec=of("own_job:patient", args=signs), group="north")
    until((federation.directory / "north-1-began").exists, "north is being trained")

    assert federation.bus.depth(names.tasks_queue("north")) is None
    assert federation.heartbeat(lambda beat: beat.pid == trainer.pid and beat.busy == 1)
    assert rounds(federation) == 0
    trainer.kill()
    trainer.wait()
    until(lambda: rounds(federation) == 1, "its work is there for the next one")
    (federation.directory / "north-1-began").unlink()
    heir = federation.start(*SILO, FEDQ_GRACE_S="0.5")
    until((federation.directory / "north-1-began").exists, "north is being trained again")

    heir.send_signal(signal.SIGTERM)
    assert heir.wait(60) == 0
    until(lambda: rounds(federation) == 1, "what could not be finished is handed back")
    assert federation.updates.empty()


def test_what_a_silo_finishes_while_it_stops_is_settled(federation: Federation) -> None:
    """Its update goes out, and nobody is asked again."""
    trainer = federation.start(*SILO)
    base = federation.initial(PLAIN, group="north")
    signs = {"signs": str(federation.directory), "seconds": 2}
    federation.ask(1, "north", base=base, spec=of("own_job:patient", args=signs), group="north")
    until((federation.directory / "north-1-began").exists, "north is being trained")
    trainer.send_signal(signal.SIGTERM)

    assert trainer.wait(60) == 0
    assert federation.update().error is None
    assert rounds(federation) == 0


@pytest.mark.timeout(400)  # five processes are started, one after the other
def test_work_that_fails_for_the_fifth_time_is_given_up(federation: Federation) -> None:
    """Its tries are counted by the broker; at last it is answered, and the event a dead letter that says whose."""
    federation.start(*SILO)
    base = federation.initial(PLAIN, group="north")
    signs = {"signs": str(federation.directory)}
    federation.ask(1, "north", base=base, spec=of("own_job:deadly", args=signs), group="north")
    update = federation.updates.get(timeout=5 * WAIT)

    assert isinstance(update, ModelUpdate)
    assert (update.client, update.update, update.tries) == ("north", None, 5)
    assert (update.error or "").startswith("given up after 5 tries: ")
    until(lambda: federation.bus.depth(names.DEAD_LETTERS) == (1, 0), "it is a dead letter")
    (letter,) = federation.bus.peek(names.DEAD_LETTERS, 1)
    assert letter.headers["x-fedq-reason"] == "given up by a trainer of north; its log says why"
    assert rounds(federation) == 0


def test_what_is_not_its_own_work_is_no_work_of_a_silo(federation: Federation) -> None:
    """Another's name, several names, somebody else's examples: dead letters, and the silo goes on."""
    federation.start(*SILO)
    base = federation.initial(PLAIN, group="north")
    for cohort in (("south",), ("north", "south"), ()):
        federation.ask(1, *cohort, base=base, spec=PLAIN, group="north")
    federation.bus.publish(
        EvaluateModel(job=federation.job, group="north", round=1, model=base, spec=PLAIN, clients=("south",))
    )
    until(lambda: federation.bus.depth(names.DEAD_LETTERS) == (4, 0), "four dead letters")
    reasons = {letter.headers["x-fedq-reason"] for letter in federation.bus.peek(names.DEAD_LETTERS, 4)}

    assert reasons == {f"{kind} asks north for what is not its own work" for kind in ("round-start", "evaluate-model")}
    federation.ask(1, "north", base=base, spec=PLAIN, group="north")
    assert federation.update().error is None
