"""A seed as a story: the job, who is there, what goes wrong, and how it must end."""

import functools
from collections.abc import Callable
from random import Random
from typing import Any

from shared.job.job_spec import JobSpec
from tests.simulation.nemesis import Nemesis
from tests.simulation.world import World

STEPS = 400  #: until all faults cease
FAIR = 0.6  #: of the seeds: every client answers at last, so that the end is known

Document = dict[str, Any]


def job(random: Random, *, fair: bool) -> JobSpec:
    """A job of a few clients; a fair one waits for all that it asks, as often as it takes."""
    clients = random.randint(3, 5)
    silos = random.random() < 0.3
    rounds: dict[str, Any] = {"count": random.randint(1, 4), "deadline": random.choice((10.0, 30.0))}
    select: dict[str, Any] = {"name": "all"}
    if fair:
        rounds |= {"below_minimum": "retry", "attempts": 100}
    else:
        target = random.randint(2, clients - 1)
        rounds |= {"target": target, "minimum": random.randint(1, target), "wait": 300.0}
        rounds |= {"below_minimum": random.choice(("fail", "retry")), "attempts": random.randint(1, 3)}
        if random.random() < 0.5:
            select = {"name": "random", "clients": target, "over_select": clients / target}
    where = {"silos": [f"silo-{number}" for number in range(clients)]} if silos else {"pool": "cpu"}
    data = {"name": "tests:data"} if silos else {"name": "digits", "clients": clients}
    document = {
        "name": "sim",
        "seed": random.randint(0, 3),
        "model": {"name": "softmax"},
        "data": data,
        "rounds": rounds,
        "select": select,
        "evaluate": {"every": random.randint(0, 1)},
        "keep_updates": random.random() < 0.3,
        **where,
    }
    for share, twists in ((STRATEGIC, STRATEGIES), (EVALUATED, EVALUATIONS), (SELECTIVE, SELECTIONS)):
        if random.random() < share:
            random.choice(twists)(random, document, clients)
    return JobSpec.model_validate(document)


def is_determined(spec: JobSpec) -> bool:
    """Whether it is known whose updates each model is made of, where all answer."""
    return spec.cohort_size == spec.population == spec.target == spec.minimum


# --- what makes a job more than plain averaging -------------------------------------------------


def optimized(random: Random, document: Document, _: int) -> None:
    """The server keeps something from round to round."""
    weights = random.choice(("examples", "equal"))
    document["strategy"] = {"name": random.choice(("fedadam", "fedavgm")), "weights": weights}


def controlled(_: Random, document: Document, __: int) -> None:
    """So do the clients, and the server."""
    document["strategy"] = {"name": "scaffold"}


def robust(random: Random, document: Document, clients: int) -> None:
    """Updates are read again from the store when the round is closed."""
    least = document["rounds"].get("minimum", clients)
    name = random.choice(("median", "multikrum")) if least >= 3 else "median"
    document["strategy"] = {"name": name} | ({"byzantine": 0, "keep": 2} if name == "multikrum" else {})


def buffered(random: Random, document: Document, clients: int) -> None:
    """Rounds do not wait for each other; now and then they do, because the buffer takes everybody."""
    rounds = document["rounds"]
    most = rounds.pop("target", clients)
    size = most if random.random() < 0.3 else random.randint(1, most - 1)
    rounds["minimum"] = min(rounds.get("minimum", size), size)
    rounds["count"] += random.randint(0, 2)
    document["strategy"] = {"name": "fedbuff", "buffer_size": size, "max_staleness": random.randint(0, 3)}


def small_models(random: Random, document: Document, clients: int) -> None:
    """Models go down as a compressed difference, and what that leaves out is kept, or lost."""
    encoding = random.choice(({"name": "bf16"}, {"name": "int8", "block": 8}, {"name": "topk", "ratio": 0.5}))
    if random.random() < 0.3:
        random.choice((optimized, robust))(random, document, clients)
    document["compress"] = {"model": {**encoding, "error_feedback": random.random() < 0.7}}


def small_updates(random: Random, document: Document, clients: int) -> None:
    """So do updates, on their way up; what is left out, each client keeps."""
    if random.random() < 0.3:
        buffered(random, document, clients)
    document["compress"] = {"update": random.choice(({"name": "int8", "block": 8}, {"name": "topk", "ratio": 0.25}))}


