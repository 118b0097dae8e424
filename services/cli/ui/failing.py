"""Errors of a command, as a person sees them: a sentence, an exit code, and never a traceback."""

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
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  #: errors of a disk that takes no more


class Commands(TyperGroup):
    """The commands, each ending in the exit code of what it raises. The one place that decides it."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        writing.prepare()  # before the first word, which may be Typer's
        return super().main(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        try:
            answer = super().invoke(ctx)
            sys.stdout.flush()  # here, where a closed pipe is still ours to handle
        except FedqError as error:
            _fail(str(error), error.exit_code)
        except (typer.Exit, typer.Abort):
            raise
        except BrokenPipeError:
            # Nobody reads any more; what is still in the buffer must not complain at exit either.
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
