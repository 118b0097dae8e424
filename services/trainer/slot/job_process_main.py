"""A process for one job with the user's code, started by a slot: `python -m services.trainer.slot.job_process_main`.

It does what a slot does, for no other job, so that no change that the user's code made in it is left for another job.
Each task is one line of JSON, and so is its answer: `{"fate": …, "reason": …}`.
"""

import json
import os
import socket
import sys
import traceback
from typing import Any

from services.trainer.slot import warming
from services.trainer.train_task import HandedBack, TrainTask
from shared.errors import Unavailable
from shared.events import EvaluateModel
from shared.job import user_modules

WARM = "warm"  #: ready for the first task
DONE = "done"  #: the task was answered on the bus
RENEW = "renew"  #: the task was not begun: the user's files are no longer those that this process imported
HANDED_BACK = "handed back"  #: `HandedBack`, with its reason
UNAVAILABLE = "unavailable"  #: `Unavailable`, with its reason


def main() -> None:
    told = json.loads(sys.argv[1])
    warming.settle(told["parent"])
    shown, sys.stderr = sys.stderr, open(os.dup(2), "w", buffering=1)  # noqa: SIM115 - our log survives a close of it
    slot = warming.slot(warming.Place(**told["place"]))
    sys.stderr = shown
    with socket.socket(fileno=told["channel"]) as channel, channel.makefile("r") as asked:

        def say(fate: str, reason: str = "") -> None:
            channel.sendall((json.dumps({"fate": fate, "reason": reason}) + "\n").encode())

        say(WARM)
        for line in asked:
            if user_modules.changed():
                say(RENEW)
                continue
            work, tries = read(json.loads(line))
            try:
                slot.do(work, tries)
            except HandedBack as error:
                say(HANDED_BACK, str(error))
            except Unavailable as error:
                say(UNAVAILABLE, str(error))
            else:
                say(DONE)
            user_modules.take_down()  # now, after the answer, so that no task waits for it


def line(work: TrainTask | EvaluateModel, tries: int) -> bytes:
    """A task as the line that asks for it."""
    document = {"order": isinstance(work, TrainTask), "work": work.model_dump(mode="json"), "tries": tries}
    return (json.dumps(document) + "\n").encode()


def read(document: dict[str, Any]) -> tuple[TrainTask | EvaluateModel, int]:
    """The task in a line that asks for it, and its number of deliveries."""
    kind = TrainTask if document["order"] else EvaluateModel
    return kind.model_validate(document["work"]), document["tries"]


if __name__ == "__main__":
    # A file edited twice in a second may have the time and size of the one that Python compiled before.
    sys.dont_write_bytecode = True
    code = os.EX_SOFTWARE
    try:
        main()
        code = os.EX_OK
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # Python would wait for threads that the user's code left, and fail if stderr is closed
