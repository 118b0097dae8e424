"""Models: built from a seed, and what is shared of them as float32 in a flat file and back."""

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from services.trainer.models import catalog, feed_forward
from services.trainer.models.flat import FlatModel, layout_of
from services.trainer.models.start import begin_with
from services.trainer.training import loop
from shared.aggregation import weights
from shared.errors import BadInput, Refused
from shared.job.catalog.models import (
    CharLstm,
    Cnn,
    CustomModel,
    LeNet,
    Lora,
    Mlp,
    ModelSpec,
    ResNet,
    Softmax,
    Torchvision,
    Transformer,
    Vgg9,
    Vgg11,
)
from shared.job.catalog.training import Kept, Sgd, TrainSpec

FLAT: list[ModelSpec] = [Softmax(), Mlp(hidden=(16, 8)), LeNet()]
TRAINED: dict[str, tuple[ModelSpec, tuple[int, ...]]] = {
    "softmax": (Softmax(), (5,)),
    "mlp": (Mlp(hidden=(16, 8)), (3, 4)),
    "lenet": (LeNet(), (1, 8, 8)),
    "cnn": (Cnn(channels=(4, 8, 8), hidden=16), (2, 8, 9)),
    "resnet20": (ResNet(), (3, 8, 8)),
    "resnet20-group": (ResNet(norm="group"), (1, 8, 8)),
    "resnet18": (ResNet(depth=18), (1, 9, 9)),
    "vgg9": (Vgg9(), (1, 8, 8)),
    "vgg11": (Vgg11(), (1, 32, 32)),
    "torchvision": (Torchvision(arch="shufflenet_v2_x0_5"), (3, 40, 40)),
    "torchvision-grey": (Torchvision(arch="squeezenet1_1"), (1, 32, 32)),
    "char_lstm": (CharLstm(embedding=4, hidden=8, layers=2), (6,)),
    "transformer": (Transformer(width=8, heads=2, dropout=0.1), (6,)),
    "transformer-images": (Transformer(width=8, heads=2), (2, 8, 4)),
}
HEAD_ONLY = Kept(personal=("head.*",))


@pytest.fixture(autouse=True)
def allowed(allow: Callable[..., None]) -> None:
    """The code that the tests of this file name."""
    allow(f"{feed_forward.__name__}.", "json:dumps", "torch.nn.", f"{__name__}.")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models as small as these only wait for a second one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def inputs(shape: tuple[int, ...], classes: int = 7, n: int = 6) -> tuple[Tensor, Tensor]:
    """Examples that any model takes: whole numbers below `classes`, token ids too."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, classes, (n, *shape), generator=generator).to(torch.float32)
    return x, torch.randint(0, classes, (n,), generator=generator)


def train(model: nn.Module, shape: tuple[int, ...], classes: int = 7) -> None:
    spec = TrainSpec(batch_size=3, optimizer=Sgd(lr=0.01))
    loop.train(model, *inputs(shape, classes), spec, seed=0, client="a", number=0)


def attentive() -> nn.Module:
    """A user's own model, of torch's attention."""
    return nn.ModuleDict(
        {"encoder": nn.TransformerEncoderLayer(8, 2, 16), "own": nn.Linear(8, 8), "head": nn.Linear(8, 2)}
    )


class Odd(nn.Module):
    """Everything that a state may hold: other floats, integers, what it keeps to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Parameter(torch.full((3, 2), 0.5, dtype=torch.bfloat16))
        self.wide = nn.Parameter(torch.tensor(0.25, dtype=torch.float64))
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("aside", torch.zeros(1), persistent=False)


@pytest.mark.parametrize("spec", FLAT, ids=lambda spec: spec.name)
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


