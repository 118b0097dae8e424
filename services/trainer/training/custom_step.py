"""The user's own local step, in place of the built-in training."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from services.trainer.training import step_environment
from services.trainer.training.loop import shuffle_seed
from shared.errors import BadInput, Stale
from shared.job import user_code
from shared.job.catalog.training import CustomTrain

METRICS = 64  #: that a client may report: they travel in an event
NAME = 64  #: characters of a metric's name: a column of tables, a file's, a chart's


def step(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    spec: CustomTrain,
    *,
    seed: int,
    client: str,
    number: int,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """The user's own local step, `step(model, x, y, *, client, round, seed, **args) -> dict[str, float]`.

    It trains `model` in place and returns its metrics. Where its signature names `stopped`, it gets a function that
    says whether the round is over, to be asked now and then. What it draws from torch's, numpy's and Python's global
    generators is the same wherever the client is trained in that round.
    """
    function = user_code.find(spec.name, "train")
    given: dict[str, Any] = {"client": client, "round": number, "seed": seed}
    if user_code.takes(function, "stopped"):
        given["stopped"] = stopped
    model.train()
    with step_environment.kept(model, shuffle_seed(seed, client, number, 0)):
        metrics = function(model, x, y, **given, **spec.args)
    if stopped():
        raise Stale(f"round {number} is over")
    if not isinstance(metrics, Mapping):
        raise BadInput(f"train.name: {spec.name} gave a {type(metrics).__name__}; it gives its metrics as a dict")
    try:
        found = {str(name): float(value) for name, value in metrics.items()}
    except (TypeError, ValueError) as error:
        raise BadInput(f"train.name: {spec.name} gave a metric that is no number: {error}") from error
    if len(found) > METRICS:
        raise BadInput(f"train.name: {spec.name} gave {len(found)} metrics; at most {METRICS} are reported")
    for name in found:
        if not (0 < len(name) <= NAME and name.isprintable() and name == name.strip()):
            raise BadInput(
                f"train.name: {spec.name} gave a metric named {name[: NAME + 1]!a}; "
                f"a name has 1 to {NAME} characters that can be printed, and no blank at an end"
            )
    return found
