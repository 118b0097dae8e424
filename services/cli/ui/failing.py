"""Errors of a command as the user sees them: a sentence and an exit code, never a traceback."""

import errno
import os
import sys
import textwrap
import traceback
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from services.cli.ui import writing
from shared.errors import FedqError

BROKEN_PIPE = 141  #: what a shell reports for a program that a closed pipe ended
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  #: errors of a full disk or an exhausted quota


class Commands(TyperGroup):
    """Group of all commands; the only place that turns an exception into an exit code."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        writing.prepare()  # before any output, because Typer may print first
        return super().main(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        try:
            answer = super().invoke(ctx)
            sys.stdout.flush()  # a closed pipe can still be handled here, but not at exit
        except FedqError as error:
            _fail(str(error), error.exit_code)
        except (typer.Exit, typer.Abort):
            raise
        except BrokenPipeError:
            # The reader is gone, and flushing the rest of the buffer at exit must not raise another error.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(BROKEN_PIPE) from None
        except OSError as error:
            if error.errno not in FULL:
                raise
            _fail(f"the output cannot be written: {error.strerror}", 1)
        except Exception as error:
            if hasattr(error, "format_message"):
                raise  # a mistake in the arguments: Typer explains it and exits with 2
            what = str(error) or "no details"
            _fail(f"unexpected {type(error).__name__}: {what}; FEDQ_LOG_LEVEL=debug shows where", 1)
        return answer


def _fail(sentence: str, code: int) -> NoReturn:
    if os.environ.get("FEDQ_LOG_LEVEL", "").lower() == "debug":
        traceback.print_exc()
    text = f" {sentence}" if "\n" not in sentence else "\n" + textwrap.indent(sentence, "  ")
    writing.note(f"error:{text}")
    raise typer.Exit(code)
