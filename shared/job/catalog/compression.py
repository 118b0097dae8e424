"""How updates, and models as the difference to the one before, are made smaller on their way."""

from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictInt

from shared.job.catalog.choice import Choice, Strict

Block = Annotated[StrictInt, Field(ge=8, le=32768, multiple_of=8)]  # at most a tile: `shared.aggregation.weights.TILE`


class Lossy(Strict):
    """What every encoding has."""

    error_feedback: StrictBool = True  # what an encoding left out is added to what it encodes next (Seide et al. 2014)


class Bf16(Lossy):
    """The upper half of each float32: 2 times fewer bytes."""

    name: Literal["bf16"] = "bf16"


class Int8(Lossy):
    """8 bits each, and a float32 scale for each block: 4 times fewer bytes."""

    name: Literal["int8"] = "int8"
    block: Block = 1024


class Int4(Lossy):
    """4 bits each, and a float32 scale for each block: 8 times fewer bytes."""

    name: Literal["int4"] = "int4"
    block: Block = 256


class TopK(Lossy):
    """The largest `ratio` of values alone, with their places (Aji and Heafield 2017): at 1 %, 50 times fewer bytes."""

    name: Literal["topk"] = "topk"
    ratio: float = Field(default=0.01, gt=0, le=0.5)


EncodingSpec = Annotated[Bf16 | Int8 | Int4 | TopK, Choice("compress")]


class CompressSpec(Strict):
    """What travels compressed; left out, it travels as float32."""

    update: EncodingSpec | None = None  # each client's, on the way up
    model: EncodingSpec | None = None  # the difference to the model before, on the way down
