"""Runs the native stack: `python -m deploy.native up|down|status|logs|env|demo`."""

import argparse
import os
import shutil
import sys
from pathlib import Path

from deploy.native import demo, overview, processes, services
from deploy.native.command import end_in_order, show_anything
from deploy.native.stack import Role, Stack
from deploy.native.state import locked, write_private
from shared.errors import BadInput, FedqError
from shared.process import settings_file

STOP_SECONDS = 30.0  # time for a trainer to finish the client that it trains


def main() -> int:
    arguments = _parser().parse_args()
    end_in_order()
    show_anything()
    try:
        return int(arguments.run(arguments))
    except FedqError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(
            f"The stack cannot use its files: {error}. Choose others with --dir or FEDQ_NATIVE_CACHE.", file=sys.stderr
        )
        return 1


def up(directory: Path, *, trainers: int, servers_only: bool) -> int:
    """Starts servers and services, which keep running after this command."""
    with locked(_lock(directory)):
        stack = Stack(directory, dies_with_parent=False)
        if stack.state.running():
            return _already(stack)
        print("Starting RabbitMQ, Redis, S3 and fedq's services ...", file=sys.stderr, flush=True)
        try:
            stack.start()
            if not servers_only:
                services.start(stack, trainers=trainers)
            allowed = {"FEDQ_ALLOW": services.allowed()}
            write_private(_settings(stack), settings_file.lines(stack.environment() | allowed))
        except BaseException:
            services.stop(stack, grace=0)
            stack.kill()
            raise
    print(overview.places(stack))
    return 0


def _already(stack: Stack) -> int:
    if dead := [process.name for process in stack.state.processes.values() if not process.alive()]:
        raise BadInput(
            f"The stack in {stack.directory} is running, but {', '.join(dead)} ended:"
            " run `python -m deploy.native down` first."
        )
    print(f"The stack in {stack.directory} is already running.")
    print(overview.places(stack))
    return 0


def down(directory: Path, *, purge: bool) -> int:
    """Stops the services, then the servers; does nothing if none runs."""
    with locked(_lock(directory)):
        stack = Stack(directory, dies_with_parent=False)
        if not stack.state.file.exists():  # a folder without this file belongs to no stack, so it stays untouched
            return 0
        services.stop(stack, grace=STOP_SECONDS)
        stack.stop()
        settings = _settings(stack)
        if settings.exists() and settings.read_text().startswith(settings_file.lines(stack.environment())):
            settings.unlink()
        if purge:
            shutil.rmtree(stack.directory)
    return 0


def status(directory: Path, *, as_json: bool) -> int:
    """Shows every process and the addresses of the consoles."""
    stack = Stack(directory)
    print(overview.as_json(stack) if as_json else overview.as_text(stack))
    return 0


def logs(directory: Path) -> int:
    """Shows the output of all processes until Ctrl-C; for a stopped stack, the last lines."""
    stack = Stack(directory)
    files = [process.log for process in stack.state.processes.values() if process.log.exists()]
    if not files:
        raise BadInput(f"No stack was ever started in {stack.directory}: run `python -m deploy.native up`.")
    tail = shutil.which("tail")
    if tail is None:
        raise BadInput(f"tail is not installed to follow them with; the logs are in {stack.logs}.")
    follow = ["--follow=name", "--retry"] if stack.state.running() else []
    if not follow:
        print(f"Nothing runs in {stack.directory}: these are the last lines.", file=sys.stderr, flush=True)
    try:
        return processes.run([tail, "--lines=20", *follow, *files], environment=os.environ)
    except SystemExit:
        return 0  # Ctrl-C is the normal end of this command, not a failure


def env(directory: Path, role: Role) -> int:
    """Prints the settings of one role."""
    stack = Stack(directory)
    if not stack.state.running():
        raise BadInput(f"No stack is running in {stack.directory}: run `python -m deploy.native up`.")
    sys.stdout.buffer.write(
        settings_file.lines(stack.environment(role)).encode()
    )  # raw bytes keep the settings exact in any terminal encoding
    return 0


def _settings(stack: Stack) -> Path:
    """The file in which `fedq`, run from the repository, looks for the stack: `.fedq/env` for `.fedq/stack`."""
    return stack.directory.with_name("env")


def _lock(directory: Path) -> Path:
    """The lock file of a stack, outside its folder because the folder may be removed and created again."""
    return directory.resolve().with_suffix(".lock")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deploy.native", description="The stack without Docker.")
    commands = parser.add_subparsers(metavar="command", required=True)
    stack = argparse.ArgumentParser(add_help=False)
    stack.add_argument("--dir", type=Path, default=Path(".fedq/stack"), help="its folder (default: %(default)s)")

    one = commands.add_parser("up", parents=[stack], help="start servers and services")
    one.add_argument("--trainers", type=int, default=2, metavar="N", help="how many (default: %(default)s)")
    one.add_argument("--servers-only", action="store_true", help="without fedq's services")
    one.set_defaults(run=lambda given: up(given.dir, trainers=given.trainers, servers_only=given.servers_only))

    one = commands.add_parser("down", parents=[stack], help="stop them")
    one.add_argument("--purge", action="store_true", help="and remove their data")
    one.set_defaults(run=lambda given: down(given.dir, purge=given.purge))

    one = commands.add_parser("status", parents=[stack], help="show processes and consoles")
    one.add_argument("--json", action="store_true", help="for programs")
    one.set_defaults(run=lambda given: status(given.dir, as_json=given.json))

    one = commands.add_parser("logs", parents=[stack], help="follow what all processes say")
    one.set_defaults(run=lambda given: logs(given.dir))

    one = commands.add_parser("env", parents=[stack], help="print the settings that lead to it")
    one.add_argument("--role", choices=["operator", "trainer"], default="operator")
    one.set_defaults(run=lambda given: env(given.dir, given.role))

    one = commands.add_parser("demo", help="train once, watch, and remove everything")
    one.add_argument("job", type=Path, nargs="?", default=Path("examples/digits.yaml"), help="(default: %(default)s)")
    one.set_defaults(run=lambda given: demo.run(given.job, Path(f".fedq/demo-{os.getpid()}")))
    return parser


if __name__ == "__main__":
    sys.exit(main())