@pytest.mark.parametrize("named", TRAINED)
def test_every_model_learns_from_its_seed_on_and_leaves_the_generator_alone(named: str) -> None:
    """Whichever trainer makes the initial model, it is the same; one step gives other logits, all of them numbers."""
    spec, shape = TRAINED[named]
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, same, other = (FlatModel(catalog.build(spec, shape, 7, seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert np.array_equal(first.save(), same.save())
    assert not np.array_equal(first.save(), other.save())

    x, _ = inputs(shape)
    with torch.no_grad():
        before = first.model.eval()(x)
    train(first.model, shape)
    with torch.no_grad():
        after = first.model.eval()(x)
    assert before.shape == after.shape == (6, 7)
    assert after.isfinite().all()
    assert not torch.equal(before, after)


@pytest.mark.parametrize("named", [name for name in TRAINED if not name.startswith("torchvision")])
def test_the_last_layer_is_called_head_in_every_model_of_ours(named: str) -> None:
    """So that `personal: ["head.*"]` is FedPer whatever the model."""
    spec, shape = TRAINED[named]
    model = catalog.build(spec, shape, 7, seed=0)

    assert model.get_submodule("head").out_features == 7
    assert list(model.state_dict())[-1] == "head.bias"


@pytest.mark.parametrize(
    ("spec", "shape", "classes", "size"),
    [
        (ResNet(depth=20), (3, 32, 32), 10, 269_722),  # He et al. 2016, table 6: 0.27 M, 0.46, 0.66, 0.85
        (ResNet(depth=32), (3, 32, 32), 10, 464_154),
        (ResNet(depth=44), (3, 32, 32), 10, 658_586),
        (ResNet(depth=56), (3, 32, 32), 10, 853_018),
        (ResNet(depth=18), (3, 32, 32), 10, 11_173_962),
        (ResNet(depth=50), (3, 32, 32), 10, 23_520_842),
        (ResNet(depth=20, norm="group"), (3, 32, 32), 10, 269_722),
        (Vgg9(), (3, 32, 32), 10, 3_491_530),
        (Vgg11(), (3, 32, 32), 10, 9_756_426),
        (CharLstm(), (80,), 80, 819_920),
        (Torchvision(arch="mobilenet_v3_small"), (3, 64, 64), 1000, 2_542_856),
    ],
    ids=lambda value: f"{value.name}{getattr(value, 'depth', '')}" if hasattr(value, "name") else "",
)
def test_models_have_as_many_parameters_as_those_that_are_known(
    spec: ModelSpec, shape: tuple[int, ...], classes: int, size: int
) -> None:
    """To the last one: it is the network of the paper."""
    model = catalog.build(spec, shape, classes, seed=0).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, *shape)).shape == (1, classes)

    assert sum(parameter.numel() for parameter in model.parameters()) == size


@pytest.mark.parametrize(
    ("spec", "shape", "reason"),
    [
        (Cnn(channels=(4, 4, 4)), (1, 7, 9), "cnn: it takes images .* from 8×8, not .1, 7, 9."),
        (ResNet(), (12,), "resnet: it takes images"),
        (Vgg9(), (1, 8, 7), "vgg9: it takes images .* from 8×8"),
        (Vgg11(), (3, 28, 28), "vgg11: it takes images .* from 32×32, not .3, 28, 28."),
        (CharLstm(), (1, 8, 8), "char_lstm: it takes sequences of token ids .length,., not .1, 8, 8."),
        (Transformer(), (8, 8), "transformer: it takes sequences"),
        (Transformer(patch=5), (1, 10, 8), "model.patch is 5: .* image of 10×8"),
        (Torchvision(arch="resnet81"), (3, 32, 32), "no classification model resnet81; it has .*resnet18"),
        (Torchvision(arch="fcn_resnet50"), (3, 32, 32), "no classification model fcn_resnet50"),
        (Torchvision(arch="alexnet"), (3, 8, 8), "alexnet does not take images of 8×8: "),
        (Torchvision(arch="vit_b_32"), (3, 33, 33), "vit_b_32 does not take images of 33×33: .*patch size"),
        (Torchvision(arch="resnet18"), (2, 32, 32), "resnet18 takes images of 1 or 3 channels, not 2"),
        (Torchvision(arch="resnet18"), (64,), r"torchvision \(resnet18\): it takes images"),
    ],
    ids=lambda value: value.name if hasattr(value, "name") else "",
)
def test_a_model_refuses_what_it_cannot_take(spec: ModelSpec, shape: tuple[int, ...], reason: str) -> None:
    """With the shape that it was given."""
    with pytest.raises(BadInput, match=reason):
        catalog.build(spec, shape, 10, seed=0)


@pytest.mark.parametrize("named", [name for name in TRAINED if not name.startswith("torchvision")])
def test_the_size_of_a_model_is_known_before_it_is_built(named: str) -> None:
    spec, shape = TRAINED[named]
    model = catalog.build(spec, shape, 7, seed=0)

    tensors = [*model.parameters(), *model.buffers()]
    assert catalog.size(spec, shape, 7) == sum(tensor.nbytes for tensor in tensors)


def test_no_memory_is_taken_for_a_model_that_is_too_large() -> None:
    """An example of three million values and a million classes: 12 TB."""
    assert catalog.size(Softmax(), (3, 1000, 1000), 10**6) == 4 * (3 * 10**12 + 10**6)


def test_a_transformer_whose_heads_cannot_share_its_width_is_no_model() -> None:
    """Said of the job file, before any trainer sees it."""
    with pytest.raises(ValidationError, match="heads is 5, which does not divide width, 64"):
        Transformer(heads=5)


def test_a_residual_block_without_weights_passes_its_input_on() -> None:
    """Every second pixel where it halves the image, and zeros around the channels that were there."""
    model = catalog.build(ResNet(), (1, 4, 4), 2, seed=0).eval()
    blocks = [module for module in model.modules() if hasattr(module, "shortcut")]
    x = torch.rand(1, 16, 4, 4)
    with torch.no_grad():
        for block in (blocks[0], blocks[3]):
            for parameter in block.parameters():
                parameter.zero_()
        assert torch.equal(blocks[0](x), x)
        halved = blocks[3](x)

    assert torch.equal(halved[:, 8:24], x[:, :, ::2, ::2])
    assert halved[:, :8].abs().sum() + halved[:, 24:].abs().sum() == 0


@pytest.mark.parametrize("spec", [CharLstm(embedding=8, hidden=16), Transformer(width=8, heads=2)])
def test_a_sequence_model_sees_the_order_of_tokens(spec: ModelSpec) -> None:
    """The same tokens in another order are another text."""
    model = catalog.build(spec, (3,), 9, seed=0).eval()
    scores = model(torch.tensor([[1.0, 2.0, 3.0], [2.0, 1.0, 3.0]]))

    assert not torch.allclose(scores[0], scores[1], atol=1e-6)


def test_a_grey_image_is_to_torchvision_the_same_in_three_channels() -> None:
    """So published weights fit as they are."""
    grey, coloured = (
        catalog.build(Torchvision(arch="shufflenet_v2_x0_5"), (channels, 32, 32), 5, seed=0).eval()
        for channels in (1, 3)
    )
    x = torch.rand(2, 1, 32, 32)

    assert torch.equal(grey(x), coloured(x.repeat(1, 3, 1, 1)))
    assert {name: tensor.shape for name, tensor in grey.state_dict().items()} == {
        name: tensor.shape for name, tensor in coloured.state_dict().items()
    }


def test_a_model_of_ours_needs_neither_torchvision_nor_peft() -> None:
    """They are seconds and hundreds of megabytes of a slot that trains an mlp."""
    code = (
        "import sys\n"
        "from services.trainer.models import catalog, flat\n"
        "from shared.job.catalog.models import Mlp\n"
        "flat.FlatModel(catalog.build(Mlp(), (4,), 2, 0))\n"
        "print(sorted({'torchvision', 'peft', 'transformers'} & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert found.stdout.strip() == "[]"


def test_own_model_gets_what_its_signature_names() -> None:
    """`args` from the job file, shape and classes from the data."""
    spec = CustomModel(name="services.trainer.models.feed_forward:mlp", args={"hidden": [4]})
    model = catalog.build(spec, (3,), 2, seed=0)

    assert model(torch.zeros(1, 3)).shape == (1, 2)
    with pytest.raises(BadInput, match=r"json:dumps gave a str, not a torch.nn.Module"):
        catalog.build(CustomModel(name="json:dumps", args={"obj": 1}), (3,), 2, seed=0)


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


def test_no_client_begins_with_anothers_gradients() -> None:
    """A step that gathers gradients over batches leaves the last ones, and may begin without clearing them."""
    model = nn.Linear(2, 3)
    flat = FlatModel(model)
    base = flat.save()
    model(torch.ones(1, 2)).sum().backward()
    flat.load(base)

    assert all(parameter.grad is None for parameter in model.parameters())


class Counting(nn.Module):
    """A model with a counter, and with a hook of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)
        self.dropout = nn.Dropout(0.0)
        self.calls = 0
        self.layer.weight.register_hook(lambda gradient: gradient * 2)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        found: Tensor = self.dropout(self.layer(x)) * self.calls
        return found


def test_no_client_begins_with_what_anothers_step_left_beside_the_tensors() -> None:
    """A hook that adds to gradients, in code that makes a model for each client, would add twice for the second."""
    model = Counting()
    flat = FlatModel(model)
    base = flat.save()

    def tripled(bias: Tensor) -> None:
        assert bias.grad is not None
        bias.grad.mul_(3)

    def gradients() -> list[list[float]]:
        flat.load(base)
        for parameter in model.parameters():
            parameter.register_hook(lambda gradient: gradient + 1)  # type: ignore[no-untyped-call]
        model.layer.bias.register_post_accumulate_grad_hook(tripled)  # type: ignore[no-untyped-call]
        model.layer.register_forward_hook(lambda _module, _inputs, output: output * 5)
        model.layer.register_full_backward_hook(lambda *_: None)
        model(torch.ones(1, 2, requires_grad=True)).sum().backward()
        model.dropout.p = 1.0
        return [parameter.grad.flatten().tolist() for parameter in model.parameters() if parameter.grad is not None]

    first = gradients()

    assert first == [[2 * 5 + 1] * 6, [3 * (5 + 1)] * 3]
    assert gradients() == first
    assert gradients() == first
    flat.load(base)
    assert (model.calls, model.dropout.p) == (0, 0.0)
    model(torch.ones(1, 2)).sum().backward()
    left = [float(parameter.grad.sum()) for parameter in model.parameters() if parameter.grad is not None]
    assert left == [12.0, 3.0]


def unbuilt() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d())


def test_a_model_that_is_not_built_yet_is_refused(allow: Callable[..., None]) -> None:
    """A lazy layer has no shape before its first example."""
    allow(f"{__name__}.")
    with pytest.raises(BadInput, match=r"a model whose 0\.weight is not built yet; let it take an example first"):
        catalog.build(CustomModel(name=f"{__name__}:unbuilt"), (3,), 4, 0)


def test_the_statistics_of_instance_norm_may_stay_with_a_client() -> None:
    """They are what batch norm's are."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2, affine=True, track_running_stats=True))
    names = {tensor.name for tensor in FlatModel(model, Kept(buffers="local")).layout.tensors}

    assert names == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_a_file_of_another_model_is_refused() -> None:
    """Not loaded in part."""
    model = FlatModel(catalog.build(Softmax(), (1, 8, 8), 10, seed=0))
    other = FlatModel(catalog.build(Softmax(), (1, 8, 8), 9, seed=0)).save()

    with pytest.raises(
        Refused, match=r"another model than the job's: tensor head.bias has shape \[9\] .* \[10\]; it must"
    ):
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

    with pytest.raises(BadInput, match="changed what the model's tensors are"):
        model.update(base)


def test_training_that_leaves_another_dtype_is_refused() -> None:
    """A step that narrows the model to be quick gives it back as it came, or is told which tensor it did not."""
    model = FlatModel(nn.Linear(2, 3))
    base = model.save()
    model.model.to(torch.bfloat16)
    with pytest.raises(
        BadInput, match=r"bias is bfloat16 \[3\] now, and was float32 \[3\]; a step leaves them as they came"
    ):
        model.update(base)
    model.model.float()
    model.update(base)


# --- adapters -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        (Mlp(hidden=(16, 8), adapters=Lora(rank=2)), (5,)),
        (LeNet(adapters=Lora(rank=2, dropout=0.1)), (1, 8, 8)),
        (ResNet(adapters=Lora(rank=2)), (1, 8, 8)),
        (Transformer(width=16, adapters=Lora(rank=2)), (6,)),
        (Torchvision(arch="shufflenet_v2_x0_5", adapters=Lora(rank=2, targets=("branch2.0",))), (3, 32, 32)),
        (CustomModel(name=f"{feed_forward.__name__}:mlp", args={"hidden": [8]}, adapters=Lora(rank=2)), (5,)),
    ],
    ids=lambda value: value.name if hasattr(value, "name") else "",
)
def test_adapters_and_the_last_layer_alone_are_trained_and_travel(spec: ModelSpec, shape: tuple[int, ...]) -> None:
    """The base stays as it was, bit by bit; another trainer's model takes up what was sent."""
    source, target = (FlatModel(catalog.build(spec, shape, 7, seed=3)) for _ in range(2))
    base = source.save()
    before = {name: tensor.clone() for name, tensor in source.model.state_dict().items()}
    train(source.model, shape)
    update = source.update(base)

    parameters = dict(source.model.named_parameters())
    frozen = parameters.keys() - {tensor.name for tensor in source.layout.tensors}
    assert all("lora_" not in name and torch.equal(parameters[name], before[name]) for name in frozen)
    assert len(frozen) >= 2
    assert all("lora_" in name or parameters[name].shape[0] == 7 for name in parameters.keys() - frozen)
    changed = [name for name, delta in source.layout.of_updates().views(update).items() if delta.any()]
    assert any("lora_B" in name for name in changed)
    assert not all("lora_" in name for name in changed)  # the last layer too
    target.load(source.save())
    x, _ = inputs(shape)
    assert torch.equal(target.model.eval()(x), source.model.eval()(x))


