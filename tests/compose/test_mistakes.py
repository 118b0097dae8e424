"""A container that is told something wrong ends at once, with a sentence that names the variable."""

import json
import re
import subprocess

import pytest

from tests.compose.containers import SECONDS, Federation, moment, said

WRONG = [  # a service, one of its variables, what becomes what in it, and how the service ends
    ("trainer", "FEDQ_AMQP_URL", "trainer:", "trainer:not-", 3),
    ("trainer", "FEDQ_AMQP_URL", "fedq$", "another", 3),
    ("trainer", "FEDQ_S3_SECRET_KEY", "^", "not-", 3),
    ("trainer", "FEDQ_S3_BUCKET", "fedq", "another", 3),
    ("aggregator", "FEDQ_REDIS_URL", "redis://:", "redis://:not-", 3),
    ("aggregator", "FEDQ_S3_URL", ".+", "", 2),
    ("registry", "FEDQ_REDIS_URL", "6379", "1", 3),
    ("registry", "FEDQ_AMQP_URL", "amqp:", "http:", 2),
    ("fedq", "FEDQ_REDIS_URL", "redis://:", "redis://:not-", 3),
    ("setup", "FEDQ_TRAINER_AMQP_PASSWORD", ".+", "", 2),
]


@pytest.mark.parametrize(("service", "variable", "old", "new", "code"), WRONG)
def test_a_wrong_setting_ends_a_container(
    federation: Federation, service: str, variable: str, old: str, new: str, code: int
) -> None:
    """Ten seconds after its start at the latest, with one line; the rest is as in the stack that runs."""
    containers = federation.containers
    value = re.sub(old, new, containers.stack.config["services"][service]["environment"][variable])
    name = f"{containers.project.name}-mistaken"
    words = ["run", "--name", name, "--no-TTY", "--no-deps", "--env", f"{variable}={value}", service]
    command = [*containers.words(), *words, *(["jobs"] if service == "fedq" else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
        state = json.loads(said("docker", "inspect", name))[0]["State"]
    finally:
        subprocess.run(["docker", "rm", "--force", name], capture_output=True, check=False)
    told = [line for line in done.stderr.splitlines() if "error: " in line]

    assert done.returncode == code, done.stderr
    assert len(told) == 1, done.stderr
    assert told[0].startswith("error: ")
    assert variable in told[0]
    assert "Traceback" not in done.stderr
    assert moment(state["FinishedAt"]) - moment(state["StartedAt"]) < 10