def batches(random: Random, document: Document, clients: int) -> None:
    """Trainers fold the updates of several clients."""
    if "pool" not in document:
        return
    document["rounds"]["clients_per_task"] = random.randint(2, 3)
    if random.random() < 0.3:
        optimized(random, document, clients)


def on_clients(random: Random, document: Document, _: int) -> None:
    """Models are evaluated on what clients hold out."""
    document["evaluate"] = {"every": 1, "where": random.choice(("clients", "both")), "deadline": 20.0}
    document["data"]["local_test"] = 0.2


def early(random: Random, document: Document, clients: int) -> None:
    """A job ends once its model is good enough, or gets no better."""
    if random.random() < 0.3:
        on_clients(random, document, clients)
    document["rounds"]["count"] += 2
    wanted = random.choice(({"patience": random.randint(1, 2)}, {"target": 0.7}, {"patience": 1, "min_delta": 0.3}))
    where = document["evaluate"].get("where", "server")
    metric = "local_accuracy_mean" if where == "clients" else "accuracy"
    document["evaluate"] |= {"every": 1, "deadline": 20.0, "stop": {"metric": metric, **wanted}}


def guided(random: Random, document: Document, clients: int) -> None:
    """Who trains depends on what was known of the clients."""
    name = random.choice(("round_robin", "power_of_choice", "oort"))
    least = document["rounds"].get("target", document.get("strategy", {}).get("buffer_size", 3))
    document["select"] = {"name": name, "clients": random.randint(least, clients)}


Twist = Callable[[Random, Document, int], None]  #: of so many clients

STRATEGIC, EVALUATED, SELECTIVE = 0.5, 0.25, 0.15  #: shares of the jobs
STRATEGIES: tuple[Twist, ...] = (
    optimized, controlled, controlled, robust, buffered, buffered, small_models, small_updates, batches, batches,
)  # fmt: skip
EVALUATIONS: tuple[Twist, ...] = (on_clients, early)
SELECTIONS: tuple[Twist, ...] = (guided,)

# --- a story ------------------------------------------------------------------------------------


def world_of(seed: int) -> tuple[World, bool]:
    """The world of a seed, and whether its end is known."""
    random = Random(seed)  # noqa: S311 - no secret
    fair = random.random() < FAIR
    spec = job(random, fair=fair)
    nemesis = Nemesis(random, fair=fair)
    return World(spec, random, nemesis, replicas=random.randint(1, 3)), fair


def tell(seed: int, steps: int = STEPS, trace: Callable[[World, str], None] | None = None) -> World:
    """Runs a seed to its end; `AssertionError` where a promise is broken."""
    world, fair = world_of(seed)
    if trace is not None:
        world.trace = functools.partial(trace, world)
    with world.installed():
        world.begin()
        world.run(steps)
    if fair:
        ended_well(world)
    return world


def ended_well(world: World) -> None:
    """All clients answered: the job has finished, and where that is determined, in the model it always ends in."""
    record, spec = world.job(), world.spec
    assert record is not None
    assert record.status == "finished", f"P5: all clients answered, and the job {record.status}: {record.detail}"
    if is_determined(spec):
        last = max(world.observer.manifests)  # it may end early
        found, expected = digest_of(world, last), undisturbed(spec.model_dump_json())[last]
        assert found == expected, f"P3: ended in {found[:8]}, undisturbed in {expected[:8]}"


def digest_of(world: World, number: int) -> str:
    digest: str = world.observer.manifests[number]["model"]["digest"]
    return digest


@functools.cache
def undisturbed(spec: str) -> list[str]:
    """Each round's model of a job that nothing befalls, and that does not end early."""
    random = Random(0)  # noqa: S311 - no secret
    nemesis = Nemesis(random)
    nemesis.cease()
    whole = JobSpec.model_validate_json(spec)
    evaluate = whole.evaluate.model_copy(update={"stop": None})
    world = World(whole.model_copy(update={"evaluate": evaluate}), random, nemesis)
    with world.installed():
        world.begin()
        world.run(0)
    return [digest_of(world, number) for number in range(whole.rounds.count + 1)]
