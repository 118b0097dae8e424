"""The user's own local step: told whom it trains, and held to what it gives back."""

import os
import random
import sys
import types
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from services.trainer.slot import replies
from services.trainer.training import custom_step
from shared.errors import BadInput, Stale
from shared.job.catalog.training import CustomTrain


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
    found = custom_step.step(model, *examples(), spec, seed=1, client="a", number=2)

    assert found == {"size": 4.0, "client": 3.0}
    assert model.weight.item() == 21
    with pytest.raises(BadInput, match="own_steps:mute gave a NoneType; it gives its metrics as a dict"):
        custom_step.step(model, *examples(), CustomTrain(name="own_steps:mute"), seed=1, client="a", number=2)
    with pytest.raises(BadInput, match="own_steps:chatty gave 65 metrics; at most 64"):
        custom_step.step(model, *examples(), CustomTrain(name="own_steps:chatty"), seed=1, client="a", number=2)


@pytest.mark.parametrize("name", ["", " loss", "a\nb", "\x1b[31mred", "m" * 65, "\u202eevil"])
def test_a_metrics_name_can_be_printed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """It is a column of a table, and of a file, later; what is wrong with it is shown, and not obeyed."""
    module = types.ModuleType("own_steps")
    monkeypatch.setitem(sys.modules, "own_steps", module)
    module.named = lambda *_, name, **__: {"größe/2 (%)": 1, name: 0}  # type: ignore[attr-defined]
    spec = CustomTrain(name="own_steps:named", args={"name": name})

    with pytest.raises(BadInput, match=r"own_steps:named gave a metric named .*; a name has 1 to 64 char") as caught:
        custom_step.step(nn.Linear(1, 1), *examples(), spec, seed=1, client="a", number=2)
    assert str(caught.value).isprintable()
    fine = spec.model_copy(update={"args": {"name": "m" * 64}})
    assert len(custom_step.step(nn.Linear(1, 1), *examples(), fine, seed=1, client="a", number=2)) == 2


def test_own_step_may_ask_whether_the_round_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what it gives after that is not wanted, whether it asked or not."""
    module = types.ModuleType("own_steps")
    monkeypatch.setitem(sys.modules, "own_steps", module)
    module.asks = lambda *_, stopped, **__: {"over": stopped()}  # type: ignore[attr-defined]
    spec = CustomTrain(name="own_steps:asks")

    found = custom_step.step(nn.Linear(1, 1), *examples(), spec, seed=1, client="a", number=2, stopped=lambda: False)
    assert found == {"over": 0.0}
    with pytest.raises(Stale, match="round 2 is over"):
        custom_step.step(nn.Linear(1, 1), *examples(), spec, seed=1, client="a", number=2, stopped=lambda: True)


#: What a step may do to its process.
WAYS: dict[str, Callable[[], Any]] = {
    "gradients": lambda: torch.set_grad_enabled(False),
    "dtype": lambda: torch.set_default_dtype(torch.float64),
    "device": lambda: torch.set_default_device("meta"),
    "threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "deterministic": lambda: torch.use_deterministic_algorithms(True),
    "precision": lambda: torch.set_float32_matmul_precision("medium"),
    "anomalies": lambda: torch.autograd.set_detect_anomaly(True),
    "autocast": lambda: torch.set_autocast_enabled("cpu", True),
    "numpy": lambda: np.seterr(all="raise"),
    "folder": lambda: os.chdir("/"),
    "environment": lambda: os.environ.update(PATH="", OMP_NUM_THREADS="64"),
    "path": sys.path.clear,
    "warnings": lambda: warnings.simplefilter("ignore"),
}


def around() -> list[Any]:
    """What a step finds around it."""
    return [
        torch.is_grad_enabled(), torch.get_default_dtype(), torch.zeros(1).device, torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(), torch.is_anomaly_enabled(),
        torch.is_autocast_enabled("cpu"), np.geterr(), Path.cwd(), dict(os.environ), list(sys.path),
        list(warnings.filters),
    ]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fails", [False, True])
def test_what_a_step_does_to_its_process_is_undone(monkeypatch: pytest.MonkeyPatch, way: str, fails: bool) -> None:
    """Before the next client is trained, and before the model is evaluated; whether it ends well or not."""
    module = types.ModuleType("own_steps")
    monkeypatch.setitem(sys.modules, "own_steps", module)
    seen: list[list[Any]] = []

    def step(model: nn.Module, x: Tensor, y: Tensor, **_: Any) -> dict[str, float]:
        WAYS[way]()
        seen.append(around())
        model.requires_grad_(False)
        if fails:
            raise ZeroDivisionError
        return {}

    module.step = step  # type: ignore[attr-defined]
    before, model = around(), nn.Linear(1, 1)
    with pytest.raises(ZeroDivisionError) if fails else nullcontext():
        custom_step.step(model, *examples(), CustomTrain(name="own_steps:step"), seed=1, client="a", number=2)

    assert seen[0] != before  # the test would be none
    assert around() == before
    assert model.weight.requires_grad


def test_what_a_step_draws_is_its_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same on every trainer, whoever was trained there before; another in another round."""
    module = types.ModuleType("own_steps")
    monkeypatch.setitem(sys.modules, "own_steps", module)

    def step(model: nn.Module, x: Tensor, y: Tensor, **_: Any) -> dict[str, float]:
        return {"torch": float(torch.rand(())), "numpy": float(np.random.random()), "python": random.random()}  # noqa: S311

    module.step = step  # type: ignore[attr-defined]

    def drawn(client: str, number: int) -> dict[str, float]:
        spec = CustomTrain(name="own_steps:step")
        return custom_step.step(nn.Linear(1, 1), *examples(), spec, seed=1, client=client, number=number)

    first = drawn("a", 1)
    others = [drawn("b", 1), drawn("a", 2)]
    assert drawn("a", 1) == first
    assert all(first[name] != other[name] for other in others for name in first)


class Wordless(Exception):
    """An exception that fails when it is asked what it says."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


def test_an_exception_without_words_is_told_by_its_name() -> None:
    """To ask it must not end the process, and be tried until the round is over."""
    assert replies.sentence(Wordless()) == "Wordless"
    assert replies.sentence(ValueError("a\nb")) == "ValueError: a b"


def test_a_fork_that_a_step_lets_return_goes_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    """One answer is given, by the process that was asked; a fork that raises is no failure of the client's."""
    module = types.ModuleType("own_steps")
    monkeypatch.setitem(sys.modules, "own_steps", module)
    forks = []

    def step(*_: Any, fails: bool, **__: Any) -> dict[str, float]:
        forks.append(os.fork())
        if fails and not forks[-1]:
            raise ValueError("in the fork")
        return {}

    step.__module__, module.step = "own_steps", step  # type: ignore[attr-defined]
    asked = os.getpid()
    for fails in (False, True):
        spec = CustomTrain.model_validate({"name": "own_steps:step", "args": {"fails": fails}})
        try:
            custom_step.step(nn.Linear(1, 2), *examples(), spec, seed=1, client="c", number=1)
        finally:
            if os.getpid() != asked:
                os._exit(os.EX_OK)
        assert os.waitstatus_to_exitcode(os.waitpid(forks[-1], 0)[1]) == os.EX_SOFTWARE


def test_an_exception_whose_words_end_the_process_has_none() -> None:
    """Of any kind: `str` of it may do whatever it likes."""

    class Deadly(BaseException):
        def __str__(self) -> str:  # noqa: PLE0307 - it never comes to that
            sys.exit(3)

    assert replies.sentence(Deadly()) == "Deadly"