def test_adapters_begin_by_changing_nothing() -> None:
    """The model with them is at first the model without."""
    spec = Transformer(width=16)
    plain, adapted = (
        catalog.build(one, (6,), 7, seed=1).eval() for one in (spec, spec.model_copy(update={"adapters": Lora()}))
    )
    x, _ = inputs((6,))

    assert torch.equal(plain(x), adapted(x))


def test_an_update_of_adapters_is_small() -> None:
    """Rank 4 in a transformer of 2.4 M parameters: two of every hundred bytes."""
    spec = Transformer(width=256, layers=3, adapters=Lora(rank=4))
    whole = FlatModel(catalog.build(Transformer(width=256, layers=3), (8,), 10, seed=0)).layout
    small = FlatModel(catalog.build(spec, (8,), 10, seed=0)).layout

    # Query and value of three layers, each 4 × 256 twice; and the last layer.
    assert small.size == 3 * 2 * 2 * 4 * 256 + 10 * 256 + 10
    assert small.file_size < 0.01 * whole.file_size


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (Mlp(hidden=(8, 8), adapters=Lora(targets=("dense",))), "mlp has no layer called dense .*would do: 1, 3$"),
        (Softmax(adapters=Lora()), "softmax has no layer that lora can adapt; it has none below its last layer"),
        (Mlp(adapters=Lora(targets=("head",))), "no layer called head .*would do: 1$"),
        (CustomModel(name="torch.nn:Flatten", adapters=Lora()), "no linear layer and no convolution"),
    ],
)
def test_adapters_without_a_target_name_the_layers_that_would_do(spec: ModelSpec, reason: str) -> None:
    """The last layer is none of them: it is trained in full."""
    with pytest.raises(BadInput, match=reason):
        catalog.build(spec, (5,), 3, seed=0)


