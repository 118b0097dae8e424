"""MLflow tracking: a job as one run, logged with MLflow's client; no other module imports MLflow.

A job has one run, found by its tag. Figures and settings that the run already has are not logged again.
"""

import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from services.cli.report.trackers import Point, flattened, missing
from shared.errors import BadInput, Unavailable

# MLflow reads these variables when it is imported. An unreachable server is reported within a minute, and no
# telemetry is sent.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

try:
    from mlflow.entities import Metric, Param
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient
except ModuleNotFoundError as error:
    raise missing("mlflow-skinny") from error

logging.getLogger("mlflow").setLevel(logging.ERROR)

EXPERIMENT = "fedq"  #: the experiment if MLFLOW_EXPERIMENT_NAME is not set
TAG = "fedq.job"
STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
METRICS, PARAMS = 1000, 100  #: limits of MLflow for one batch
LONGEST = 500  #: characters of a setting; servers have different limits


class Run:
    """MLflow run of one job at a tracking URI."""

    def __init__(self, uri: str, job: str, spec: Mapping[str, Any]) -> None:
        parts = urlsplit(uri)
        remote = parts.scheme in ("http", "https")
        login, at, _ = parts.netloc.rpartition("@")
        self._secret = login + at  # removed from every error message
        self._place = f"MLflow at {parts.scheme}://{parts.hostname}:{parts.port}" if remote else f"MLflow at {uri}"
        self._failure = Unavailable if remote else BadInput
        self._steps: dict[str, set[int]] = {}  # by metric, the rounds for which the run has a value
        with self._explained():
            self._client = MlflowClient(tracking_uri=uri)
            self._run, self._earlier = self._opened(job)
            # A setting that changed when the job was resumed keeps its old value, because MLflow's parameters are
            # immutable.
            known = self._client.get_run(self._run).data.params
            fresh = [Param(_key(key), value[:LONGEST]) for key, value in flattened(spec) if _key(key) not in known]
            for start in range(0, len(fresh), PARAMS):
                self._client.log_batch(self._run, params=fresh[start : start + PARAMS])

    def _opened(self, job: str) -> tuple[str, bool]:
        """The id of the job's run, and whether the run existed before."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        earlier = self._client.search_runs([experiment], f"tags.`{TAG}` = '{job}'", max_results=1)
        if earlier:
            self._client.update_run(earlier[0].info.run_id, status="RUNNING")
            return earlier[0].info.run_id, True
        return self._client.create_run(experiment, tags={TAG: job}, run_name=job).info.run_id, False

    def add(self, points: Sequence[Point], /) -> None:
        with self._explained():
            fresh = []
            for point in points:
                key = _key(point.tag)
                if point.round not in self._known(key):
                    self._known(key).add(point.round)
                    fresh.append(Metric(key, point.value, int(point.at * 1000), point.round))
            for start in range(0, len(fresh), METRICS):
                self._client.log_batch(self._run, metrics=fresh[start : start + METRICS])

    def end(self, outcome: str | None, at: float | None, /) -> None:
        if outcome is not None:
            with self._explained():
                self._client.set_terminated(self._run, STATUS[outcome], int((at or time.time()) * 1000))

    def _known(self, key: str) -> set[int]:
        """The rounds for which the run has a value of this metric."""
        if key not in self._steps:
            earlier = self._client.get_metric_history(self._run, key) if self._earlier else []
            self._steps[key] = {metric.step for metric in earlier}
        return self._steps[key]

    def _without_secret(self, text: str) -> str:
        return text.replace(self._secret, "") if self._secret else text

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except MlflowException as error:
            raise self._failure(f"{self._place}: {_short(self._without_secret(str(error)))}") from None


def _key(name: str) -> str:
    """Turns a name into one that MLflow accepts."""
    return re.sub(r"[^\w./: -]", "_", name)[:250]


def _short(text: str) -> str:
    first = text.strip().splitlines()[0] if text.strip() else "no reason given"
    return first if len(first) <= 300 else first[:297] + "..."
