"""The queues: the name, bindings and arguments of each.

Pure. Code declares only a queue's type. Lengths, limits and dead-lettering are policies (`deploy/definitions.json`),
because a policy can be changed later and a queue's arguments cannot.
"""

from dataclasses import dataclass, field
from typing import Any

from shared import names

QUORUM: dict[str, Any] = {"x-queue-type": "quorum"}

POLICIES = {  #: each policy of `deploy/definitions.json`, and a queue name that it must cover
    "fedq-work": names.COMMANDS,
    "fedq-tasks": names.tasks_queue("any"),
    "fedq-updates": names.updates_queue("any"),
    "fedq-heartbeats": names.HEARTBEATS,
    "fedq-dead-letters": names.DEAD_LETTERS,
}


#: Rights of each of the broker's users in fedq's vhost. A trainer makes its own queues and dead-letters, publishes to
#: the two exchanges, and reads only queues that are meant for trainers.
PERMISSIONS = {
    "operator": {"configure": ".*", "write": ".*", "read": ".*"},
    "trainer": {
        "configure": r"^(trainer\..*|fedq\.events|fedq\.tasks|dead-letters)$",
        "write": r"^(fedq\.events|fedq\.tasks|trainer\..*|amq\.default)$",
        "read": r"^(trainer\..*|fedq\.events|fedq\.tasks)$",
    },
}


@dataclass(frozen=True)
class Queue:
    """A queue and the routing keys that `fedq.events` sends to it."""

    name: str
    bindings: tuple[str, ...] = ()
    arguments: dict[str, Any] = field(default_factory=lambda: dict(QUORUM))
    exclusive: bool = False


def commands() -> Queue:
    """The queue of jobs to start, for which the aggregator replicas compete."""
    return Queue(names.COMMANDS, ("start-training",))


def updates(job: str) -> Queue:
    """The queue of all events that the owner of a job must receive; deleted at training-end."""
    return Queue(
        names.updates_queue(job),
        (
            f"model-update.{job}.*",
            f"model-evaluated.{job}",
            f"stop-training.{job}",
            f"pause-training.{job}",
            "trainer-joined.#",
        ),
    )


def rounds(group: str) -> Queue:
    """The queue of work for a pool's trainers, which compete for it, or for one silo."""
    return Queue(names.rounds_queue(group), (f"round-start.{group}", f"evaluate-model.{group}"))


def notices(trainer: str) -> Queue:
    """The queue of events that tell one trainer to stop work which is no longer needed."""
    return Queue(
        names.notices_queue(trainer),
        ("round-end.#", "training-end.#"),
        arguments={},
        exclusive=True,
    )


def watcher(watcher: str, job: str) -> Queue:
    """The queue of one user who watches one job; it exists only while they watch."""
    return Queue(
        names.watcher_queue(watcher),
        (
            "round-start.#",
            f"model-update.{job}.*",
            f"model-evaluated.{job}",
            f"round-end.{job}",
            f"training-end.{job}",
            f"job-status.{job}",
        ),
        arguments={},
        exclusive=True,
    )


def joining(watcher: str, pool: str) -> Queue:
    """The queue of one user who waits for trainers of a pool."""
    return Queue(names.watcher_queue(watcher), (f"trainer-joined.{pool}",), arguments={}, exclusive=True)


def heartbeats() -> Queue:
    """The queue of heartbeats; old ones are worthless, so it is a classic queue with a message TTL."""
    return Queue(names.HEARTBEATS, ("heartbeat.#",), arguments={"x-queue-type": "classic"})


def dead_letters() -> Queue:
    """The queue of dead letters, each with its reason; operators read it, and no service consumes it."""
    return Queue(names.DEAD_LETTERS)
