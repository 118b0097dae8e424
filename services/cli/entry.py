"""Entry point of the program `fedq`: its imports take a while, and Ctrl-C during them prints no traceback either."""

import sys

INTERRUPTED = 130  #: what a shell reports for a program that Ctrl-C ended


def main() -> None:
    try:
        from services.cli.__main__ import main as command
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    command()
