"""Names of all exchanges, queues, routing keys, Redis keys and object keys; no other module spells one."""

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
    """Name of the queue with the work of `group`: a pool, or the one client that a silo is."""
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
FAULTS = "fedq:faults"  #: hash: fault → number of times that it was seen
TOTALS = "fedq:totals"  #: hash: totals of all rounds that have ended since Redis began to count
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
    """Key of a sorted set of the clients that a round asks, by their places."""
    return f"fedq:job:{job}:round:{number}:cohort"


def staged_key(job: str, number: int, fence: int) -> str:
    """Key of a sorted set in which an owner gathers a cohort that is too long for one call."""
    return f"fedq:job:{job}:round:{number}:cohort:{fence}"


def pulse_key(aggregator: str) -> str:
    """Key of Redis's time when an aggregator last looked; if a later look finds less, Redis went back in time."""
    return f"fedq:pulse:{aggregator}"


def log_key(job: str) -> str:
    """Key of a list with the faults of a job, and the reaction to each."""
    return f"fedq:job:{job}:log"


# --- object store ---------------------------------------------------------------------------


def job_prefix(job: str) -> str:
    return f"jobs/{job}/"


def job_blob(job: str) -> str:
    return f"{job_prefix(job)}job.json"


def start_blob(job: str) -> str:
    """Key of the tensors that the job's model begins with, if the job names any."""
    return f"jobs/{job}/start.safetensors"


def states_prefix(job: str) -> str:
    return f"jobs/{job}/clients/"


def state_blob(job: str, client: str, digest: str) -> str:
    """Key of a pool client's state, kept between rounds: control variates, compression residual, personal layers."""
    return f"{states_prefix(job)}{client}/state-{digest[:12]}.safetensors"


def wanted_blob(job: str) -> str:
    """Key of an operator's request for a job: that it runs, pauses or stops."""
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
    """Key that a trainer writes to test its rights: among the updates of a job whose name no real job can have."""
    return f"{updates_prefix('-', 0)}{trainer}"


def model_blob(job: str, number: int, digest: str) -> str:
    return f"{round_prefix(job, number)}model-{digest[:12]}.safetensors"


def server_blob(job: str, number: int, digest: str) -> str:
    """Key of the server state, which the strategy keeps from round to round."""
    return f"{round_prefix(job, number)}server-{digest[:12]}.safetensors"


def delta_blob(job: str, number: int, digest: str) -> str:
    """Key of the compressed difference of a round's model to the previous one."""
    return f"{round_prefix(job, number)}delta-{digest[:12]}.safetensors"


def history_blob(job: str, number: int, digest: str) -> str:
    """Key of the client history that selection has after a round."""
    return f"{round_prefix(job, number)}history-{digest[:12]}.json"


def histories(job: str, number: int) -> str:
    """Prefix of the keys of client histories, and of their parts."""
    return f"{round_prefix(job, number)}history"


def manifest_blob(job: str, number: int) -> str:
    return f"{round_prefix(job, number)}manifest.json"


def part_blob(record: str, place: int, digest: str) -> str:
    """Key of one part of a record with too many clients for one object: next to it, under the part's digest."""
    return f"{record.removesuffix('.json')}-{place:04d}-{digest[:12]}.json"


def abandoned_blob(job: str, number: int, attempt: int) -> str:
    """Key of the record of an attempt at a round that ended without a model."""
    return f"{round_prefix(job, number)}abandoned-{attempt}.json"


def result_blob(job: str) -> str:
    return f"jobs/{job}/result.json"


def final_model_blob(job: str) -> str:
    return f"jobs/{job}/model.safetensors"


def evaluation_blob(job: str, number: int) -> str:
    return f"{round_prefix(job, number)}evaluation.json"


#: Keys that a trainer may write, in the wildcards of S3's policies: its updates, and the states of pool clients.
TRAINER_WRITES = ("jobs/*/rounds/*/updates/*", "jobs/*/clients/*")
