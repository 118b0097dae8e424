"""The model that a job begins with is held to the same on both sides."""

import numpy as np
import pytest

from services.trainer.slot.client import check_initial
from shared.aggregation import weights
from shared.errors import BadInput, Refused
from shared.job import job_spec
from shared.job.catalog.rounds import LimitsSpec

LAYOUT = weights.layout_of({"bn.running_mean": ("F32", (3,)), "w": ("F32", (2, 2)), "seen": ("I64", ())})


def model(**values: float) -> weights.File:
    """A whole file of zeros, but for one value each of some tensors."""
    file = LAYOUT.empty_file()
    for name, view in LAYOUT.views(file).items():
        view[...] = 0
        if name in values:
            view.flat[-1] = values[name]
    return file


def spec(**model: object) -> job_spec.JobSpec:
    return job_spec.parse(
        {
            "name": "t",
            "model": {"name": "softmax", **model},
            "data": {"name": "digits", "clients": 2},
            "rounds": {"count": 1},
            "limits": {"max_model_mb": 1},
            "pool": "cpu",
        }
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_tensor_that_is_not_finite_is_named(value: float) -> None:
    """Parameter or statistic."""
    weights.check_initial_model(model(w=3.0e38), LAYOUT)
    with pytest.raises(Refused, match=r"the model's tensor bn.running_mean holds NaN or Inf"):
        weights.check_initial_model(model(**{"bn.running_mean": value}), LAYOUT)


def test_a_buffer_that_is_not_finite_may_be_a_mask() -> None:
    """Attention is masked by -inf, and such a buffer need not travel."""
    layout = weights.layout_of({"mask": ("F32", (3,)), "w": ("F32", (2,))}, {"mask"})
    file = layout.empty_file()
    layout.flat(file)[:] = [0, 0, 0, -np.inf, 0]
    with pytest.raises(Refused, match=r"tensor mask holds .*; where it is a mask, register it with persistent=False"):
        weights.check_initial_model(file, layout)


def test_a_model_without_parameters_is_nothing_to_train() -> None:
    """Integers alone are not learned."""
    layout = weights.layout_of({"seen": ("I64", ())})
    with pytest.raises(Refused, match=r"nothing to train"):
        weights.check_initial_model(layout.empty_file(), layout)


def test_a_model_is_as_long_as_the_job_allows() -> None:
    """And no byte longer than its megabytes."""
    weights.check_model_size(2 << 20, LimitsSpec(max_model_mb=2))
    with pytest.raises(Refused, match=r"limits\.max_model_mb is 2"):
        weights.check_model_size(3 << 20, LimitsSpec(max_model_mb=2))


def test_a_trainer_sends_no_initial_model_that_would_be_refused() -> None:
    """It says where the values come from: the file that the job begins with, or the model's own code."""
    check_initial(model(), LAYOUT, spec())
    with pytest.raises(
        BadInput,
        match=r"^model\.start, base\.safetensors: the model's tensor w holds NaN or Inf, or values beyond float32$",
    ):
        check_initial(model(w=np.nan), LAYOUT, spec(start="base.safetensors"))
    with pytest.raises(BadInput, match=r"^model, softmax: the model's tensor w holds"):
        check_initial(model(w=np.nan), LAYOUT, spec())
