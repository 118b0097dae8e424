"""A cluster's servers from outside it: its settings as kubectl reads them, and a port here for each of its Services.

`fedq connect` holds these open for other commands, which find them by `.fedq/env`; `fedq submit` for itself.
"""

import base64
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

from dotenv import dotenv_values

from services.cli.ops.forwarding import Forward
from services.cli.ops.orchestrators import kubernetes, tools
from services.cli.ops.orchestrators.kubernetes import Kubernetes
from services.cli.ui import output
from shared.errors import BadInput, Unavailable
from shared.process import service, settings_file

SETTINGS = "fedq"  #: the ConfigMap
SECRET = "fedq-operator"  # noqa: S105 - the name of one
AUTHORITY = "fedq-ca"  #: the Secret with the certificate of the authority, where the cluster has one of its own
TRUST = "SSL_CERT_FILE"
REGISTRY = "http://registry:8080"  #: where a cluster has it, unless its settings say otherwise
FILE = Path(".fedq/env")  #: the file that `shared.process.settings` reads
PORTS = {"amqp": 5672, "amqps": 5671, "redis": 6379, "rediss": 6379, "http": 80, "https": 443}
LIVE = 1.0  #: seconds for a broker to take a connection


@contextmanager
def connected(place: Kubernetes) -> Iterator[None]:
    """This process's `FEDQ_*` lead to a cluster's servers for as long as the block runs."""
    with tools.ending_in_order(), ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        stack.enter_context(_in_environment(reachable(place, folder, stack)))
        yield


def connect(namespace: str | None) -> None:
    """Writes `.fedq/env` and keeps what it leads to open until somebody interrupts."""
    place = kubernetes.at(namespace)
    _refuse_a_live_stack()
    with tools.ending_in_order(), service.until_stopped() as stop, ExitStack() as stack:
        found = reachable(place, FILE.parent, stack)
        text = _text(place, {name: value for name, value in found.items() if name != TRUST})
        _write_private(text)
        stack.callback(_remove, text)
        if ours := sorted(found.keys() & os.environ.keys() - {TRUST}):
            output.note(f"{', '.join(ours)} of your environment is read before {FILE}: unset it")
        print(f"{FILE} leads to {place.place} until you press Ctrl-C")
        for name in ("FEDQ_RABBITMQ_URL", "FEDQ_REGISTRY_URL", "FEDQ_S3_URL"):
            if name in found:
                url = urlsplit(found[name])
                print(f"  {name.split('_')[1].lower():<8}  {url.scheme}://{url.netloc.rpartition('@')[2]}")
        if TRUST in found:
            print(f"its certificates are of its own authority: export {TRUST}={found[TRUST]}")
        sys.stdout.flush()
        stop.wait()


def reachable(place: Kubernetes, folder: Path, stack: ExitStack) -> dict[str, str]:
    """An operator's settings of a cluster, with ports of this machine in place of its Services.

    The ports stay open until `stack` is closed. What leads to no Service, such as a broker that somebody else runs,
    stays as it is. Where the cluster has an authority of its own, its certificate is put into `folder`.
    """
    found = settings(place)
    if TRUST in found:
        found[TRUST] = str(_authority(place, folder))
    urls = {name: _url(name, value) for name, value in found.items() if name.endswith("_URL") and value}
    here = {name: service for name, url in urls.items() if (service := _service(place, url.hostname or ""))}
    known = _forwardable(place)
    wanted: dict[str, set[int]] = {}
    for name, to in here.items():
        if to in known:
            wanted.setdefault(to, set()).add(_port(urls[name]))
    forwards = {to: Forward(place.command, to, sorted(ports)) for to, ports in wanted.items()}
    for forward in forwards.values():
        stack.enter_context(forward)
    for name, to in here.items():
        if to in forwards:
            found[name] = urlunsplit(_moved(urls[name], forwards[to].local(_port(urls[name]))))
    return found


