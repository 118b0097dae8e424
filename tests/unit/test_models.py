"""Models: built from a seed, and as float32 in a flat file and back."""

import numpy as np
import pytest
import torch
from torch import nn

from services.trainer.models import catalog
from services.trainer.models.flat import FlatModel, layout_of
from shared import weights
from shared.catalog.choice import Custom
from shared.catalog.models import LeNet, Mlp, ModelSpec, Softmax
from shared.errors import BadInput, Refused

CATALOG: list[ModelSpec] = [Softmax(), Mlp(hidden=(16, 8)), LeNet()]


class Odd(nn.Module):
    """Everything that a state may hold: other floats, integers, what it keeps to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Parameter(torch.full((3, 2), 0.5, dtype=torch.bfloat16))
        self.wide = nn.Parameter(torch.tensor(0.25, dtype=torch.float64))
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("aside", torch.zeros(1), persistent=False)


@pytest.mark.parametrize("spec", CATALOG, ids=lambda spec: spec.name)
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 30), (2, 4, 4)], ids=str)
def test_catalog_models_fit_the_images(spec: ModelSpec, shape: tuple[int, ...]) -> None:
    """One score for each class, whatever the size of the images."""
    model = catalog.build(spec, shape, 7, seed=0)

    assert model(torch.zeros(5, *shape)).shape == (5, 7)


def test_lenet_on_28_by_28_is_that_of_the_paper() -> None:
    """61,706 parameters: LeNet-5 with ten classes."""
    model = catalog.build(LeNet(), (1, 28, 28), 10, seed=0)

    assert sum(parameter.numel() for parameter in model.parameters()) == 61_706


def test_lenet_refuses_what_is_no_image() -> None:
    """With the shape that it was given."""
    with pytest.raises(BadInput, match=r"lenet: it takes images .*, not \[12\]"):
        catalog.build(LeNet(), (12,), 2, seed=0)


@pytest.mark.parametrize("spec", CATALOG, ids=lambda spec: spec.name)
def test_the_same_seed_gives_the_same_bits_and_leaves_the_generator_alone(spec: ModelSpec) -> None:
    """Whichever trainer makes the initial model, it is the same model."""
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    files = [FlatModel(catalog.build(spec, (1, 8, 8), 10, seed)).save() for seed in (1, 1, 2)]

    assert torch.equal(torch.rand(1), expected)
    assert np.array_equal(files[0], files[1])
    assert not np.array_equal(files[0], files[2])


def test_own_model_gets_what_its_signature_names() -> None:
    """`args` from the job file, shape and classes from the data."""
    spec = Custom(name="services.trainer.models.catalog:mlp", args={"hidden": [4]})
    model = catalog.build(spec, (3,), 2, seed=0)

    assert model(torch.zeros(1, 3)).shape == (1, 2)
    with pytest.raises(BadInput, match=r"json:dumps gave a str, not a torch.nn.Module"):
        catalog.build(Custom(name="json:dumps", args={"obj": 1}), (3,), 2, seed=0)


def test_a_model_goes_into_a_file_and_back() -> None:
    """Floats travel as float32, the rest as it is; what the state does not hold starts anew."""
    source, target = FlatModel(Odd()), FlatModel(Odd())
    with torch.no_grad():
        source.model.low.fill_(1.5)  # type: ignore[operator]
        source.model.norm.num_batches_tracked.fill_(7)  # type: ignore[union-attr, operator]
        target.model.aside.fill_(9)  # type: ignore[operator]
    file = source.save()
    target.load(file)

    assert {tensor.name: tensor.dtype for tensor in source.layout.tensors}["low"] == "F32"
    assert weights.read_layout(file) == source.layout
    for name, tensor in target.model.state_dict().items():
        assert torch.equal(tensor, source.model.state_dict()[name]), name
    assert target.model.low.dtype is torch.bfloat16
    assert target.model.aside == 0


def test_base_plus_update_is_the_trained_model() -> None:
    """And the update holds the float32 tensors alone, in the order of the model."""
    model = FlatModel(catalog.build(LeNet(), (1, 8, 8), 10, seed=0))
    base = model.save()
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.add_(0.125)
    update = model.update(base)
    layout = model.layout.of_updates()

    weights.check_header(update, layout)
    assert np.array_equal(layout.flat(update) + model.layout.flat(base), model.layout.flat(model.save()))
    assert model.update(base) is update  # the buffer stays


def test_a_file_of_another_model_is_refused() -> None:
    """Not loaded in part."""
    model = FlatModel(catalog.build(Softmax(), (1, 8, 8), 10, seed=0))
    other = FlatModel(catalog.build(Softmax(), (1, 8, 8), 9, seed=0)).save()

    with pytest.raises(Refused, match=r"tensor 1.bias has shape \[9\] instead of \[10\]"):
        model.load(other)


def test_a_model_that_cannot_travel_is_refused() -> None:
    """Complex numbers, or nothing to train."""
    complex_one = nn.Module()
    complex_one.register_parameter("z", nn.Parameter(torch.zeros(2, dtype=torch.complex64)))
    with pytest.raises(BadInput, match=r"z is torch\.complex64"):
        layout_of(complex_one)
    with pytest.raises(BadInput, match="no floating point tensors"):
        layout_of(nn.ReLU())


def test_training_that_changes_the_shapes_is_refused() -> None:
    """The user's own step may do anything to the model."""
    model = FlatModel(nn.Linear(2, 2))
    base = model.save()
    model.model.weight = nn.Parameter(torch.zeros(3, 2))

    with pytest.raises(BadInput, match="changed the names or shapes"):
        model.update(base)
