"""Every error fedq raises on purpose; its class is its fate.

::

    FedqError             one sentence that names the thing and says what to do
    ├── BadInput          a person's mistake in a file, an argument or a setting   exit code 2
    ├── JobFailed         the training ended without its model                     exit code 1
    ├── Unavailable       a server did not do its part in time                     exit code 3
    │   └── QueueFull     the broker refuses a message: nobody empties the queue
    ├── BadMessage        a body that is no event of this version                  → dead-letters
    ├── Stale             late, repeated, or of a round that is over               → acknowledged, logged
    │   ├── Fenced        another replica owns the job now
    │   │   └── RecordLost    Redis no longer has what it had: the job is read from the store again
    └── Refused           an update that must not be folded                        → recorded with the reason

What a consumer does with each is decided in one place, `shared.bus.settle`.
"""


class FedqError(Exception):
    """Base of all; its text is meant for a person."""

    exit_code = 1


class BadInput(FedqError):
    """A person gave something fedq cannot work with."""

    exit_code = 2


class JobFailed(FedqError):
    """The job ended without reaching its last round."""


class Unavailable(FedqError):
    """RabbitMQ, Redis or the object store is away, slow or refuses us; worth another try."""

    exit_code = 3


class QueueFull(Unavailable):
    """The broker refused a message because its queue has reached the policy's length."""


class BadMessage(FedqError):
    """A message that no later try could make readable."""


class Stale(FedqError):
    """A message that was right once: its round is over, or its work already done."""


class Fenced(Stale):
    """This replica's lease on the job ended and another took it over: write nothing more."""


class RecordLost(Fenced):
    """Redis was flushed or went back in time: whoever acts on what it said before writes nothing more."""


class Refused(FedqError):
    """An update that fails a check; the text is the reason that the record keeps."""
