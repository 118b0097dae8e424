"""A model as the difference to the one before it: what a round sends down where `compress.model` is given.

The committed model is what a receiver can build, old + decoded, and not what the server step gave: so both have the
same bits, each new difference refers to a model that everybody has, and no error adds up unseen. What a difference
left out is in the server's residual. Buffers are in it as the new model has them.
"""

from shared.aggregation.compression.encoding import Encoding, check_encodable
from shared.aggregation.compression.feedback import encode_with_feedback
from shared.aggregation.weights import File, Flat


def shrink(old: Flat, new: Flat, encoding: Encoding, residual: Flat | None, file: File) -> None:
    """Encodes new − old, each of shape (P,), into `file`, and replaces `new` by what `rebuild` makes of `old`.

    In place but for what `encoding.encode` needs. `Refused` where `new` holds NaN or Inf; nothing is changed then.
    """
    check_encodable(new)
    new[: encoding.parameters] -= old[: encoding.parameters]
    encode_with_feedback(encoding, new, residual, file)
    new[:] = old
    rebuild(new, file, encoding)


def rebuild(model: Flat, file: File, encoding: Encoding) -> None:
    """Makes the new model of the old one, shape (P,), in place: one float32 addition at each place of the file."""
    model[encoding.parameters :] = 0
    for place, values in encoding.tiles(file):
        model[place] += values
