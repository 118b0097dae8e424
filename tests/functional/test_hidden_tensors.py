"""Parts of a model that its state does not show: refused by name, or put back before each client."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from services.trainer.models.flat import FlatModel
from services.trainer.models.start import begin_with
from shared.errors import BadInput
from shared.job.catalog.training import Kept


class Body(nn.Module):
    """A layer for the cases to add to."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)


def view_beside() -> nn.Module:
    model = Body()
    model.register_buffer("turned", model.layer.weight.data.t(), persistent=False)
    return model


def alias_beside() -> nn.Module:
    model = Body()
    model.register_buffer("again", model.layer.weight.data, persistent=False)
    return model


def expanded() -> nn.Module:
    model = Body()
    model.register_buffer("ones", torch.ones(1).expand(4))
    return model


def extra_state() -> nn.Module:
    class Scaled(Body):
        def get_extra_state(self) -> Tensor:
            return torch.tensor([1.0])

    return Scaled()


def left_out() -> nn.Module:
    class Small(Body):
        def state_dict(self, *_: object, **__: object) -> dict[str, Tensor]:  # type: ignore[override]
            return {"layer.bias": self.layer.bias.detach()}

    return Small()


def in_a_list() -> nn.Module:
    model = Body()
    model.layers = [nn.Linear(2, 2)]  # type: ignore[assignment]
    return model


def plain_tensor() -> nn.Module:
    model = Body()
    model.scale = torch.ones(3, requires_grad=True)
    return model


def parametrized_lstm() -> nn.Module:
    """Its forward reads the list that it had before, and never what is computed of the new parameters."""
    model = nn.Module()
    model.lstm = nn.utils.parametrizations.weight_norm(nn.LSTM(2, 3), "weight_hh_l0")
    return model


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (view_beside, r"model: (layer\.weight and turned|turned and layer\.weight) share memory and are not the same"),
        (alias_beside, r"share memory and one of them is not persistent"),
        (expanded, r"model: ones has one place in memory for several values"),
        (extra_state, r"model: its state_dict has _extra_state, which is no parameter and no buffer"),
        (left_out, r"model: layer\.weight would be trained and not shared"),
        (in_a_list, r"model: layers\[0\]\.weight has requires_grad and is no parameter"),
        (plain_tensor, r"model: scale has requires_grad and is no parameter"),
        (parametrized_lstm, r"model: lstm\._flat_weights\[1\] has requires_grad and is no parameter"),
    ],
)
def test_what_would_be_lost_of_a_model_is_refused(make: Callable[[], nn.Module], words: str) -> None:
    """Each was trained on one trainer alone, or not at all, and nobody was told."""
    with pytest.raises(BadInput, match=words):
        FlatModel(make())


def test_a_personal_view_of_what_is_shared_is_refused() -> None:
    """What the client keeps would be written over what it was sent."""
    model = Body()
    model.part = nn.Parameter(model.layer.weight.data[1:])
    with pytest.raises(BadInput, match=r"layer\.weight and part share memory"):
        FlatModel(model, Kept(personal=("part",)))


def test_what_is_hidden_and_not_trained_is_taken() -> None:
    """A frozen teacher in a list, registered layers in a list, tables that layers share, constants, views."""
    model = Body()
    model.teachers = [nn.Linear(2, 2).requires_grad_(False)]  # type: ignore[assignment]
    model.layers = {"first": model.layer}  # type: ignore[assignment]
    model.first_row = model.layer.weight.data[0]
    model.other = nn.Linear(2, 2)
    table = torch.arange(4.0)
    for module in (model, model.layer, model.other):
        module.register_buffer("table", table, persistent=False)
    flat = FlatModel(model)
    base = flat.save()
    flat.layout.flat(base)[:] = 7
    flat.load(base)

    assert (model.first_row == 7).all()
    assert torch.equal(table, torch.arange(4.0))


class Recurrent(Body):
    """Keeps a hidden state in every way that one may be kept."""

    def __init__(self) -> None:
        super().__init__()
        self.state = torch.zeros(4)
        self.replaced = torch.zeros(4)
        self.register_buffer("cache", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x) + self.state + self.replaced
        out = out if self.cache is None else out + self.cache
        out = out + getattr(self, "calls", 0)
        self.state += 1
        self.replaced = self.replaced + 1
        self.cache = out.detach()
        self.calls = getattr(self, "calls", 0) + 1
        self.register_buffer("late", out.detach(), persistent=False)
        return out


def test_no_client_begins_with_the_hidden_state_that_anothers_left() -> None:
    """Tensors that are no buffers, attributes that were not there, and buffers that had no value."""
    model = Recurrent()
    flat = FlatModel(model)
    base = flat.save()
    found = []
    for _ in range(3):
        flat.load(base)
        found.append([model(torch.ones(3)).detach() for _ in range(2)])

    assert not torch.equal(*found[0])  # it has a state
    for one in found[1:]:
        assert all(torch.equal(*pair) for pair in zip(one, found[0], strict=True))
    flat.load(base)
    assert not hasattr(model, "calls")
    assert "late" not in dict(model.named_buffers())


def test_what_a_client_keeps_is_finite() -> None:
    """Infinite statistics make zeros of what they divide, so that all that is sent is finite."""
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    flat = FlatModel(model, Kept(buffers="local"))
    model(torch.randn(4, 3) * 1e25)

    with pytest.raises(BadInput, match=r"0\.running_var, which the client keeps, holds NaN or Inf"):
        flat.personal()


class ByHand(nn.Module):
    """An adapter of the user's own, named as peft names its own."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = nn.Linear(3, 3)
        self.lora_A = nn.Linear(3, 1, bias=False)
        self.head = nn.Linear(3, 2)


def test_a_start_file_has_the_names_of_the_model(tmp_path: Path) -> None:
    """Whatever they are: only where peft put adapters around layers, they are not those of the file."""
    source, model = ByHand(), ByHand()
    save_file(source.state_dict(), tmp_path / "start")
    begin_with(model, tmp_path / "start")

    for name, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
