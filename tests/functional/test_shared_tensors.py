"""What of a model's tensors travels, and how: parameters, buffers, and tensors that have several names."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

from services.trainer.models.flat import FlatModel
from services.trainer.models.start import begin_with
from services.trainer.training import loop
from shared.aggregation import weights
from shared.aggregation.compression.encoding import rebuild, shrink
from shared.aggregation.compression.encodings import encoding_of
from shared.errors import BadInput
from shared.job.catalog.compression import TopK
from shared.job.catalog.training import Adam, FedProx, Kept, Sgd, TrainSpec


class Tied(nn.Module):
    """An encoder and a decoder of one weight, each with a bias of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.Linear(5, 5)
        self.dec = nn.Linear(5, 5)
        self.dec.weight = self.enc.weight
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.dec(torch.tanh(self.enc(x)))))  # type: ignore[no-any-return]


class Statistics(nn.Module):
    """Floats that no gradient reaches: batch norm's, a buffer of its own, and a frozen layer, as a teacher is."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.teacher = nn.Linear(4, 2).requires_grad_(False)
        self.register_buffer("average", torch.full((3,), 2.0, dtype=torch.float64))
        self.zlast = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.zlast(self.norm(x))  # type: ignore[no-any-return]


def moved(model: FlatModel, by: float) -> None:
    with torch.no_grad():
        for tensor in {tensor.data_ptr(): tensor for tensor in model.model.state_dict().values()}.values():
            tensor.add_(by if tensor.is_floating_point() else 1)


# --- buffers --------------------------------------------------------------------------------


def test_buffers_travel_as_they_are_and_parameters_as_what_changed() -> None:
    """Buffers lie behind the parameters: whatever has no gradient, and is a float."""
    model = FlatModel(Statistics())
    base = model.save()
    before = model.layout.views(base)
    moved(model, 0.5)
    update, after = model.update(base), model.layout.views(model.save())
    values = model.layout.of_updates().views(update)

    assert model.layout.buffers == {
        "norm.running_mean", "norm.running_var", "teacher.weight", "teacher.bias", "average",
    }  # fmt: skip
    assert model.layout.parameters == 4 + 4 + 3 * 4 + 3
    for name, found in values.items():
        expected = after[name] if name in model.layout.buffers else after[name] - before[name]
        assert np.array_equal(found, expected), name
    assert weights.read_layout(base) == model.layout


def test_a_model_without_buffers_has_the_file_that_it_always_had() -> None:
    """By width, dtype and name, with no metadata."""
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    layout = FlatModel(model).layout

    assert [tensor.name for tensor in layout.tensors] == ["0.bias", "0.weight", "1.bias", "1.weight"]
    assert layout.header[8:].startswith(b'{"0.bias":')


# --- tensors of several names ---------------------------------------------------------------


def test_a_tied_tensor_is_there_once_and_loaded_under_both_names(tmp_path: Path) -> None:
    """By fedq, and by safetensors' own `load_model`; the file tells of the other name."""
    model = FlatModel(Tied())
    moved(model, 0.25)
    file = model.save()
    (tmp_path / "model").write_bytes(file.tobytes())

    assert load_file(tmp_path / "model").keys() == Tied().state_dict().keys() - {"dec.weight"}
    assert model.layout.tied == (("dec.weight", "enc.weight"),)
    fresh = Tied()
    load_model(fresh, tmp_path / "model", strict=True)
    other = FlatModel(Tied())
    other.load(file)
    for name, tensor in model.model.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor), name
        assert torch.equal(other.model.state_dict()[name], tensor), name


def test_a_tied_tensor_is_sparsified_once_and_counts_once() -> None:
    """Under both names there is the same, however little of it travels."""
    model = FlatModel(Tied())
    layout, base = model.layout, model.save()
    moved(model, 0.5)
    delta = layout.of_updates().flat(model.update(base)).copy()
    assert np.linalg.norm(delta) == pytest.approx(0.5 * (25 + 5 + 5 + 15 + 3) ** 0.5)

    encoding = encoding_of(TopK(ratio=0.1), layout.of_updates())
    new, file = layout.flat(base) + delta, encoding.layout.empty_file()
    shrink(layout.flat(base).copy(), new, encoding, None, file)
    rebuild(layout.flat(base), file, encoding)
    model.load(base)
    state = model.model.state_dict()
    assert torch.equal(state["enc.weight"], state["dec.weight"])


