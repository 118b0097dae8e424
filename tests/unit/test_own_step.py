"""The user's own local step: told whom it trains, and held to what it gives back."""

import sys
import types
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from services.trainer import own_step
from shared.catalog.training import CustomTrain
from shared.errors import BadInput, Stale


@pytest.fixture(autouse=True)
def allowed(allow: Callable[..., None]) -> None:
    """The code that the tests of this file name."""
    allow("own_steps.", f"{__name__}.")


def examples(size: int = 4) -> tuple[Tensor, Tensor]:
    return torch.zeros(size, 1), torch.zeros(size, dtype=torch.int64)


def test_own_step_trains_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told whom it trains, gets its args, and its metrics are numbers."""
    module = types.ModuleType("own_steps")
    monkeypatch.setitem(sys.modules, "own_steps", module)

    def step(
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        client: str,
        round: int,  # noqa: A002 - the keyword that the user's step is given
        seed: int,
        scale: float,
    ) -> dict[str, object]:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(scale * round + seed)
        return {"size": len(y), "client": 3}

    module.step = step  # type: ignore[attr-defined]
    module.chatty = lambda *_, **__: {str(number): 0 for number in range(65)}  # type: ignore[attr-defined]
    module.mute = lambda *_, **__: None  # type: ignore[attr-defined]
    model = nn.Linear(1, 1)
    spec = CustomTrain(name="own_steps:step", args={"scale": 10})
    found = own_step.step(model, *examples(), spec, seed=1, client="a", number=2)

    assert found == {"size": 4.0, "client": 3.0}
    assert model.weight.item() == 21
    with pytest.raises(BadInput, match="own_steps:mute gave a NoneType; it gives its metrics as a dict"):
        own_step.step(model, *examples(), CustomTrain(name="own_steps:mute"), seed=1, client="a", number=2)
    with pytest.raises(BadInput, match="own_steps:chatty gave 65 metrics; at most 64"):
        own_step.step(model, *examples(), CustomTrain(name="own_steps:chatty"), seed=1, client="a", number=2)


@pytest.mark.parametrize("name", ["", " loss", "a\nb", "\x1b[31mred", "m" * 65, "\u202eevil"])
def test_a_metrics_name_can_be_printed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """It is a column of a table, and of a file, later; what is wrong with it is shown, and not obeyed."""
    module = types.ModuleType("own_steps")
    monkeypatch.setitem(sys.modules, "own_steps", module)
    module.named = lambda *_, name, **__: {"größe/2 (%)": 1, name: 0}  # type: ignore[attr-defined]
    spec = CustomTrain(name="own_steps:named", args={"name": name})

    with pytest.raises(BadInput, match=r"own_steps:named gave a metric named .*; a name has 1 to 64 char") as caught:
        own_step.step(nn.Linear(1, 1), *examples(), spec, seed=1, client="a", number=2)
    assert str(caught.value).isprintable()
    fine = spec.model_copy(update={"args": {"name": "m" * 64}})
    assert len(own_step.step(nn.Linear(1, 1), *examples(), fine, seed=1, client="a", number=2)) == 2


def test_own_step_may_ask_whether_the_round_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what it gives after that is not wanted, whether it asked or not."""
    module = types.ModuleType("own_steps")
    monkeypatch.setitem(sys.modules, "own_steps", module)
    module.asks = lambda *_, stopped, **__: {"over": stopped()}  # type: ignore[attr-defined]
    spec = CustomTrain(name="own_steps:asks")

    found = own_step.step(nn.Linear(1, 1), *examples(), spec, seed=1, client="a", number=2, stopped=lambda: False)
    assert found == {"over": 0.0}
    with pytest.raises(Stale, match="round 2 is over"):
        own_step.step(nn.Linear(1, 1), *examples(), spec, seed=1, client="a", number=2, stopped=lambda: True)