def test_adapters_leave_torchs_own_attention_alone() -> None:
    """It reads the weights past them, so they would be trained, or not even that, and never used."""
    spec = CustomModel(name=f"{__name__}:attentive", adapters=Lora(targets=("linear1", "out_proj")))
    with pytest.raises(BadInput, match=r"no layer called linear1, out_proj .*would do: own$"):
        catalog.build(spec, (8,), 2, seed=0)


def test_training_that_changes_what_adapters_freeze_is_refused() -> None:
    """It would not be sent, and would reach the next client."""
    model = FlatModel(catalog.build(Mlp(adapters=Lora()), (5,), 3, seed=0))
    base = model.save()
    with torch.no_grad():
        model.model.get_parameter("1.base_layer.weight").add_(1)

    with pytest.raises(BadInput, match=r"training changed 1\.base_layer\.weight, which adapters freeze"):
        model.update(base)


# --- the file that a model begins with ------------------------------------------------------


def saved(path: Path, spec: ModelSpec, classes: int, **changes: Any) -> dict[str, Tensor]:
    """A start file of another seed, with some tensors changed or (None) left out."""
    tensors = {**catalog.build(spec, (5,), classes, seed=9).state_dict(), **changes}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(tensors, path)
    return tensors


@pytest.mark.parametrize("adapters", [None, Lora(rank=2)])
def test_a_model_begins_with_the_tensors_of_its_start_file(tmp_path: Path, adapters: Lora | None) -> None:
    """Where it has adapters, those of the model without them; what fedq writes is such a file."""
    tensors = saved(tmp_path / "start", Mlp(), 3, **{"1.weight": torch.ones(64, 5, dtype=torch.float16)})
    model = catalog.build(Mlp(adapters=adapters), (5,), 3, seed=0)
    begin_with(model, tmp_path / "start")
    weight = model.get_parameter("1.base_layer.weight" if adapters else "1.weight")

    assert (weight == 1).all()
    assert weight.dtype is torch.float32
    assert torch.equal(model.get_parameter("head.weight"), tensors["head.weight"])
    (tmp_path / "ours").write_bytes(FlatModel(catalog.build(Mlp(), (5,), 3, seed=9)).save().tobytes())
    begin_with(model, tmp_path / "ours")
    assert not (weight == 1).any()


