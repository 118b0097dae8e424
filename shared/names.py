"""Every exchange, queue, routing key, Redis key and object key, and nobody else spells one."""

from typing import Annotated

from pydantic import Field

CLIENT_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$"
JOB_NAME = r"^[a-z0-9]([a-z0-9-]{0,37}[a-z0-9])?$"
JOB_ID = r"^[a-z0-9][a-z0-9-]{0,38}-[a-z0-9]{6}$"

ClientName = Annotated[str, Field(pattern=CLIENT_NAME)]

# --- RabbitMQ -------------------------------------------------------------------------------

EVENTS = "fedq.events"  #: topic exchange that carries every event
TASKS = "fedq.tasks"  #: topic exchange of Celery's tasks

COMMANDS = "aggregator.commands"
HEARTBEATS = "registry.heartbeats"
DEAD_LETTERS = "dead-letters"


def updates_queue(job: str) -> str:
    return f"aggregator.updates.{job}"


def rounds_queue(group: str) -> str:
    """`group` is a pool, or the one client a silo is."""
    return f"trainer.rounds.{group}"


def tasks_queue(group: str) -> str:
    return f"trainer.tasks.{group}"


def notices_queue(trainer: str) -> str:
    return f"trainer.notices.{trainer}"


def watcher_queue(watcher: str) -> str:
    return f"watcher.{watcher}"


# --- Redis ----------------------------------------------------------------------------------

ROSTER = "fedq:roster"
JOBS = "fedq:jobs"
FAULTS = "fedq:faults"  #: hash: fault → how often it was seen
TOTALS = "fedq:totals"  #: hash: what all rounds came to that ended since Redis keeps count
PROBE = "fedq:probe"  #: written by `fedq doctor`, gone in a second


def trainer_key(trainer: str) -> str:
    return f"fedq:trainer:{trainer}"


def job_key(job: str) -> str:
    return f"fedq:job:{job}"


def round_key(job: str, number: int) -> str:
    return f"fedq:job:{job}:round:{number}"


def accepted_key(job: str, number: int) -> str:
    return f"fedq:job:{job}:round:{number}:accepted"


def rejected_key(job: str, number: int) -> str:
    return f"fedq:job:{job}:round:{number}:rejected"


def cohort_key(job: str, number: int) -> str:
    """A sorted set: the clients that a round asks, by their places."""
    return f"fedq:job:{job}:round:{number}:cohort"


def staged_key(job: str, number: int, fence: int) -> str:
    """A sorted set in which an owner gathers a cohort that is too long for one call."""
    return f"fedq:job:{job}:round:{number}:cohort:{fence}"


def pulse_key(aggregator: str) -> str:
    """Redis's time when an aggregator last looked; less than that later, and Redis went back."""
    return f"fedq:pulse:{aggregator}"


def log_key(job: str) -> str:
    """A list: what went wrong in a job, and what was done about it."""
    return f"fedq:job:{job}:log"


# --- object store ---------------------------------------------------------------------------


def job_prefix(job: str) -> str:
    return f"jobs/{job}/"


def job_blob(job: str) -> str:
    return f"{job_prefix(job)}job.json"


def start_blob(job: str) -> str:
    """The tensors that the job's model begins with, where it was given any."""
    return f"jobs/{job}/start.safetensors"


def states_prefix(job: str) -> str:
    return f"jobs/{job}/clients/"


def state_blob(job: str, client: str, digest: str) -> str:
    """What a client of a pool keeps from round to round: control variates, what compression left out, own layers."""
    return f"{states_prefix(job)}{client}/state-{digest[:12]}.safetensors"


def wanted_blob(job: str) -> str:
    """What an operator wants of a job: that it runs, pauses or stops."""
    return f"jobs/{job}/wanted.json"


def rounds_prefix(job: str) -> str:
    return f"jobs/{job}/rounds/"


def round_prefix(job: str, number: int) -> str:
    return f"{rounds_prefix(job)}{number:04d}/"


def updates_prefix(job: str, number: int) -> str:
    return f"{round_prefix(job, number)}updates/"


def update_blob(job: str, number: int, client: str, digest: str) -> str:
    return f"{updates_prefix(job, number)}{client}-{digest[:12]}.safetensors"


def trial_blob(trainer: str) -> str:
    """What a trainer writes to see that it may: among the updates, of a job that has no job's name."""
    return f"{updates_prefix('-', 0)}{trainer}"


def model_blob(job: str, number: int, digest: str) -> str:
    return f"{round_prefix(job, number)}model-{digest[:12]}.safetensors"


def server_blob(job: str, number: int, digest: str) -> str:
    """What the strategy keeps from round to round."""
    return f"{round_prefix(job, number)}server-{digest[:12]}.safetensors"


def delta_blob(job: str, number: int, digest: str) -> str:
    """What makes a round's model of the one before, compressed."""
    return f"{round_prefix(job, number)}delta-{digest[:12]}.safetensors"


def history_blob(job: str, number: int, digest: str) -> str:
    """What selection knows of the clients after a round."""
    return f"{round_prefix(job, number)}history-{digest[:12]}.json"


def histories(job: str, number: int) -> str:
    """Prefix of the keys of what selection knows, and of its parts."""
    return f"{round_prefix(job, number)}history"


def manifest_blob(job: str, number: int) -> str:
    return f"{round_prefix(job, number)}manifest.json"


def part_blob(record: str, place: int, digest: str) -> str:
    """A part of a record that tells of too many clients for one: beside it, under its own digest."""
    return f"{record.removesuffix('.json')}-{place:04d}-{digest[:12]}.json"


def abandoned_blob(job: str, number: int, attempt: int) -> str:
    """How an attempt at a round ended that has no model."""
    return f"{round_prefix(job, number)}abandoned-{attempt}.json"


def result_blob(job: str) -> str:
    return f"jobs/{job}/result.json"


def final_model_blob(job: str) -> str:
    return f"jobs/{job}/model.safetensors"


def evaluation_blob(job: str, number: int) -> str:
    return f"{round_prefix(job, number)}evaluation.json"


#: Where a trainer may write, in the wildcards of S3's policies: its updates, and what pool clients keep between rounds.
TRAINER_WRITES = ("jobs/*/rounds/*/updates/*", "jobs/*/clients/*")
