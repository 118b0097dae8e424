"""The errors that fedq raises on purpose; the class decides what happens next.

::

    FedqError             one sentence that names the thing and says what to do
    ├── BadInput          a user's mistake in a file, an argument or a setting     exit code 2
    ├── JobFailed         the training ended without its model                     exit code 1
    ├── Unavailable       a server did not do its part in time                     exit code 3
    │   ├── Denied        a server refuses fedq's login: another try is no better
    │   └── QueueFull     the broker refuses a message: its queue is not emptied
    ├── BadMessage        a body that is no event of this version                  → dead-letters
    ├── Stale             late, repeated, or of a round that is over               → acknowledged, logged
    │   ├── Fenced        another replica owns the job now
    │   │   └── LedgerLost    Redis has lost data: the job is read from the store again
    └── Refused           an update that must not be folded                        → recorded with the reason
        ├── OverLimit     over one of the job's limits, which may be too low
        └── Unfit         answers the request, so no better one will come          → counts as the client's answer

A consumer treats each as `shared.amqp.bus.settle` decides.
"""

import ssl
from collections.abc import Iterator


class FedqError(Exception):
    """Base of all errors of fedq; the text is meant for users."""

    exit_code = 1


class BadInput(FedqError):
    """A mistake in the user's input, which fedq cannot work with."""

    exit_code = 2


class JobFailed(FedqError):
    """The job ended without reaching its last round."""


class Unavailable(FedqError):
    """RabbitMQ, Redis or the object store is away, slow or refuses fedq; another try may help."""

    exit_code = 3


class Denied(Unavailable):
    """A server refuses fedq's login, or gives it too few rights; an operator must repair that."""


class QueueFull(Unavailable):
    """The broker refused a message because its queue has reached the policy's length."""


class BadMessage(FedqError):
    """A message that no later try could make readable."""


class Stale(FedqError):
    """A message that was valid once: its round is over, or its work already done."""


class Fenced(Stale):
    """This replica's lease on the job ended and another took it over: write nothing more."""


class LedgerLost(Fenced):
    """Redis was flushed or went back in time: an owner that acts on its earlier answers writes nothing more."""


class Refused(FedqError):
    """An update that fails a check; the text is the reason that the record keeps."""


class Unfit(Refused):
    """An update that answers its client's request, but has contents that must not be folded."""


class OverLimit(Refused):
    """An update that a limit of the job forbids; the text names the limit's key and value."""


def tls_trouble(error: BaseException, setting: str) -> str | None:
    """A sentence on the TLS trouble anywhere inside a driver's error, with its remedy; None if there is none.

    `setting` holds the server's URL.
    """
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            reason = cause.verify_message.rstrip(".")
            return f"its certificate is not trusted ({reason}); {_remedy(cause.verify_code, setting)}"
        # A connection that ends in the middle comes from a server that dies, and does not mean a fault in its TLS.
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
    """An error and all errors behind it: drivers keep those in `args`, in attributes, or as its cause."""
    found, waiting = [error], [error]
    while waiting:
        here = waiting.pop()
        yield here
        kept = (*here.args, *vars(here).values(), here.__cause__, here.__context__)
        new = [cause for cause in kept if isinstance(cause, BaseException) and cause not in found]
        found += new
        waiting += new
