"""Entry of the program `fedq`: importing takes a while, and Ctrl-C ends that without a traceback as well."""

import sys

INTERRUPTED = 130  #: what a shell reports for a program that Ctrl-C ended


def main() -> None:
    try:
        from services.cli.__main__ import main as command
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    command()
