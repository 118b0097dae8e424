"""TLS to every server: checked against the authority that SSL_CERT_FILE names, or the connection is refused.

The session's servers speak plain text; a terminator in front of each has the certificate. A second stack that speaks
TLS itself would take longer to start than all of this takes, and no line of ours would notice the difference.
"""

import asyncio
import contextlib
import re
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from deploy.native.stack import Role, Stack
from services.trainer.parent.worker import make_app
from shared.amqp import management
from shared.amqp.connection import Link
from shared.errors import Unavailable, tls_trouble
from shared.process import settings
from shared.redis.client import Redis
from shared.s3.store import Blobs
from tests.conftest import Servers
from tests.harness import Services, until

HOST = "localhost"
SECONDS = 60.0  # in which whatever is wrong with a connection is said, whatever else the machine has to do
PATIENCE = 1.0  # of those drivers that would try again for longer

#: The settings that hold a URL: the server in front of which TLS ends, and the scheme that asks for it.
URLS = {
    "FEDQ_AMQP_URL": ("amqp", "amqps"),
    "FEDQ_RABBITMQ_URL": ("management", "https"),
    "FEDQ_REDIS_URL": ("redis", "rediss"),
    "FEDQ_S3_URL": ("s3", "https"),
}
TINY = ("data.clients=4", "select.clients=2", "rounds.target=2", "rounds.minimum=2", "rounds.count=2", "train.epochs=1")


class Authority:
    """A certificate authority that nobody knows but who is given its file."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory, self._name = directory, x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        certificate = self._signed(self._name, self._key.public_key(), timedelta(days=1), constraints)
        self.file = directory / f"{name}.pem"
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def certificate(self, host: str = HOST, *, valid: timedelta = timedelta(days=1)) -> Path:
        """A server's certificate and its key in one file; `valid` is counted from now and may be over."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        certificate = self._signed(subject, key.public_key(), valid, x509.SubjectAlternativeName([x509.DNSName(host)]))
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path = self._directory / f"{certificate.serial_number}.pem"
        path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
        return path

    def _signed(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, valid: timedelta, extension: x509.ExtensionType
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=30))
            .not_valid_after(now + valid)
            .add_extension(extension, critical=True)
            .sign(self._key, hashes.SHA256())
        )


class Terminators:
    """TLS in front of plain servers: decrypts what comes and hands it on."""

    def __init__(self) -> None:
        self._servers: list[asyncio.Server] = []
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="terminators", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(SECONDS)
        self._loop.close()

    def before(self, port: int, context: ssl.SSLContext) -> int:
        """A new port on loopback where TLS ends on its way to `port`."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._open.add(writer)
            await _join(reader, writer, *await asyncio.open_connection("127.0.0.1", port))
            self._open.discard(writer)

        async def begin() -> int:
            server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
            self._servers.append(server)
            found: int = server.sockets[0].getsockname()[1]
            return found

        return self._do(begin())

    def reset_all(self) -> None:
        """Every connection, now; others may follow."""
        self._do(self._reset())

    async def _reset(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        future: Future[Any] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result(SECONDS)

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        await self._reset()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for _ in range(2):  # a transport closes its socket in a later turn of the loop
            await asyncio.sleep(0)


async def _join(
    near: asyncio.StreamReader, back: asyncio.StreamWriter, far: asyncio.StreamReader, on: asyncio.StreamWriter
) -> None:
    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError):
                while piece := await source.read(1 << 16):
                    sink.write(piece)
                    await sink.drain()
        finally:  # a pump that is cancelled closes its end too
            sink.close()

    await asyncio.gather(pump(near, on), pump(far, back))


def context(certificate: Path) -> ssl.SSLContext:
    """A server's side of TLS; connections to come show what is loaded into it last."""
    found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    found.load_cert_chain(certificate)
    return found


def at(url: str, scheme: str, port: int) -> str:
    """The same URL by another scheme, and to another port of this machine by its name."""
    parts = urlsplit(url)
    login, separator, _ = parts.netloc.rpartition("@")
    return parts._replace(scheme=scheme, netloc=f"{login}{separator}{HOST}:{port}").geturl()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "ours")


@pytest.fixture(scope="module")
def terminators() -> Iterator[Terminators]:
    with Terminators() as found:
        yield found


@dataclass
class Secured(Servers):
    """A test's servers by TLS alone."""

    ports: dict[str, int]
    authority: Path

    def environment(self, role: Role = "operator") -> dict[str, str]:
        found = super().environment(role)
        for setting, (server, scheme) in URLS.items():
            if setting in found:
                found[setting] = at(found[setting], scheme, self.ports[server])
        return {**found, "SSL_CERT_FILE": str(self.authority)}


@pytest.mark.timeout(180)
def test_a_job_by_tls_alone(
    servers: Servers,
    authority: Authority,
    terminators: Terminators,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every service and the command line; and a certificate that expires under them is named, and its heir is taken."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    shown = context(authority.certificate())
    own = servers.stack.state.ports
    ports = {server: terminators.before(own[server], shown) for server, _ in URLS.values()}
    services = Services(
        Secured(servers.stack, servers.vhost, servers.database, servers.buses, ports, authority.file), tmp_path
    )
    arguments = [word for change in TINY for word in ("--set", change)]
    try:
        services.all(trainers=1)
        services.fedq("start", "examples/digits.yaml", *arguments, "--watch")
        findings = {finding["about"]: finding["state"] for finding in services.json("doctor")["findings"]}
        assert {"wrong", "away"}.isdisjoint(findings.values()), findings

        shown.load_cert_chain(authority.certificate(valid=-timedelta(days=1)))
        terminators.reset_all()
        trainer = services.started[-1]
        reason = "RabbitMQ: its certificate is not trusted (certificate has expired)"
        until(lambda: reason in trainer.tail(1000), SECONDS, "the reason in Celery's words", detail=services.tails)
        shown.load_cert_chain(authority.certificate())
        services.fedq("start", "examples/digits.yaml", *arguments, "--watch")
    finally:
        services.stop()
        for bus in servers.buses:
            bus.close()


def _pika(given: settings.Cli) -> None:
    link = Link(given.amqp_url.get_secret_value(), "test", "test")
    try:
        link.call(lambda channels: channels.server(), PATIENCE)
    finally:
        link.close()


def _celery(given: settings.Cli) -> None:
    trainer = settings.Trainer.model_validate(given.model_dump())
    with make_app(trainer, "cpu", "t", Path()).connection_for_write() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0)


