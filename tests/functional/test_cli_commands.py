"""The command line as a process: what it prints, loads and ends with."""

import os
import subprocess
import sys

from tests.unit.test_cli_commands import ROOT


def test_a_log_line_never_breaks_into_what_a_command_prints() -> None:
    """Not even one for debugging, which is for standard error."""
    script = "import structlog; from services.cli.servers import Servers; Servers(); structlog.get_logger().debug('x')"
    urls = {"FEDQ_AMQP_URL": "amqp://h", "FEDQ_REDIS_URL": "redis://h", "FEDQ_S3_URL": "http://h"}
    given = {**os.environ, **urls, "FEDQ_S3_ACCESS_KEY": "k", "FEDQ_S3_SECRET_KEY": "s", "FEDQ_LOG_LEVEL": "debug"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=given, capture_output=True, text=True, check=True
    )

    assert done.stdout == ""
    assert '"event": "x"' in done.stderr


def test_a_closed_pipe_ends_quietly() -> None:
    """As any program that writes to `head`."""
    command = [sys.executable, "-c", "from services.cli.__main__ import main; main()", "schema"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(timeout=60)

    assert errors == b""
    assert process.returncode == 141


def test_help_loads_no_driver() -> None:
    """What is slow to import is imported by the command that needs it."""
    heavy = "{'numpy', 'minio', 'pika', 'redis', 'matplotlib', 'pydantic'}"
    script = f"import sys; import services.cli.__main__; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"