def test_a_start_file_without_its_last_layer_begins_a_model_of_other_classes(tmp_path: Path) -> None:
    """A trained body and a new head."""
    tensors = saved(tmp_path / "start", Mlp(), 99, **{"head.weight": None, "head.bias": None})
    model = catalog.build(Mlp(), (5,), 3, seed=0)
    head = model.get_parameter("head.weight").clone()
    begin_with(model, tmp_path / "start")

    assert torch.equal(model.get_parameter("1.weight"), tensors["1.weight"])
    assert torch.equal(model.get_parameter("head.weight"), head)


@pytest.mark.parametrize(
    ("classes", "changes", "reason"),
    [
        (3, {"1.bias": None}, r"has no tensor 1\.bias \[64\], and the model has"),
        (3, {"head.bias": None}, r"has no tensor head\.bias"),
        (3, {"2.weight": torch.ones(1)}, r"has a tensor 2\.weight, and the model has none of that name"),
        (3, {"1.bias": torch.ones(7)}, r"1\.bias is \[7\] in the file and \[64\] in the model$"),
        (4, {}, r"head\.\w+ is \[4.*\] in the file and \[3.*\] in the model; leave the last layer out of the file"),
        (3, {"1.bias": torch.ones(64, dtype=torch.int64)}, r"1\.bias is torch\.int64 in the file"),
    ],
)
def test_a_start_file_that_does_not_fit_is_refused_whole(
    tmp_path: Path, classes: int, changes: dict[str, Any], reason: str
) -> None:
    """The model stays as it was."""
    saved(tmp_path / "start", Mlp(), classes, **changes)
    model = catalog.build(Mlp(), (5,), 3, seed=0)
    before = FlatModel(model).save()

    with pytest.raises(BadInput, match=f"^model.start: .*{reason}"):
        begin_with(model, tmp_path / "start")
    assert np.array_equal(FlatModel(model).save(), before)


