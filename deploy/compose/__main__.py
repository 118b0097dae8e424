"""Runs the stack in containers: `python3 -m deploy.compose up|down|status|logs|demo`.

It needs Docker and the standard library; the images contain fedq and its packages.
"""

import argparse
import os
import sys
from pathlib import Path

from deploy.compose import demo, docker, overview, variables
from deploy.compose.docker import Project
from deploy.compose.stack import ComposeStack
from deploy.native.command import end_in_order, show_anything
from deploy.native.state import locked, write_private
from shared.errors import FedqError
from shared.process import settings_file

SETTINGS = Path(".fedq/env")  #: the file in which `fedq` on this machine looks for the stack
LOCK = Path(".fedq/compose.lock")


def main() -> int:
    arguments = _parser().parse_args()
    end_in_order()
    show_anything()
    try:
        docker.check()
        return int(arguments.run(arguments))
    except FedqError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"The stack cannot use its files: {error}.", file=sys.stderr)
        return 1


def up(project: Project) -> int:
    """Starts every container that is down and waits until all serve; they keep running after this command."""
    with locked(LOCK):
        stack = ComposeStack(project)
        stack.start()
        write_private(SETTINGS, _title(project) + settings_file.lines(stack.environment()))
    print(overview.places(stack))
    return 0


def down(project: Project, *, purge: bool) -> int:
    """Stops and removes the containers of every profile; does nothing if there are none."""
    with locked(LOCK):
        code = project.run("--profile", "*", "down", "--remove-orphans", *(["--volumes"] if purge else []))
        if SETTINGS.exists() and SETTINGS.read_text().startswith(_title(project)):
            SETTINGS.unlink()
    return code


def status(project: Project, *, as_json: bool) -> int:
    """Shows every container and the addresses of the consoles."""
    stack = ComposeStack(project)
    print(overview.as_json(stack) if as_json else overview.as_text(stack))
    return 0


def logs(project: Project) -> int:
    """Shows the output of all containers until Ctrl-C."""
    try:
        return project.run("--profile", "*", "logs", "--follow", "--tail", "50", grace=0)
    except SystemExit:
        return 0  # Ctrl-C is the normal end of this command, not a failure


def _title(project: Project) -> str:
    """The first line of the settings file, which identifies the project that wrote it."""
    return f"# The stack in containers, project {project.name}: written by `up`, removed by `down`.\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m deploy.compose", description="The stack in containers.")
    commands = parser.add_subparsers(metavar="command", required=True)
    whose = argparse.ArgumentParser(add_help=False)
    name = os.environ.get("COMPOSE_PROJECT_NAME") or "fedq"
    whose.add_argument("--project", default=name, metavar="NAME", help="Compose's project (default: %(default)s)")
    whose.add_argument(
        "--env-file", type=Path, default=variables.ENV, metavar="FILE", help="its variables (default: %(default)s)"
    )

    one = commands.add_parser("up", parents=[whose], help="start everything")
    one.set_defaults(run=lambda given: up(_project(given)))

    one = commands.add_parser("down", parents=[whose], help="stop and remove the containers")
    one.add_argument("--purge", action="store_true", help="and the volumes with all data")
    one.set_defaults(run=lambda given: down(_project(given), purge=given.purge))

    one = commands.add_parser("status", parents=[whose], help="show containers and consoles")
    one.add_argument("--json", action="store_true", help="for programs")
    one.set_defaults(run=lambda given: status(_project(given), as_json=given.json))

    one = commands.add_parser("logs", parents=[whose], help="follow what all containers say")
    one.set_defaults(run=lambda given: logs(_project(given)))

    one = commands.add_parser("demo", help="train once, watch, and remove everything")
    one.add_argument("job", type=Path, nargs="?", default=Path("examples/digits.yaml"), help="(default: %(default)s)")
    one.set_defaults(run=lambda given: demo.run(given.job))
    return parser


def _project(given: argparse.Namespace) -> Project:
    return Project(given.project, given.env_file.resolve())


if __name__ == "__main__":
    sys.exit(main())