def settings(place: Kubernetes) -> dict[str, str]:
    """Settings for an operator from a cluster's ConfigMap and Secret; `BadInput` if they are missing."""
    found = {"FEDQ_REGISTRY_URL": REGISTRY}
    try:
        found |= place.get("configmap", SETTINGS).get("data") or {}
        hidden = place.get("secret", SECRET).get("data") or {}
    except Unavailable as error:
        if '" not found' in str(error):
            raise BadInput(f"{place.place} has no fedq ({error}); --namespace names another") from None
        raise
    found |= {name: base64.b64decode(value).decode() for name, value in hidden.items()}
    return {name: value.strip() for name, value in found.items() if name.startswith("FEDQ_") or name == TRUST}


def _authority(place: Kubernetes, folder: Path) -> Path:
    """Whom the cluster's services trust, as a file of this machine; the key of that authority stays where it is."""
    words = ("get", "secret", AUTHORITY, r"--output=jsonpath={.data.ca\.crt}")
    folder.mkdir(exist_ok=True)
    file = (folder / "ca.crt").absolute()
    file.write_bytes(base64.b64decode(tools.run(place.command(*words))))
    return file


def _forwardable(place: Kubernetes) -> set[str]:
    """The Services that stand for pods; one that is a name for a host outside has none to forward to."""
    every: list[Any] = place.get("services")["items"]
    return {one["metadata"]["name"] for one in every if one["spec"].get("selector")}


def _service(place: Kubernetes, host: str) -> str | None:
    """Which Service of the namespace a host name would be, by the rules of a cluster's DNS; None where none can be."""
    name, _, rest = host.partition(".")
    here = ("", place.namespace, f"{place.namespace}.svc", f"{place.namespace}.svc.cluster.local")
    return name if rest in here else None


def _url(name: str, value: str) -> SplitResult:
    if (url := _server(value)) is None:  # whose text may hold a password
        raise BadInput(f"{name}, as the cluster's ConfigMap or Secret has it, is no URL that leads to a server")
    return url


def _server(value: str) -> SplitResult | None:
    """A URL of a kind of server that fedq knows; None where it is none."""
    try:
        url = urlsplit(value)
        _ = url.port
    except ValueError:
        return None
    return url if url.scheme in PORTS else None


def _port(url: SplitResult) -> int:
    return url.port or PORTS[url.scheme]


def _moved(url: SplitResult, port: int) -> SplitResult:
    login, at, _ = url.netloc.rpartition("@")
    return url._replace(netloc=f"{login}{at}127.0.0.1:{port}")


def _refuse_a_live_stack() -> None:
    """`.fedq/env` of a stack that runs stays; one that was left behind is overwritten."""
    url = _server(dotenv_values(FILE).get("FEDQ_AMQP_URL") or "")
    if url is None:
        return
    with suppress(OSError), socket.create_connection((url.hostname or "", _port(url)), timeout=LIVE):
        raise BadInput(
            f"{FILE} leads to a stack that runs, RabbitMQ at {url.hostname}:{_port(url)}: end that first (`make down`, "
            "or Ctrl-C of another `fedq connect`), or call this from another folder"
        )


def _text(place: Kubernetes, found: dict[str, str]) -> str:
    """The text of `.fedq/env`; `BadInput` where that file cannot hold it."""
    text = f"# by `fedq connect` to {place.place}; gone when that ends\n"
    try:
        return text + settings_file.lines(found)
    except BadInput as error:
        raise BadInput(f"{FILE}: {error}; `fedq submit` takes it as it is") from None


def _write_private(text: str) -> None:
    """Writes the file for its owner's eyes, whole or not at all."""
    FILE.parent.mkdir(exist_ok=True)
    fresh = FILE.with_name(f".env.{secrets.token_hex(4)}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    fresh.rename(FILE)


def _remove(text: str) -> None:
    """Removes the file, where nobody has written another one."""
    with suppress(FileNotFoundError):
        if FILE.read_text() == text:
            FILE.unlink()


@contextmanager
def _in_environment(found: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(found)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