def test_a_start_file_is_never_a_pickle(tmp_path: Path) -> None:
    """Nor anything else that may run."""
    model = catalog.build(Mlp(), (5,), 3, seed=0)
    torch.save(model.state_dict(), tmp_path / "start")

    with pytest.raises(BadInput, match=r"model\.start: the file cannot be read as safetensors"):
        begin_with(model, tmp_path / "start")


# --- what stays with a client ---------------------------------------------------------------


class Normed(nn.Module):
    """A body with batch norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.body(x)))  # type: ignore[no-any-return]


NORM = {"norm.weight", "norm.bias", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
STATISTICS = NORM - {"norm.weight", "norm.bias"}
HEAD = {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("kept", "own", "apart"),
    [
        (Kept(), set(), set()),
        (Kept(buffers="local"), STATISTICS, STATISTICS),
        (Kept(buffers="left_out"), set(), STATISTICS),
        (Kept(personal=("head.*",)), HEAD, HEAD),
        (Kept(personal=("batch_norm",)), NORM, NORM),
        (
            Kept(personal=("head.*", "*.weight"), buffers="local"),
            None,
            HEAD | STATISTICS | {"body.weight", "norm.weight"},
        ),
        (Kept(personal=("head.*",), buffers="left_out"), HEAD, HEAD | STATISTICS),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),
)
def test_what_a_client_keeps_does_not_travel_and_comes_back(kept: Kept, own: set[str] | None, apart: set[str]) -> None:
    """Into another trainer's model, whose last client left something else in its place."""
    torch.manual_seed(0)
    first = Normed()
    source = FlatModel(first, kept)
    start = copy.deepcopy(first).state_dict()
    base = source.save()
    target = FlatModel(copy.deepcopy(first), kept)
    for model in (source.model, target.model):
        train(model, (4,), 3)
    source.update(base)
    shared, stays = source.save(), source.personal()

    assert {tensor.name for tensor in source.layout.tensors} == start.keys() - apart
    assert stays.keys() == (apart if own is None else own)
    target.load(shared, stays)
    for name, tensor in target.model.state_dict().items():
        kept_or_shared = name not in apart or name in stays
        assert torch.equal(tensor, source.model.state_dict()[name] if kept_or_shared else start[name]), name
    target.load(base)  # a client's first time
    for name, tensor in target.model.state_dict().items():
        assert torch.equal(tensor, start[name]), name


