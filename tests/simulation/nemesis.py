"""Who makes things fail, by a seed: each run has its own selection of faults, so that rare ones meet undisturbed."""

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

from shared import names
from shared.redis.ledger import Wanted

if TYPE_CHECKING:
    from tests.simulation.world import World

SERVERS = ("bus", "blobs", "ledger", "roster")
PATIENT = 12  #: claims without a commit after which no replica is killed: a job is given up after some more
GOOD = (
    "die early",
    "die late",
    "repeat",
    "nan",
    "wrong base",
    "wrong shape",
    "stranger",
)  #: a good answer follows these
BAD = ("vanish", "error", "another")


FAULTS = (  #: all that may go wrong with a replica or with the whole
    "kill", "stop", "fail", "flush", "save", "rollback", "outage", "disconnect", "delete_queue", "trainer_leaves",
    "hand_over", "lose_update", "request",
)  # fmt: skip


class Nemesis:
    """Faults at random; with `fair`, none that keeps a client from answering at last."""

    def __init__(self, random: Random, *, fair: bool = True) -> None:
        self._random = random
        self._active = True
        self._saved: list[Any] = []
        self._away: dict[str, float] = {}
        self.done: Counter[str] = Counter()

        def chosen(most: float) -> float:
            return random.choice((0.0, 0.2, 1.0)) * most

        self.rates: dict[str, float] = {
            "kill": chosen(0.01),
            "stop": chosen(0.006),
            "fail": chosen(0.03),
            "strike": chosen(0.03),
            "hear": chosen(0.05),
            "unheard": chosen(1.0),
            "training": chosen(0.3),
            "copy": chosen(0.2),
            "drop": chosen(0.1),
        }
        self._fates = GOOD if fair else GOOD + BAD
        self._slow = random.choice((0.1, 1.0, 5.0))
        strikes: list[Callable[[World], None]] = [
            kill, stop, flush, save, rollback, self.outage, disconnect, delete_queue, trainer_leaves, hand_over,
        ]  # fmt: skip
        self.strikes = random.sample(strikes, random.randint(1, len(strikes)))
        if not fair:
            self.strikes += [lose_update, request]
        self._shuffles = random.random() < 0.5

    # --- what the world asks --------------------------------------------------------------------

    def fate(self, world: "World", where: str) -> str | None:
        """What happens to a replica at a boundary: kill, stop, fail or nothing."""
        if not self._active:
            return None
        moment, _, place = where.partition(" ")
        server = place.partition(".")[0]
        if moment == "before" and may_fail(where) and self._away.get(server, 0.0) > world.now:
            return "fail"
        drawn = self._random.random()
        for fate in ("kill", "stop", "fail"):
            drawn -= self.rates[fate]
            if drawn < 0:
                return self._granted(world, fate, where)
        return None

    def _granted(self, world: "World", fate: str, where: str) -> str | None:
        if fate == "fail" and not may_fail(where):
            return None
        if fate == "kill" and not may_kill(world):
            return None
        if fate == "stop" and where in UNGUARDED:
            return None
        self.done[fate] += 1
        return fate

    def strike(self, world: "World") -> None:
        """Between two steps, something may befall the whole."""
        if self._active and self._random.random() < self.rates["strike"]:
            blow = self._random.choice(self.strikes)
            self.done[getattr(blow, "__name__", "?")] += 1
            blow(world)
        if self._active:
            world.broker.copies = self.copies
            world.broker.shuffled = self._shuffles

    def happens(self, what: str) -> bool:
        return self._active and self._random.random() < self.rates[what]

    def training(self) -> float:
        """Seconds that a client trains."""
        return self._random.expovariate(1 / self._slow)

    def training_fate(self) -> str:
        return self._random.choice(self._fates) if self.happens("training") else "good"

    def nap(self) -> float:
        """Seconds that a process is stopped: often for longer than its lease."""
        return self._random.choice((0.5, 20.0, 20.0, 60.0))

    def copies(self, _: object) -> int:
        """How often a message arrives."""
        if self.happens("drop"):
            return 0
        return 2 if self.happens("copy") else 1

    def cease(self) -> None:
        self._active = False

    # --- what befalls the whole -----------------------------------------------------------------

    def outage(self, world: "World") -> None:
        server = self._random.choice(SERVERS)
        self._away[server] = world.now + self._random.choice((0.5, 5.0, 30.0))
        world.trace(f"{server} is away")


#: Between asking whether one still owns the job and writing what only its owner may, nothing guards the store:
#: S3 has no fence. The simulator looks elsewhere.
UNGUARDED = ("after ledger.check_owned", "before blobs.put_json")


def may_fail(where: str) -> bool:
    """Settling a message and ending a subscription never do; one that could not be begun leaves nothing behind."""
    moment, _, place = where.partition(" ")
    return (
        moment != "at" and not place.startswith("delivery") and place != "bus.cancel" and where != "after bus.consume"
    )


def may_kill(world: "World") -> bool:
    record = world.job()
    return record is None or record.claims < PATIENT


def kill(world: "World") -> None:
    if world.replicas and may_kill(world):
        world.kill(world.random.choice(world.replicas))


def stop(world: "World") -> None:
    """A process is stopped between two steps; it wakes as a zombie, if it was long."""
    if world.replicas:
        replica = world.random.choice(world.replicas)
        replica.stopped_until = world.now + world.nemesis.nap()
        world.trace(f"{replica.name} is stopped")


def flush(world: "World") -> None:
    world.flush()


def save(world: "World") -> None:
    world.snapshots.append(world.ledger.snapshot())


def rollback(world: "World") -> None:
    if world.snapshots:
        world.rollback(world.random.choice(world.snapshots))


def disconnect(world: "World") -> None:
    if world.replicas:
        world.disconnect(world.random.choice(world.replicas))


def delete_queue(world: "World") -> None:
    name = world.random.choice(list(world.broker.queues))
    if name != names.DEAD_LETTERS:
        world.delete_queue(name)


def trainer_leaves(world: "World") -> None:
    trainer = world.random.choice(world.trainers.all)
    world.trainers.leave(trainer)
    world.after(world.random.uniform(0, 60), lambda: world.trainers.come_back(trainer))


def hand_over(world: "World") -> None:
    if world.replicas:
        world.hand_over(world.random.choice(world.replicas))


def lose_update(world: "World") -> None:
    """The store loses a blob that somebody counts on."""
    held = [key for key in world.blobs.held if "/updates/" in key]
    if held:
        key = world.random.choice(held)
        del world.blobs.held[key]
        world.observer.lost.add(key)
        world.trace(f"the store loses {key}")


def request(world: "World") -> None:
    """An operator pauses the job, stops it, or has it go on."""
    status = world.random.choice(("paused", "paused", "running", "stopped"))
    world.want(Wanted(status, "a whim"))
