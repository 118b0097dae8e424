"""Compression of what travels: updates, and models as the difference to the previous one."""

from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictInt

from shared.job.catalog.choice import Choice, Strict

Block = Annotated[StrictInt, Field(ge=8, le=32768, multiple_of=8)]  # at most a tile: `shared.aggregation.weights.TILE`


class Lossy(Strict):
    """Base of all encodings: each loses precision, and may make up for it later."""

    error_feedback: StrictBool = True  # the loss of one encoding is added to the next input (Seide et al. 2014)


class Bf16(Lossy):
    """The upper half of each float32: 2 times fewer bytes."""

    name: Literal["bf16"] = "bf16"


class Int8(Lossy):
    """8 bits per value, and a float32 scale per block: 4 times fewer bytes."""

    name: Literal["int8"] = "int8"
    block: Block = 1024


class Int4(Lossy):
    """4 bits per value, and a float32 scale per block: 8 times fewer bytes."""

    name: Literal["int4"] = "int4"
    block: Block = 256


class TopK(Lossy):
    """Only the largest `ratio` of values, with their places (Aji and Heafield 2017): at 1 %, 50 times fewer bytes."""

    name: Literal["topk"] = "topk"
    ratio: float = Field(default=0.01, gt=0, le=0.5)


EncodingSpec = Annotated[Bf16 | Int8 | Int4 | TopK, Choice("compress")]


class CompressSpec(Strict):
    """Encodings of updates and models on their way; one that is left out means uncompressed float32."""

    update: EncodingSpec | None = None  # of each client's update, on the way up
    model: EncodingSpec | None = None  # of the difference to the previous model, on the way down