def test_shared_modules_and_buffers_are_one() -> None:
    """A layer that is used twice; a buffer that two modules hold; a buffer that is a parameter's memory."""
    layer, table = nn.BatchNorm1d(3), torch.ones(4)
    first, second = nn.Module(), nn.Module()
    for module in (first, second):
        module.register_buffer("table", table)
    weight = nn.Parameter(torch.zeros(2))
    second.register_parameter("weight", weight)
    first.register_buffer("seen", weight.data)
    layout = FlatModel(nn.ModuleDict({"a": layer, "b": layer, "c": first, "d": second})).layout

    assert [tensor.name for tensor in layout.trained] == [
        "a.bias", "a.weight", "d.weight", "a.running_mean", "a.running_var", "c.table",
    ]  # fmt: skip
    assert dict(layout.tied)["c.seen"] == "d.weight"
    assert dict(layout.tied)["d.table"] == "c.table"


def test_on_another_device_a_shared_buffer_is_one_still() -> None:
    """`Module.to` copies it for each module; `meta` stands for a device, because a model may have no other here."""
    table = torch.ones(4)
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Module(), "c": nn.Module()})
    for name in "bc":
        model[name].register_buffer("table", table)
    flat = FlatModel(model, None, torch.device("meta"))

    assert flat.layout.tied == (("c.table", "b.table"),)
    assert model["b"].table is not model["c"].table
    assert model["b"].table.device.type == "meta"


def test_training_that_unties_is_refused() -> None:
    """What one of the two became would be lost, or reach the next client."""
    model = FlatModel(Tied())
    base = model.save()
    model.model.dec.weight = nn.Parameter(model.model.dec.weight.detach().clone())  # type: ignore[union-attr]

    for call in (lambda: model.update(base), model.save, lambda: model.load(base)):
        with pytest.raises(BadInput, match=r"training made two tensors of dec\.weight and enc\.weight"):
            call()


def test_one_name_of_a_tied_tensor_cannot_be_personal() -> None:
    """Both may."""
    with pytest.raises(BadInput, match=r"dec\.weight and enc\.weight are one tensor; name both, or neither"):
        FlatModel(Tied(), Kept(personal=("dec.*",)))
    layout = FlatModel(Tied(), Kept(personal=("enc.*", "dec.*"))).layout
    assert ([tensor.name for tensor in layout.tensors], layout.tied) == (["head.bias", "head.weight"], ())


def transposed(weight: Tensor) -> Tensor:
    return weight.t()


def a_part(weight: Tensor) -> Tensor:
    return weight[1:]


def another_shape(weight: Tensor) -> Tensor:
    return weight.reshape(-1)


@pytest.mark.parametrize("view", [transposed, a_part, another_shape])
@pytest.mark.parametrize("as_buffer", [False, True])
def test_memory_that_is_shared_in_two_shapes_is_refused(view: Callable[[Tensor], Tensor], as_buffer: bool) -> None:
    """The mean of one is not a mean of the other, once an encoding has left out a part."""
    model = nn.ModuleDict({"a": nn.Linear(3, 4, bias=False), "b": nn.Module()})
    seen = view(model["a"].weight.detach())
    if as_buffer:
        model["b"].register_buffer("own", seen)
    else:
        model["b"].register_parameter("own", nn.Parameter(seen))
    with pytest.raises(BadInput, match=r"share memory and are not the same tensor; let one module own it"):
        FlatModel(model)


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_views_are_refused_only_where_an_element_is_in_two(data: st.DataObject) -> None:
    """Such as the layers of a recurrent network, which lie in one block, or columns that alternate."""
    whole = torch.arange(24.0).reshape(4, 6)
    cuts = st.builds(slice, st.integers(0, 5), st.integers(1, 6), st.integers(1, 3))
    parts = [whole[data.draw(cuts), data.draw(cuts)] for _ in range(3)]
    model = nn.Module()
    for number, part in enumerate(parts):
        model.register_buffer(f"b{number}", part)
    model.register_parameter("w", nn.Parameter(torch.zeros(2)))
    different = {(part.shape, part.stride(), part.data_ptr()): part for part in parts if part.numel()}
    elements = [int(element) for part in different.values() for element in part.flatten()]
    if len(elements) == len(set(elements)):
        assert FlatModel(model).layout.size == 2 + len(elements)
    else:
        with pytest.raises(BadInput, match="share memory"):
            FlatModel(model)


class TwoOfOne(Tied):
    """Two parameters of one memory, as code has it that passes `weight.data` on."""

    def __init__(self) -> None:
        super().__init__()
        self.dec.weight = nn.Parameter(self.enc.weight.data)


