"""A seed as a story: the job, who is there, what goes wrong, and how it must end."""

import functools
from collections.abc import Callable
from random import Random
from typing import Any

from shared.jobs import JobSpec
from tests.simulation.nemesis import Nemesis
from tests.simulation.world import World

STEPS = 400  #: until all faults cease
FAIR = 0.6  #: of the seeds: every client answers at last, so that the end is known


def job(random: Random, *, fair: bool) -> JobSpec:
    """A job of a few clients; a fair one waits for all of them, as often as it takes."""
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
    return JobSpec.model_validate(
        {
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
    )


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
        record = world.job()
        assert record is not None
        assert record.status == "finished", f"P5: all clients answered, and the job {record.status}: {record.detail}"
        found, expected = final_digest(world), undisturbed(world.spec.model_dump_json())
        assert found == expected, f"P3: ended in {found[:8]}, undisturbed in {expected[:8]}"
    return world


def final_digest(world: World) -> str:
    digest: str = world.witness.manifests[world.spec.rounds.count]["model"]["digest"]
    return digest


@functools.cache
def undisturbed(spec: str) -> str:
    """The final model of a job that nothing befalls."""
    random = Random(0)  # noqa: S311 - no secret
    nemesis = Nemesis(random)
    nemesis.cease()
    world = World(JobSpec.model_validate_json(spec), random, nemesis)
    with world.installed():
        world.begin()
        world.run(0)
    return final_digest(world)
