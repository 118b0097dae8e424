"""The split of a job's data: `python -m services.trainer.data.split < job.json` prints client by client, by class.

The answer is JSON: `classes` (their names), `clients` (for each the examples of every class, held out ones too), `test`
(the same of the test set, or null), `shape` (of one example), `elsewhere` (silos whose data are not here, and what was
said where they were looked for) and `owners` (of a natural partition: whom each client stands for, and after these who
is left out). An error is one line on stderr and exit code 2.
"""

import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import numpy.typing as npt

from services.trainer.data import dataset
from services.trainer.data.sharing import SharedOut
from shared.errors import BadInput
from shared.job import job_spec, user_code
from shared.job.catalog.data import Shared
from shared.job.job_spec import JobSpec
from shared.process import settings

THERE = "run this there, with FEDQ_DATA_DIR as its trainer has it"
ELSEWHERE = f"each silo's data are only where it is: {THERE}"


def counts(spec: JobSpec) -> dict[str, Any]:
    """The document. A catalog's data are counted by their labels; the user's own are asked for, client by client."""
    found = _loaded(spec)
    elsewhere: dict[str, str] = {}
    owners: tuple[str, ...] = ()
    if isinstance(found, SharedOut):
        names, owners = found.names, found.owners
        clients = {client: found.labels(dataset.index_of(spec, client)) for client in spec.clients}
        test = found.test_labels()
    else:
        names = tuple(map(str, range(found.classes)))
        whole = spec.model_copy(update={"data": spec.data.model_copy(update={"local_test": 0.0})})
        clients = {}
        for client in spec.clients:
            try:
                clients[client] = dataset.of_client(found, whole, client)[1].numpy()
            except BadInput as error:
                if spec.silos is None:
                    raise
                elsewhere[client] = str(error)
        if not clients:
            raise BadInput(f"{next(iter(elsewhere.values()))}; {ELSEWHERE}")
        tested = dataset.of_test(found)
        test = None if tested is None else tested[1].numpy()

    def by_class(labels: npt.NDArray[np.int64]) -> list[int]:
        return [int(count) for count in np.bincount(labels, minlength=len(names))]

    return {
        "classes": list(names),
        "clients": {client: by_class(labels) for client, labels in clients.items()},
        "test": None if test is None else by_class(test),
        "shape": list(found.shape),
        "elsewhere": elsewhere,
        "owners": list(owners),
    }


def _loaded(spec: JobSpec) -> dataset.Dataset:
    try:
        return dataset.load(spec)
    except BadInput as error:
        if spec.silos is None or isinstance(spec.data, Shared):
            raise
        raise BadInput(f"{error}; {ELSEWHERE}") from error


def main() -> None:
    """Reads a job from stdin and prints its split."""
    answering(lambda document: counts(job_spec.parse(document)))


def answering(answer_to: Callable[[Any], dict[str, Any]]) -> None:
    """Prints what `answer_to` makes of the document on stdin, as JSON; an error as one line."""
    try:
        user_code.permit(settings.load(settings.Code).allow, "fedq data")
        with redirect_stdout(sys.stderr):  # the user's code may print, and the answer is JSON alone
            answer = answer_to(_document(sys.stdin.read()))
    except BaseException as error:  # the user's code may do anything, also end the process as if all were well
        kind = [] if isinstance(error, BadInput) else [type(error).__name__]
        words = "; ".join(str(error).split("\n"))
        print("error: " + ": ".join([*kind, *([words] if words else [])]), file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None
    print(json.dumps(answer))  # noqa: T201


def _document(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadInput(f"the job on stdin is no JSON: {error}") from error


if __name__ == "__main__":
    main()