def test_what_a_client_keeps_is_a_copy_of_float32() -> None:
    """Of any model: what is trained next does not reach into it."""
    model = FlatModel(Odd(), Kept(personal=("low", "wide"), buffers="local"))
    stays = model.personal()
    with torch.no_grad():
        for tensor in model.model.state_dict().values():
            tensor.fill_(1)

    assert {name: array.dtype for name, array in stays.items()} == {
        "low": np.float32,
        "wide": np.float32,
        "norm.running_mean": np.float32,
        "norm.running_var": np.float32,
        "norm.num_batches_tracked": np.int64,
    }
    assert (stays["low"] == 0.5).all()
    model.load(model.save(), stays)
    assert (model.model.get_parameter("low") == 0.5).all()


def test_adapters_may_be_kept_in_part() -> None:
    """The patterns are of what is trained."""
    model = catalog.build(Mlp(adapters=Lora(rank=2)), (5,), 3, seed=0)

    assert FlatModel(model, Kept(personal=("*lora_B*",))).personal().keys() == {"1.lora_B.default.weight"}
    with pytest.raises(BadInput, match=r"\*\.base_layer\.\* fits no tensor that is trained"):
        FlatModel(model, Kept(personal=("*.base_layer.*",)))


@pytest.mark.parametrize(
    ("personal", "reason"),
    [
        (("tail.*",), "tail.* fits no tensor that is trained; there are body.bias, body.weight, head.bias"),
        (("head.*", "1"), "1 fits no tensor"),
        (
            ("body.*", "head.*", "batch_norm"),
            "body.*, head.*, batch_norm is all that is trained; nothing would be shared",
        ),
    ],
)
def test_a_pattern_that_keeps_nothing_or_all_is_refused(personal: tuple[str, ...], reason: str) -> None:
    """The first is a mistake in a name; after the second there is no federated learning."""
    with pytest.raises(BadInput) as refused:
        FlatModel(Normed(), Kept(personal=personal))
    assert reason in str(refused.value)


def test_one_tensor_of_two_names_is_not_kept_under_one_of_them() -> None:
    """It would travel under the other."""
    model = Normed()
    model.head = model.body

    with pytest.raises(BadInput, match=r"head\.bias and body\.bias are one tensor; name both, or neither"):
        FlatModel(model, HEAD_ONLY)
    assert FlatModel(model, Kept(personal=("head.*", "body.*"))).personal().keys() == {
        f"{layer}.{name}" for layer in ("head", "body") for name in ("weight", "bias")
    }


def test_what_a_client_kept_of_another_model_is_refused() -> None:
    """A file of its own that was damaged, or of another job."""
    model = FlatModel(Normed(), HEAD_ONLY)
    base = model.save()

    with pytest.raises(Refused, match=r"a tensor body\.bias, which is not among"):
        model.load(base, {"body.bias": np.zeros(4, np.float32)})
    with pytest.raises(Refused, match=r"head\.bias of shape \(4,\), not \(3,\)"):
        model.load(base, {"head.bias": np.zeros(4, np.float32)})
