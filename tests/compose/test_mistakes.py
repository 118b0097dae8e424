"""A container that is told something wrong ends at once, with a sentence that names the variable."""

import re
import subprocess

import pytest

from tests.compose.containers import SECONDS, Federation, now

WRONG = [  # a service, one of its variables, what becomes what in it, and how the service ends
    ("trainer", "FEDQ_AMQP_URL", "trainer:", "trainer:not-", 3),
    ("trainer", "FEDQ_AMQP_URL", "fedq$", "another", 3),
    ("trainer", "FEDQ_S3_SECRET_KEY", "^", "not-", 3),
    ("trainer", "FEDQ_S3_BUCKET", "fedq", "another", 3),
    ("aggregator", "FEDQ_REDIS_URL", "redis://:", "redis://:not-", 3),
    ("aggregator", "FEDQ_S3_URL", ".+", "", 2),
    ("registry", "FEDQ_REDIS_URL", "6379", "1", 3),
    ("registry", "FEDQ_AMQP_URL", "amqp:", "http:", 2),
    ("fedq", "FEDQ_S3_SECRET_KEY", "^", "not-", 3),
    ("setup", "FEDQ_TRAINER_AMQP_PASSWORD", ".+", "", 2),
]


@pytest.mark.parametrize(("service", "variable", "old", "new", "code"), WRONG)
def test_a_wrong_setting_ends_a_container(
    federation: Federation, service: str, variable: str, old: str, new: str, code: int
) -> None:
    """Within ten seconds, with one line that begins with `error: `; the rest is as in the stack that runs."""
    containers = federation.containers
    value = re.sub(old, new, containers.stack.config["services"][service]["environment"][variable])
    words = ["run", "--rm", "--no-TTY", "--no-deps", "--env", f"{variable}={value}", service]
    command = [*containers.words(), *words, *(["jobs"] if service == "fedq" else [])]
    began = now()
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    took = now() - began
    said = [line for line in done.stderr.splitlines() if "error: " in line]

    assert done.returncode == code, done.stderr
    assert len(said) == 1, done.stderr
    assert said[0].startswith("error: ")
    assert variable in said[0]
    assert "Traceback" not in done.stderr
    assert took < 10, f"{took:.1f} s"
