"""SCAFFOLD on the client, against the paper's algorithm in float64 and against what it is for."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from services.trainer.models.flat import FlatModel
from services.trainer.training import loop, strategy_steps
from services.trainer.training.strategy_steps import normaliser
from shared.aggregation.weights import Flat
from shared.job.catalog.training import Sgd, TrainSpec

FEATURES, CLASSES = 3, 4
LR = 0.2
Vector = npt.NDArray[np.float64]


def client_data(index: int, size: int = 20) -> tuple[Tensor, Tensor]:
    """Each client's labels are its own: of two classes, one of them shared with the next client."""
    generator = torch.Generator().manual_seed(index)
    x = torch.randn(size, FEATURES, generator=generator) + index
    return x, (torch.randint(0, 2, (size,), generator=generator) + index) % CLASSES


CLIENTS = [client_data(index) for index in range(3)]


def federated(spec: TrainSpec, rounds: int, *, corrected: bool = True) -> tuple[Vector, list[Flat]]:
    """The weights after so many rounds of all clients with a server learning rate of 1, and the clients' controls."""
    model = FlatModel(_zeros())
    layout = model.layout
    base = model.save()
    server, own = np.zeros(layout.size, np.float32), [np.zeros(layout.size, np.float32) for _ in CLIENTS]
    for number in range(1, rounds + 1):
        deltas, changes = [], []
        for index, (x, y) in enumerate(CLIENTS):
            model.load(base)
            correction = strategy_steps.control_correction(server, own[index], layout) if corrected else None
            found = loop.train(
                model.model, x, y, spec, seed=1, client=f"c{index}", number=number, correction=correction
            )
            delta = layout.of_updates().flat(model.update(base)).copy()
            steps = normaliser(spec, LR, int(found["steps"]))
            own[index], change = strategy_steps.renewed_control(server, own[index], delta, lr=LR, steps=steps)
            deltas.append(delta)
            changes.append(change)
        base = base.copy()
        layout.flat(base)[:] += np.mean(deltas, 0)
        server = server + np.mean(changes, 0)
    return layout.flat(base).astype(np.float64), own


def _zeros() -> nn.Module:
    model = nn.Linear(FEATURES, CLASSES)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


def gradient(weights: Vector, x: Vector, y: npt.NDArray[np.int64], decay: float) -> Vector:
    """Of softmax regression, by hand; weights as a model file holds them, the biases first."""
    bias, matrix = weights[:CLASSES], weights[CLASSES:].reshape(CLASSES, FEATURES)
    logits = x @ matrix.T + bias
    chances = np.exp(logits - logits.max(1, keepdims=True))
    chances /= chances.sum(1, keepdims=True)
    chances[np.arange(len(y)), y] -= 1
    return np.concatenate([chances.mean(0), (chances.T @ x / len(y)).ravel()]) + decay * weights


def by_hand(rounds: int, epochs: int, batch: int, decay: float) -> tuple[Vector, list[Vector]]:
    """Karimireddy et al. 2019, algorithm 1, option II, with every client in every round; float64, without our code."""
    size = CLASSES * (FEATURES + 1)
    x_server, c = np.zeros(size), np.zeros(size)
    c_own = [np.zeros(size) for _ in CLIENTS]
    for number in range(1, rounds + 1):
        models, controls = [], []
        for index, (x, y) in enumerate(CLIENTS):
            y_i, steps = x_server.copy(), 0
            for epoch in range(epochs):
                seed = loop.shuffle_seed(1, f"c{index}", number, epoch)
                for part in torch.randperm(len(y), generator=torch.Generator().manual_seed(seed)).split(batch):
                    g = gradient(y_i, x[part].double().numpy(), y[part].numpy(), decay)
                    y_i -= LR * (g - c_own[index] + c)
                    steps += 1
            models.append(y_i)
            controls.append(c_own[index] - c + (x_server - y_i) / (steps * LR))
        x_server = x_server + np.mean([y_i - x_server for y_i in models], 0)
        c = c + np.mean([new - old for new, old in zip(controls, c_own, strict=True)], 0)
        c_own = controls
    return x_server, c_own


def test_scaffold_is_that_of_the_paper() -> None:
    """Weights and control variates, after rounds of several epochs with a short last batch."""
    spec = TrainSpec(epochs=2, batch_size=6, optimizer=Sgd(lr=LR, weight_decay=0.01))
    found, own = federated(spec, 4)
    expected, controls = by_hand(4, 2, 6, 0.01)

    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    np.testing.assert_allclose(own, controls, rtol=0, atol=2e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_scaffold_ends_where_all_data_in_one_place_would(momentum: float) -> None:
    """Clients that take many steps on what they alone have drift apart, and their mean with them."""
    decay = 0.1
    x, y = (torch.cat(parts) for parts in zip(*CLIENTS, strict=True))
    optimum = np.zeros(CLASSES * (FEATURES + 1))
    for _ in range(3000):
        optimum -= 0.2 * gradient(optimum, x.double().numpy(), y.numpy(), decay)
    spec = TrainSpec(steps=10, batch_size=20, optimizer=Sgd(lr=LR, momentum=momentum, weight_decay=decay))
    far, near = (np.linalg.norm(federated(spec, 20, corrected=corrected)[0] - optimum) for corrected in (False, True))

    assert far > 0.2
    assert near < far / 20


class Shared(nn.Module):
    """Batch norm, whose running mean has no gradient; a frozen layer; a weight that two modules share."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)  # batch norm would take a bias out again
        self.norm = nn.BatchNorm1d(3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.last = nn.Linear(3, 3)
        self.last.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.frozen(self.norm(self.first(x))))
        return found


def test_what_is_not_trained_has_no_control() -> None:
    """Nor has a second name of a shared weight: it is corrected once."""
    model = FlatModel(Shared())
    base, layout = model.save(), model.layout
    zeros = np.zeros(layout.parameters, np.float32)
    spec = TrainSpec(steps=3, batch_size=10, optimizer=Sgd(lr=0.1))
    x, y = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)) + 1, torch.zeros(20, dtype=torch.int64)
    loop.train(model.model, x, y, spec, seed=1, client="a", number=1)
    update = layout.of_updates().flat(model.update(base))[: layout.parameters]
    own, change = strategy_steps.renewed_control(zeros, zeros, update, lr=0.1, steps=3)

    parts = strategy_steps.control_correction(own, zeros, layout)
    assert parts.keys() == {"first.weight", "norm.weight", "norm.bias", "last.bias"}
    assert all(part.any() for part in parts.values())
    assert np.array_equal(own, change)


def test_corrections_lie_where_the_tensors_of_the_model_file_do() -> None:
    """By name and shape, the difference of the two controls."""
    model = FlatModel(nn.Linear(2, 3))
    server = np.arange(9, dtype=np.float32)

    found = strategy_steps.control_correction(server, np.ones(9, np.float32), model.layout)
    assert {name: part.tolist() for name, part in found.items()} == {
        "bias": [-1, 0, 1],
        "weight": [[2, 3], [4, 5], [6, 7]],
    }


def test_a_learning_rate_of_zero_teaches_nothing_about_the_gradient() -> None:
    """The last round of a cosine has one: the control stays."""
    own = np.array([1.0, -2.0], np.float32)
    found, change = strategy_steps.renewed_control(own + 1, own, np.zeros(2, np.float32), lr=0.0, steps=5)

    assert np.array_equal(found, own)
    assert not change.any()
