"""Error feedback: what an encoding leaves out is not lost but added to what it encodes next.

Seide et al. 2014 for one bit, Karimireddy et al. 2019 for any encoding. The sum of what was decoded follows the sum of
what was meant: Σ decoded + residual = Σ values.
"""

from shared.aggregation.compression.encoding import Encoding, check_encodable
from shared.aggregation.weights import File, Flat


def encode_with_feedback(encoding: Encoding, values: Flat, residual: Flat | None, file: File) -> None:
    """Encodes values + residual, each of shape (P,); the residual becomes what the file leaves out of that sum.

    In place, with no memory beyond what `encode` needs. Without a residual, what is left out is lost. `Refused` where
    `values` hold NaN or Inf; the residual is then as it was.
    """
    if residual is None:
        encoding.encode(values, file)
        return
    check_encodable(values)
    residual += values
    encoding.encode(residual, file)
    for place, decoded in encoding.tiles(file):
        residual[place] -= decoded
