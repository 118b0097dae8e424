"""Access to a cluster's servers from outside: its settings, read with kubectl, and a local port for each Service.

`fedq connect` keeps the ports open for other commands, which find them through `.fedq/env`; `fedq submit` uses them
itself.
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

SETTINGS = "fedq"  #: name of the ConfigMap
SECRET = "fedq-operator"  # noqa: S105 - the name of a Secret
AUTHORITY = "fedq-ca"  #: the Secret with the CA certificate, if the cluster has a private CA
TRUST = "SSL_CERT_FILE"
REGISTRY = "http://registry:8080"  #: its address in a cluster, unless the settings override it
FILE = Path(".fedq/env")  #: the file that `shared.process.settings` reads
PORTS = {"amqp": 5672, "amqps": 5671, "redis": 6379, "rediss": 6379, "http": 80, "https": 443}
LIVE = 1.0  #: seconds for a broker to take a connection


@contextmanager
def connected(place: Kubernetes) -> Iterator[None]:
    """Makes this process's `FEDQ_*` lead to a cluster's servers within the block."""
    with tools.ending_in_order(), ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        stack.enter_context(_in_environment(reachable(place, folder, stack)))
        yield


def connect(namespace: str | None) -> None:
    """Writes `.fedq/env` and keeps its ports open until an interrupt."""
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
    """An operator's settings for a cluster, with ports of this machine in place of its Services.

    The ports stay open until `stack` is closed. A setting that leads to no Service, such as an external broker, stays
    as it is. If the cluster has a private CA, its certificate is written into `folder`.
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
    """Writes the certificate of the cluster's CA to a local file; the CA's private key stays in the cluster."""
    words = ("get", "secret", AUTHORITY, r"--output=jsonpath={.data.ca\.crt}")
    folder.mkdir(exist_ok=True)
    file = (folder / "ca.crt").absolute()
    file.write_bytes(base64.b64decode(tools.run(place.command(*words))))
    return file


def _forwardable(place: Kubernetes) -> set[str]:
    """The Services that select pods; one that only names an external host has no pod to forward to."""
    every: list[Any] = place.get("services")["items"]
    return {one["metadata"]["name"] for one in every if one["spec"].get("selector")}


def _service(place: Kubernetes, host: str) -> str | None:
    """The Service of the namespace that a host name means by the rules of cluster DNS; None if it means none."""
    name, _, rest = host.partition(".")
    here = ("", place.namespace, f"{place.namespace}.svc", f"{place.namespace}.svc.cluster.local")
    return name if rest in here else None


def _url(name: str, value: str) -> SplitResult:
    if (url := _server(value)) is None:  # the error omits the value, which may hold a password
        raise BadInput(f"{name}, as the cluster's ConfigMap or Secret has it, is no URL that leads to a server")
    return url


def _server(value: str) -> SplitResult | None:
    """The parsed URL if its scheme is of a server that fedq knows, else None."""
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
    """Raises `BadInput` if `.fedq/env` belongs to a running stack; a leftover file may be overwritten."""
    url = _server(dotenv_values(FILE).get("FEDQ_AMQP_URL") or "")
    if url is None:
        return
    with suppress(OSError), socket.create_connection((url.hostname or "", _port(url)), timeout=LIVE):
        raise BadInput(
            f"{FILE} leads to a stack that runs, RabbitMQ at {url.hostname}:{_port(url)}: end that first (`make down`, "
            "or Ctrl-C of another `fedq connect`), or call this from another folder"
        )


def _text(place: Kubernetes, found: dict[str, str]) -> str:
    """The text of `.fedq/env`; `BadInput` if that file cannot hold the settings."""
    text = f"# by `fedq connect` to {place.place}; gone when that ends\n"
    try:
        return text + settings_file.lines(found)
    except BadInput as error:
        raise BadInput(f"{FILE}: {error}; `fedq submit` takes it as it is") from None


def _write_private(text: str) -> None:
    """Writes `.fedq/env` atomically, readable by its owner only."""
    FILE.parent.mkdir(exist_ok=True)
    fresh = FILE.with_name(f".env.{secrets.token_hex(4)}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    fresh.rename(FILE)


def _remove(text: str) -> None:
    """Removes `.fedq/env` if it still has this text."""
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