#: Each library that opens connections: the setting that says where to, and a use of it.
DRIVERS: dict[str, tuple[str, Callable[[settings.Cli], object]]] = {
    "pika": ("FEDQ_AMQP_URL", _pika),
    "celery": ("FEDQ_AMQP_URL", _celery),
    "urllib": ("FEDQ_RABBITMQ_URL", lambda given: management.missing_policies(given, "fedq")),
    "redis": ("FEDQ_REDIS_URL", lambda given: Redis(given).ping()),
    "minio": ("FEDQ_S3_URL", lambda given: Blobs(given, patience=PATIENCE).exists("jobs/none")),
}
#: What may be wrong with a certificate, and OpenSSL's words for it.
UNTRUSTED = {
    "of another authority": "unable to get local issuer certificate|self-signed certificate in certificate chain",
    "for another host": "Hostname mismatch, certificate is not valid for 'localhost'",
    "of yesterday": "certificate has expired",
}
TLS_TO_PLAIN, PLAIN_TO_TLS = "TLS to a plain port", "plain text to a TLS port"


class Outcome(NamedTuple):
    """What came of a connection, and after how many seconds."""

    error: Exception | None
    seconds: float


@pytest.fixture(scope="module")
def outcomes(
    stack: Stack, authority: Authority, terminators: Terminators, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Outcome]:
    """Each driver at each kind of server, all at once because some of them take their time."""
    certificates = {
        "trusted": authority.certificate(),
        "of another authority": Authority(tmp_path_factory.mktemp("other"), "theirs").certificate(),
        "for another host": authority.certificate("elsewhere.test"),
        "of yesterday": authority.certificate(valid=-timedelta(days=1)),
    }
    environment = stack.environment()
    jobs: dict[tuple[str, str], Future[Outcome]] = {}
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(32) as pool:
        patch.setenv("SSL_CERT_FILE", str(authority.file))
        for driver, (setting, use) in DRIVERS.items():
            server, secure = URLS[setting]
            port, plain = stack.state.ports[server], urlsplit(environment[setting]).scheme
            places = {
                kind: (secure, terminators.before(port, context(certificate)))
                for kind, certificate in certificates.items()
            }
            places[TLS_TO_PLAIN] = (secure, port)
            places[PLAIN_TO_TLS] = (plain, places["trusted"][1])
            for kind, place in places.items():
                changed = {**environment, setting: at(environment[setting], *place)}
                given = settings.Cli.model_validate(
                    {name.removeprefix("FEDQ_").lower(): value for name, value in changed.items()}
                )
                jobs[driver, kind] = pool.submit(_outcome, use, given)
        return {case: job.result() for case, job in jobs.items()}


def _outcome(use: Callable[[settings.Cli], object], given: settings.Cli) -> Outcome:
    began = time.monotonic()
    try:
        use(given)
    except Exception as error:
        return Outcome(error, time.monotonic() - began)
    return Outcome(None, time.monotonic() - began)


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_certificate_of_the_authority_is_trusted(outcomes: dict[tuple[str, str], Outcome], driver: str) -> None:
    """SSL_CERT_FILE alone makes it so."""
    assert outcomes[driver, "trusted"].error is None


@pytest.mark.parametrize("kind", UNTRUSTED)
@pytest.mark.parametrize("driver", DRIVERS)
def test_any_other_certificate_is_not(outcomes: dict[tuple[str, str], Outcome], driver: str, kind: str) -> None:
    """One sentence says why, and names the setting of this server."""
    found = outcomes[driver, kind]
    sentence = said(driver, found)
    assert re.search(rf": its certificate is not trusted \(({UNTRUSTED[kind]})\); ", sentence), sentence
    assert DRIVERS[driver][0] in sentence.partition("; ")[2]


@pytest.mark.parametrize("driver", DRIVERS)
def test_tls_to_a_plain_port(outcomes: dict[tuple[str, str], Outcome], driver: str) -> None:
    sentence = said(driver, outcomes[driver, TLS_TO_PLAIN])
    assert re.search(rf"TLS|{URLS[DRIVERS[driver][0]][1]}://", sentence), sentence


@pytest.mark.parametrize("driver", DRIVERS)
def test_plain_text_to_a_tls_port(outcomes: dict[tuple[str, str], Outcome], driver: str) -> None:
    said(driver, outcomes[driver, PLAIN_TO_TLS])


def said(driver: str, found: Outcome) -> str:
    """The sentence for a person, come in time; of Celery's own error as the trainer's log puts it."""
    assert found.error is not None, "it was connected"
    assert found.seconds < SECONDS
    setting, _ = DRIVERS[driver]
    if driver == "celery":
        assert not isinstance(found.error, Unavailable)
        return f"RabbitMQ: {tls_trouble(found.error, setting) or f'{found.error}; check {setting}'}"
    assert isinstance(found.error, Unavailable), repr(found.error)
    sentence = str(found.error)
    assert setting in sentence
    assert sentence.isprintable()
    return sentence