@pytest.mark.parametrize(
    "how",
    [
        TrainSpec(optimizer=Sgd(lr=0.1, weight_decay=0.5)),
        TrainSpec(optimizer=Sgd(lr=0.1), fedprox=FedProx(mu=1.0), steps=3),
        TrainSpec(optimizer=Adam(lr=0.1)),
    ],
    ids=["weight decay", "fedprox", "adam"],
)
def test_two_parameters_of_one_memory_are_trained_as_one(how: TrainSpec) -> None:
    """Each by itself would decay, or be pulled back, twice in a step."""
    x, y = torch.randn(12, 5, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 3
    found = []
    for kind in (Tied, TwoOfOne):
        torch.manual_seed(1)
        model = FlatModel(kind())
        torch.manual_seed(1)
        model.load(FlatModel(Tied()).save())
        loop.train(model.model, x, y, how, seed=1, client="a", number=1)
        found.append(model.save())
    assert np.array_equal(*found)


def test_recurrent_layers_may_be_two_of_one_memory() -> None:
    """They keep a list of their weights beside."""
    model = nn.Sequential(nn.LSTM(3, 3), nn.LSTM(3, 3))
    model[1].weight_hh_l0 = nn.Parameter(model[0].weight_hh_l0.data)
    FlatModel(model)
    assert model[1].weight_hh_l0 is model[0].weight_hh_l0
    assert any(weight is model[0].weight_hh_l0 for weight in model[1]._flat_weights)


def test_what_is_trained_and_what_is_frozen_stay_two() -> None:
    """Frozen, a layer passes no gradient to the weight that it shares."""
    model = TwoOfOne()
    model.dec.weight.requires_grad_(False)
    FlatModel(model)
    assert not model.dec.weight.requires_grad
    assert model.enc.weight.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
@pytest.mark.parametrize("persistent", [False, True])
def test_a_buffer_that_is_expanded_is_refused(dtype: torch.dtype, persistent: bool) -> None:
    """Whatever it holds: torch copies nothing into it."""
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.ones(3, dtype=dtype).expand(2, 3), persistent=persistent)
    with pytest.raises(BadInput, match=r"^model: mask has one place in memory for several values"):
        FlatModel(model)


# --- start files of tied models -------------------------------------------------------------


def tensors_of(model: nn.Module, *without: str) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items() if name not in without}


@pytest.mark.parametrize("without", ["enc.weight", "dec.weight", ""])
def test_a_start_file_may_name_a_tied_tensor_by_any_of_its_names(tmp_path: Path, without: str) -> None:
    """Or by both, where they are equal."""
    source, model = Tied(), Tied()
    save_file(tensors_of(source, without), tmp_path / "start")
    begin_with(model, tmp_path / "start")

    for name, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_a_start_file_of_safetensors_own_saving_is_taken(tmp_path: Path) -> None:
    """`save_model` leaves all names but one out; and so does fedq."""
    source = Tied()
    save_model(source, str(tmp_path / "theirs"))
    (tmp_path / "ours").write_bytes(FlatModel(source).save().tobytes())
    for name in ("theirs", "ours"):
        model = Tied()
        begin_with(model, tmp_path / name)
        assert torch.equal(model.dec.weight, source.enc.weight)


def test_a_start_file_that_is_of_two_minds_is_refused(tmp_path: Path) -> None:
    """As is one with neither name."""
    tensors = tensors_of(Tied())
    tensors["dec.weight"] += 1
    save_file(tensors, tmp_path / "start")
    with pytest.raises(BadInput, match=r"are one tensor in the model, and the file has two that differ"):
        begin_with(Tied(), tmp_path / "start")
    save_file(tensors_of(Tied(), "enc.weight", "dec.weight"), tmp_path / "start")
    with pytest.raises(BadInput, match=r"has no tensor enc\.weight \[5, 5\]"):
        begin_with(Tied(), tmp_path / "start")


@pytest.mark.parametrize(
    ("dtype", "given", "fits"),
    [
        (torch.int8, torch.tensor([-128, 127]), True),
        (torch.int8, torch.tensor([300, 0]), False),
        (torch.uint8, torch.tensor([-1, 0]), False),
        (torch.bool, torch.tensor([2, 0]), False),
        (torch.bool, torch.tensor([1, 0]), True),
        (torch.int64, torch.tensor([True, False]), True),
    ],
)
def test_whole_numbers_of_a_start_file_are_taken_where_they_fit(
    tmp_path: Path, dtype: torch.dtype, given: Tensor, fits: bool
) -> None:
    """Cut to fewer bits, they would be others."""
    model = nn.Linear(2, 2)
    model.register_buffer("ids", torch.zeros(2, dtype=dtype))
    save_file(tensors_of(model) | {"ids": given}, tmp_path / "start")
    if fits:
        begin_with(model, tmp_path / "start")
        assert model.ids.tolist() == given.tolist()
    else:
        with pytest.raises(BadInput, match=r"ids has values in the file that torch\.\w+, as in the model, cannot hold"):
            begin_with(model, tmp_path / "start")
