"""Description of one silo's data: `python -m services.trainer.data.describe < draft.json`, where its trainer runs.

The answer is JSON: `place` (the file or folder), `examples` and `held_out`, `shape` (of one example), `labels` (how
many examples of each), `columns` and `statistics` of a table, and `problem`: why it does not fit what the job file
says, or null. An error is one line on stderr and exit code 2.
"""

import math
from typing import Any

import numpy as np

from services.trainer.data import dataset
from services.trainer.data.sharing import held_out
from services.trainer.data.source import StoredExamples
from services.trainer.data.split import THERE, answering
from shared.errors import BadInput
from shared.job import job_spec
from shared.job.catalog.data import Csv, InFiles

DIGITS = 6  #: significant digits of a published mean or deviation: it need not be exact, only the same everywhere


def described(draft: job_spec.Draft) -> dict[str, Any]:
    """The document that is printed."""
    data = draft.data
    if not isinstance(data, InFiles):
        raise BadInput(f"data.name is {data.name}: a silo has no file of its own for that")
    place = dataset.place_of(data)
    if place is None or not place.exists():
        raise BadInput(f"each silo's data are only where it is, and there is no {place} here: {THERE}")
    source, problem = _read(data)
    test, _ = held_out(source.y.size, None, data.test_fraction, draft.seed)
    labels = np.bincount(source.y, minlength=len(source.names)).tolist()
    return {
        "place": str(place),
        "examples": source.y.size,
        "held_out": test.size,
        "shape": list(source.shape),
        "labels": dict(zip(source.names, labels, strict=True)),
        "columns": list(source.features) or None,
        "statistics": _statistics(source) if source.features else None,
        "problem": problem,
    }


def _read(data: InFiles) -> tuple[StoredExamples, str | None]:
    """The data as they are, and the reason why they are not as the job file says, if they are not."""
    by_itself: dict[str, Any] = {"scale": True, "statistics": None} if isinstance(data, Csv) else {}
    # Some values are labels only if the job file declares them.
    views: list[dict[str, Any]] = [{**by_itself, "classes": None}, by_itself]
    if isinstance(data, Csv):
        views += [{**view, "columns": None} for view in views]
    try:
        dataset.read_source(data)
        problem = None
    except BadInput as error:
        problem = str(error)
    reason: BadInput | None = None
    for view in views:
        try:
            return dataset.read_source(data.model_copy(update=view)), problem
        except BadInput as error:  # a column holds words, say
            reason = reason or error
    assert reason is not None  # noqa: S101 - for the type checker
    raise reason


def _statistics(source: StoredExamples) -> dict[str, list[float]]:
    means, deviations = source.prepare.offset or (), source.prepare.scale or ()  # in the units of the file, as float64
    return {
        "mean": [_rounded(mean, deviation) for mean, deviation in zip(means, deviations, strict=True)],
        "deviation": [_rounded(deviation, deviation) for deviation in deviations],
    }


def _rounded(value: float, deviation: float) -> float:
    """A number to so many digits that the loss is small against the deviation: more digits for a time in seconds."""
    more = math.floor(math.log10(abs(value) / deviation)) if value else 0
    return float(f"{value:.{DIGITS + max(more, 0)}g}")


if __name__ == "__main__":
    answering(lambda document: described(job_spec.draft(document)))
