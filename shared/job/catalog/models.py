"""The models that a job file may name."""

from typing import Annotated, Literal, Self

from pydantic import Field, StrictInt, model_validator

from shared.job.catalog.choice import Choice, Custom, Strict

Width = Annotated[StrictInt, Field(ge=1, le=65536)]


class Lora(Strict):
    """Low-rank adapters (Hu et al. 2021), by the library peft: only they and the last layer are trained and sent."""

    name: Literal["lora"] = "lora"
    rank: StrictInt = Field(default=8, ge=1, le=1024)
    alpha: float = Field(default=16.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: tuple[str, ...] | None = Field(default=None, min_length=1)  # module names; the model's own if left out


class Network(Strict):
    """Base of all models: the options that each has in addition to its parameters."""

    start: str | None = None  # a safetensors file with the model's first tensors; they are random if left out
    adapters: Lora | None = None


class Softmax(Network):
    """Multinomial logistic regression on the flattened input."""

    name: Literal["softmax"] = "softmax"


class Mlp(Network):
    """Fully connected layers with ReLU between them."""

    name: Literal["mlp"] = "mlp"
    hidden: tuple[Width, ...] = (64,)


class LeNet(Network):
    """LeNet (LeCun et al. 1998) with ReLU and max pooling, sized to the images of the data."""

    name: Literal["lenet"] = "lenet"


class Cnn(Network):
    """Blocks of 3×3 convolution, ReLU and max pooling, then one hidden layer: for MNIST to CIFAR-100."""

    name: Literal["cnn"] = "cnn"
    channels: tuple[Width, ...] = Field(default=(32, 64), min_length=1)
    hidden: Width = 128


class ResNet(Network):
    """ResNet (He et al. 2016): depth 18 or 50 as for ImageNet with a 3×3 stem, or 20, 32, 44, 56 as for CIFAR."""

    name: Literal["resnet"] = "resnet"
    depth: Literal[18, 20, 32, 44, 50, 56] = 20
    norm: Literal["batch", "group"] = "batch"  # group norm has no buffers and no statistics to disagree about


class Vgg9(Network):
    """Six convolutions and three linear layers (the VGG of Simonyan and Zisserman 2014, cut down to small images)."""

    name: Literal["vgg9"] = "vgg9"


class Vgg11(Network):
    """Configuration A of Simonyan and Zisserman 2014 with batch norm, for images from 32×32."""

    name: Literal["vgg11"] = "vgg11"


class Torchvision(Network):
    """Any classification model of torchvision, by its name there, with as many outputs as the data have classes."""

    name: Literal["torchvision"] = "torchvision"
    arch: str = Field(pattern=r"^[a-z][a-z0-9_]{1,60}$")


class CharLstm(Network):
    """Prediction of the next character: embedding, LSTM layers, a linear layer (Caldas et al. 2018, LEAF)."""

    name: Literal["char_lstm"] = "char_lstm"
    embedding: Width = 8
    hidden: Width = 256
    layers: StrictInt = Field(default=2, ge=1, le=8)


class Transformer(Network):
    """A small encoder with learned positions (Vaswani et al. 2017): for sequences of tokens, or images in patches."""

    name: Literal["transformer"] = "transformer"
    width: Width = 64
    heads: StrictInt = Field(default=4, ge=1, le=64)
    layers: StrictInt = Field(default=2, ge=1, le=48)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    patch: StrictInt = Field(default=4, ge=1, le=64)  # pixels of one side of an image's patch

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads is {self.heads}, which does not divide width, {self.width}")
        return self


class CustomModel(Custom, Network):
    """A `torch.nn.Module` of the user's own, made by a function of the data's `shape` and `classes`."""


ModelSpec = Annotated[
    Softmax | Mlp | LeNet | Cnn | ResNet | Vgg9 | Vgg11 | Torchvision | CharLstm | Transformer | CustomModel,
    Choice("model"),
]
