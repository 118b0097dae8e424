"""The queues of the design: what each is called, what it is bound to, and how it is declared.

Pure. Code declares a queue's type alone; lengths, limits and dead-lettering are policies (`deploy/definitions.json`),
because a queue's arguments can never be changed and a policy can.
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


#: What each of the broker's users may do in fedq's vhost. A trainer makes its own queues and dead-letters, publishes to
#: the two exchanges, and reads only what is meant for trainers.
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
    """Jobs to start: every aggregator replica competes for them."""
    return Queue(names.COMMANDS, ("start-training",))


def updates(job: str) -> Queue:
    """All that the owner of a job must hear; deleted at training-end."""
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
    """Work for a pool's trainers, who compete, or for one silo."""
    return Queue(names.rounds_queue(group), (f"round-start.{group}", f"evaluate-model.{group}"))


def notices(trainer: str) -> Queue:
    """What one trainer must hear to stop work that nobody waits for."""
    return Queue(
        names.notices_queue(trainer),
        ("round-end.#", "training-end.#"),
        arguments={},
        exclusive=True,
    )


def watcher(watcher: str, job: str) -> Queue:
    """One person watching one job, for as long as they watch."""
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
    """One person waiting for trainers of a pool."""
    return Queue(names.watcher_queue(watcher), (f"trainer-joined.{pool}",), arguments={}, exclusive=True)


def heartbeats() -> Queue:
    """Signs of life; old ones are worth nothing, so a classic queue with a message TTL."""
    return Queue(names.HEARTBEATS, ("heartbeat.#",), arguments={"x-queue-type": "classic"})


def dead_letters() -> Queue:
    """Nobody consumes it: a person looks here, and every entry says why."""
    return Queue(names.DEAD_LETTERS)
