"""The model that a job begins with: what it must be, for the trainer that makes it and the aggregator that takes it.

Pure.
"""

import math

from shared.aggregation.weights import File, Layout
from shared.errors import Refused
from shared.job.catalog.rounds import LimitsSpec


def check_size(size: int, limits: LimitsSpec) -> None:
    """`Refused` where a model's file, of `size` bytes, is longer than the job allows."""
    if size > limits.max_model_mb << 20:
        raise Refused(f"the model has {size >> 20} MB; limits.max_model_mb is {limits.max_model_mb}")


def check(file: File, layout: Layout) -> None:
    """`Refused` where nothing of the model in a file can be trained, or a tensor of it is not finite."""
    if layout.size == 0:
        raise Refused("the model has no float32 parameters: there is nothing to train")
    trained = {tensor.name for tensor in layout.trained}
    for name, values in layout.views(file).items():
        # NaN passes through both, so that no array of answers is made.
        if name in trained and values.size and not math.isfinite(float(values.max()) - float(values.min())):
            advice = "; where it is a mask, register it with persistent=False" if name in layout.buffers else ""
            raise Refused(f"the model's tensor {name} holds NaN or Inf, or values beyond float32{advice}")
