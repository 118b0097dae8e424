"""Mixed precision, as far as it can be seen without a GPU: torch computes in 16 bits on a CPU as well."""

import pytest
import torch
from torch import Tensor, nn

from services.trainer.training import gradients, loop
from shared.job.catalog.training import Adam, Sgd, TrainSpec

CPU = torch.device("cpu")
SPEC = TrainSpec(epochs=2, batch_size=8, optimizer=Sgd(lr=0.1, momentum=0.9), clip_norm=1.0)
MIXED = SPEC.model_copy(update={"precision": "mixed"})


def examples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(20, 6, generator=generator), torch.randint(0, 3, (20,), generator=generator)


def trained(spec: TrainSpec, scale: float = 1.0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    with torch.no_grad():
        model[2].weight.mul_(scale)
    loop.train(model, *examples(), spec, seed=1, client="a", number=1)
    return model


def vector(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def test_a_cpu_computes_in_full_precision() -> None:
    """Silently: a pool may have both."""
    assert gradients.lower_precision(MIXED, CPU) is None
    assert torch.equal(vector(trained(MIXED)), vector(trained(SPEC)))


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_a_gpu_computes_in_what_it_has(monkeypatch: pytest.MonkeyPatch, has_bfloat16: bool) -> None:
    """bfloat16, which needs no scaling, or float16; in neither where the job does not ask for it."""
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: has_bfloat16)

    assert gradients.lower_precision(MIXED, gpu) == (torch.bfloat16 if has_bfloat16 else torch.float16)
    assert gradients.lower_precision(SPEC, gpu) is None


@pytest.mark.parametrize("optimizer", [Sgd(lr=0.1, momentum=0.9), Adam(lr=0.01)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_training_goes_where_full_training_goes(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, optimizer: Sgd | Adam
) -> None:
    """Within the digits of the type: the scale of the loss is no part of the step, nor of the clipping."""
    spec = MIXED.model_copy(update={"optimizer": optimizer})
    full = trained(spec)
    monkeypatch.setattr(gradients, "lower_precision", lambda *_: dtype)
    mixed = trained(spec)

    assert all(parameter.dtype == torch.float32 for parameter in mixed.parameters())
    assert all(parameter.grad is None for parameter in mixed.parameters())
    assert not torch.equal(vector(mixed), vector(full))
    assert torch.allclose(vector(mixed), vector(full), rtol=0, atol=0.05 if dtype == torch.bfloat16 else 0.01)


def test_a_step_that_overflows_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float16; the scale is halved until the gradient fits."""
    monkeypatch.setattr(gradients, "lower_precision", lambda *_: torch.float16)
    one = MIXED.model_copy(update={"steps": 1})
    many = MIXED.model_copy(update={"steps": 12})
    begin = vector(trained(one.model_copy(update={"optimizer": Sgd(lr=1e-30)}), scale=1e3))

    assert torch.equal(vector(trained(one, scale=1e3)), begin)
    found = vector(trained(many, scale=1e3))
    assert not torch.equal(found, begin)
    assert found.isfinite().all()
