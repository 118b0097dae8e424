"""The encoding that a job file names."""

from shared.aggregation.compression.bf16 import Bfloat16
from shared.aggregation.compression.blocks import EightBits, FourBits
from shared.aggregation.compression.encoding import Encoding, Plain
from shared.aggregation.compression.topk import Largest
from shared.aggregation.weights import Layout
from shared.job.catalog.compression import Bf16, EncodingSpec, Int4, Int8, TopK


def encoding_of(spec: EncodingSpec | None, plain: Layout) -> Encoding:
    """How vectors travel that, uncompressed, would be the float32 tensors of `plain`: as those where spec is None."""
    match spec:
        case None:
            return Plain(plain)
        case Bf16():
            return Bfloat16(plain)
        case Int8():
            return EightBits(plain, spec.block)
        case Int4():
            return FourBits(plain, spec.block)
        case TopK():
            return Largest(plain, spec.ratio)
