"""Every error fedq raises on purpose; its class is its fate.

::

    FedqError             one sentence that names the thing and says what to do
    ├── BadInput          a person's mistake in a file, an argument or a setting   exit code 2
    ├── JobFailed         the training ended without its model                     exit code 1
    ├── Unavailable       a server did not do its part in time                     exit code 3
    │   ├── Denied        it refuses who we say we are: another try is no better
    │   └── QueueFull     the broker refuses a message: nobody empties the queue
    ├── BadMessage        a body that is no event of this version                  → dead-letters
    ├── Stale             late, repeated, or of a round that is over               → acknowledged, logged
    │   ├── Fenced        another replica owns the job now
    │   │   └── RecordLost    Redis no longer has what it had: the job is read from the store again
    └── Refused           an update that must not be folded                        → recorded with the reason
        ├── OverLimit     by one of the job's limits, which may be too low
        └── Unfit         it is what was asked for: no better one will come        → and its client has answered

What a consumer does with each is decided in one place, `shared.amqp.bus.settle`.
"""

import ssl
from collections.abc import Iterator


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


class Denied(Unavailable):
    """A server refuses our login, or has no such rights for it; a person must mend that."""


class QueueFull(Unavailable):
    """The broker refused a message because its queue has reached the policy's length."""


class BadMessage(FedqError):
    """A message that no later try could make readable."""


class Stale(FedqError):
    """A message that was right once: its round is over, or its work already done."""


class Fenced(Stale):
    """This replica's lease on the job ended and another took it over: write nothing more."""


class LedgerLost(Fenced):
    """Redis was flushed or went back in time: whoever acts on what it said before writes nothing more."""


class Refused(FedqError):
    """An update that fails a check; the text is the reason that the record keeps."""


class Unfit(Refused):
    """An update that answers what its client was asked, and must not be folded for what it says or holds."""


class OverLimit(Refused):
    """An update that a limit of the job forbids; the text names the limit by its key, and its value."""


def tls_trouble(error: BaseException, setting: str) -> str | None:
    """What is wrong with a server's TLS and what mends it, wherever in a driver's error that is; None if nothing is.

    `setting` holds the server's URL.
    """
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            reason = cause.verify_message.rstrip(".")
            return f"its certificate is not trusted ({reason}); {_remedy(cause.verify_code, setting)}"
        # An end in the middle is a server's that dies, and says nothing of its TLS.
        if isinstance(cause, ssl.SSLError) and cause.reason is not None and not isinstance(cause, ssl.SSLEOFError):
            return f"TLS fails there ({cause.reason}); does this port speak TLS, and is {setting} right?"
    return None


def _remedy(code: int, setting: str) -> str:
    match code:  # OpenSSL's X509_V_ERR_…
        case 9 | 10:
            return f"renew it, or correct this clock or {setting}"
        case 62 | 64:
            return f"let {setting} name a host that it is for"
        case _:
            return f"let SSL_CERT_FILE name the file of its authority, or correct {setting}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and all that it was made from: drivers keep that in `args`, in attributes, or as its cause."""
    found, waiting = [error], [error]
    while waiting:
        here = waiting.pop()
        yield here
        kept = (*here.args, *vars(here).values(), here.__cause__, here.__context__)
        new = [cause for cause in kept if isinstance(cause, BaseException) and cause not in found]
        found += new
        waiting += new
