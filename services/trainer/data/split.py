"""Who gets what: `python -m services.trainer.data.split < job.json` prints each client's examples by class.

The answer is JSON: `classes` (their names), `clients` (for each the examples of every class, held out ones too), `test`
(the same of the test set, or null) and `shape` (of one example). An error is one line on stderr and exit code 2.
"""

import json
import sys
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import numpy.typing as npt

from services.trainer.data import dataset
from services.trainer.data.sharing import SharedOut
from shared import jobs, settings, user_code
from shared.errors import BadInput
from shared.jobs import JobSpec


def counts(spec: JobSpec) -> dict[str, Any]:
    """What is printed. A catalog's data are counted by their labels; the user's own are asked for, client by client."""
    found = dataset.load(spec)
    if isinstance(found, SharedOut):
        names = found.names
        clients = {client: found.labels(dataset.index_of(spec, client)) for client in spec.clients}
        test = found.test_labels()
    else:
        names = tuple(map(str, range(found.classes)))
        whole = spec.model_copy(update={"data": spec.data.model_copy(update={"local_test": 0.0})})
        clients = {client: dataset.of_client(found, whole, client)[1].numpy() for client in spec.clients}
        tested = dataset.of_test(found)
        test = None if tested is None else tested[1].numpy()

    def by_class(labels: npt.NDArray[np.int64]) -> list[int]:
        return [int(count) for count in np.bincount(labels, minlength=len(names))]

    return {
        "classes": list(names),
        "clients": {client: by_class(labels) for client, labels in clients.items()},
        "test": None if test is None else by_class(test),
        "shape": list(found.shape),
    }


def main() -> None:
    """Reads a job from stdin and prints its split."""
    try:
        user_code.permit(settings.load(settings.Code).allow, "fedq data")
        with redirect_stdout(sys.stderr):  # the user's code may print, and the answer is JSON alone
            answer = counts(jobs.parse(_document(sys.stdin.read())))
    except Exception as error:  # the user's code may do anything
        kind = "" if isinstance(error, BadInput) else f"{type(error).__name__}: "
        print("error: " + kind + "; ".join(str(error).split("\n")), file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None
    print(json.dumps(answer))  # noqa: T201


def _document(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadInput(f"the job on stdin is no JSON: {error}") from error


if __name__ == "__main__":
    main()
