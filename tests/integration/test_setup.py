"""`fedq setup`: bare servers become fedq's, a second time changes nothing, and what cannot be is said in a sentence."""

import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest
import urllib3
from minio import Minio
from minio.crypto import decrypt, encrypt

from services.cli.ops import setup
from shared import names
from shared.amqp import management, topology
from shared.errors import BadInput, Denied, FedqError, Unavailable
from shared.process import settings
from shared.s3.store import Blobs, NoKeys
from tests.conftest import Servers

POLICIES = [f"policy {name}" for name in topology.POLICIES]


@pytest.fixture
def bare(servers: Servers) -> Iterator[dict[str, str]]:
    """An operator's settings of servers that know nothing of fedq: a vhost that is not there, and no bucket."""
    found = servers.environment()
    vhost, bucket = f"{servers.vhost}-bare", f"bare-{servers.vhost}"
    yield {
        **found,
        "FEDQ_AMQP_URL": found["FEDQ_AMQP_URL"].replace(servers.vhost, vhost),
        "FEDQ_S3_BUCKET": bucket,
        "FEDQ_TRAINER_AMQP_PASSWORD": servers.stack.state.secret("trainer"),
        "FEDQ_TRAINER_S3_ACCESS_KEY": found["FEDQ_S3_ACCESS_KEY"],
        "FEDQ_TRAINER_S3_SECRET_KEY": found["FEDQ_S3_SECRET_KEY"],
    }
    if vhost in [one["name"] for one in servers.stack.rabbitmq.call("GET", "vhosts")]:
        servers.stack.remove_vhost(vhost)
    client = Minio(urlsplit(found["FEDQ_S3_URL"]).netloc, *servers.stack.s3.keys("operator"), secure=False)
    if client.bucket_exists(bucket):
        client.remove_bucket(bucket)


def config(environment: dict[str, str], **changes: str) -> settings.Setup:
    found = {name.removeprefix("FEDQ_").lower(): value for name, value in environment.items()}
    return settings.Setup.model_validate({**found, **changes})


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What was told of each thing, without a wait for a server."""
    lines = (line.rpartition(": ") for line in capsys.readouterr().err.splitlines() if not line.startswith("waiting"))
    return {thing: fate for thing, _, fate in lines}


def test_bare_servers_become_fedqs(bare: dict[str, str], servers: Servers, capsys: pytest.CaptureFixture[str]) -> None:
    setup.provision(config(bare))
    told = said(capsys)

    vhost, bucket = f"{servers.vhost}-bare", bare["FEDQ_S3_BUCKET"]
    assert told[f"vhost {vhost} of RabbitMQ"] == told[f"bucket {bucket}"] == "made"
    assert [told[policy] for policy in POLICIES] == ["made"] * len(POLICIES)
    assert management.missing_policies(config(bare), vhost) == []
    permissions = {
        one["user"]: {right: one[right] for right in ("configure", "write", "read")}
        for one in servers.stack.rabbitmq.call("GET", f"vhosts/{vhost}/permissions")
    }
    assert permissions == topology.PERMISSIONS
    assert Blobs(config(bare)).probe()


def test_a_second_time_changes_nothing(bare: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    setup.provision(config(bare))
    capsys.readouterr()
    setup.provision(config(bare))
    told = said(capsys)

    assert "made" not in told.values()
    assert [told[policy] for policy in POLICIES] == ["found"] * len(POLICIES)


def test_a_policy_that_somebody_changed_is_right_again(
    bare: dict[str, str], servers: Servers, capsys: pytest.CaptureFixture[str]
) -> None:
    setup.provision(config(bare))
    wrong = {"pattern": "^nothing$", "definition": {"max-length": 1}, "priority": 1, "apply-to": "queues"}
    servers.stack.rabbitmq.call("PUT", f"policies/{servers.vhost}-bare/fedq-work", wrong)
    capsys.readouterr()

    setup.provision(config(bare))

    assert said(capsys)["policy fedq-work"] == "made"
    assert management.missing_policies(config(bare), f"{servers.vhost}-bare") == []


def test_a_policy_that_outranks_fedqs_is_named(
    bare: dict[str, str], servers: Servers, capsys: pytest.CaptureFixture[str]
) -> None:
    setup.provision(config(bare))
    stranger = {"pattern": "^trainer.tasks", "definition": {"max-length": 1}, "priority": 100, "apply-to": "queues"}
    servers.stack.rabbitmq.call("PUT", f"policies/{servers.vhost}-bare/stranger", stranger)
    capsys.readouterr()

    with pytest.raises(BadInput, match=r"in the way of fedq's: fedq-tasks \(outranked by stranger\).*; lower their"):
        setup.provision(config(bare))

    assert not {*POLICIES} & said(capsys).keys()


def test_the_trainers_key_is_found_where_the_store_has_it(
    bare: dict[str, str], servers: Servers, capsys: pytest.CaptureFixture[str]
) -> None:
    access, secret = servers.stack.s3.keys("trainer")
    kept = names.update_blob("setup-000000", 0, "client", "0" * 64)
    servers.blobs().put(kept, b"of a job that may be called so")
    setup.provision(config(bare, s3_bucket="fedq", trainer_s3_access_key=access, trainer_s3_secret_key=secret))

    assert said(capsys)[f"key {access} of the object store"] == "found"
    assert servers.blobs().list(names.trial_blob(setup.TRAINER)) == [], "what it was tried with is gone"
    assert servers.blobs().exists(kept)
    servers.blobs().remove([kept])


def test_a_store_without_minios_api_is_told_which_key_to_make(bare: dict[str, str]) -> None:
    with pytest.raises(BadInput) as refusal:
        setup.provision(config(bare, trainer_s3_access_key="stranger", trainer_s3_secret_key="unheard-of"))

    sentence = str(refusal.value)
    assert "FEDQ_TRAINER_S3_ACCESS_KEY stranger" in sentence
    assert all(pattern in sentence for pattern in names.TRAINER_WRITES)
    assert "unheard-of" not in sentence


def test_two_secrets_of_one_key_are_a_mistake(bare: dict[str, str]) -> None:
    with pytest.raises(BadInput, match="FEDQ_TRAINER_S3_SECRET_KEY: is not FEDQ_S3_SECRET_KEY"):
        setup.provision(config(bare, trainer_s3_secret_key="another"))


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("s3_secret_key", "wrong", "FEDQ_S3_SECRET_KEY"),
        ("redis_url", "redis://:wrong@127.0.0.1:{redis}/0", "FEDQ_REDIS_URL"),
        ("amqp_url", "amqp://operator:wrong@127.0.0.1:{amqp}/fedq", "FEDQ_AMQP_URL"),
    ],
)
def test_a_login_that_a_server_refuses_is_told_at_once(
    bare: dict[str, str], servers: Servers, variable: str, value: str, sentence: str
) -> None:
    ports = servers.stack.state.ports
    changes = {variable: value.format(**ports)}
    if variable == "s3_secret_key":
        changes["trainer_s3_secret_key"] = value

    with pytest.raises(Denied, match=sentence):
        setup.provision(config(bare, **changes))


def test_a_server_that_never_answers_is_waited_for_and_named(
    bare: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup, "PATIENCE", 1.0)

    with pytest.raises(Unavailable, match="FEDQ_RABBITMQ_URL"):
        setup.provision(config(bare, rabbitmq_url="http://127.0.0.1:1"))

    assert capsys.readouterr().err.count("waiting: ") == 1, "a person is told once, not four times a second"


# --- MinIO's admin API ------------------------------------------------------------------------------------------------


@dataclass
class FakeMinIO:
    """A fake of MinIO's admin API, scripted: no server that has it can be run here. All else goes to a real store.

    It decrypts what is sent as MinIO does, with the operator's secret, and remembers it.
    """

    store: str  #: URL of the real one
    secret: str
    users: dict[str, str] = field(default_factory=dict)
    policies: dict[str, Any] = field(default_factory=dict)
    attached: dict[str, list[str]] = field(default_factory=dict)
    refusal: tuple[int, str] | None = None  #: what every call of the admin API gets instead

    def answer(self, method: str, command: str, query: dict[str, list[str]], body: bytes) -> tuple[int, bytes]:
        if self.refusal:
            return self.refusal[0], self.refusal[1].encode()
        match method, command:
            case "GET", "list-canned-policies":
                return 200, json.dumps(self.policies).encode()
            case "PUT", "add-canned-policy":
                self.policies[query["name"][0]] = json.loads(body)
                return 200, b""
            case "PUT", "add-user":
                sent = json.loads(decrypt(_as_response(body), self.secret))
                assert sent["status"] == "enabled"
                self.users[query["accessKey"][0]] = sent["secretKey"]
                return 200, b""
            case "POST", "idp/builtin/policy/attach":
                sent = json.loads(decrypt(_as_response(body), self.secret))
                if self.attached.get(sent["user"]) == sent["policies"]:
                    refusal = {"Code": "XMinioAdminPolicyChangeAlreadyApplied", "Message": "Already in effect."}
                    return 400, json.dumps(refusal).encode()
                self.attached[sent["user"]] = sent["policies"]
                return 200, encrypt(b"{}", self.secret)
        raise AssertionError(f"MinIO was not expected to be asked {method} {command}")


def _as_response(body: bytes) -> Any:
    return urllib3.HTTPResponse(io.BytesIO(body), preload_content=False)


class _Handler(BaseHTTPRequestHandler):
    fake: ClassVar[FakeMinIO]
    protocol_version = "HTTP/1.1"

    def _handle(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        prefix = "/minio/admin/v3/"
        if url.path.startswith(prefix):
            status, answer = self.fake.answer(self.command, url.path.removeprefix(prefix), parse_qs(url.query), body)
            headers = {"Content-Length": str(len(answer))}
        else:  # with the headers as they are: the signature covers them, and the host's name
            found = urllib3.request(
                self.command, self.fake.store + self.path, body=body, headers=dict(self.headers), decode_content=False
            )
            status, answer, headers = found.status, found.data, dict(found.headers)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(fake: FakeMinIO) -> Iterator[str]:
    handler = type("Handler", (_Handler,), {"fake": fake})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@pytest.fixture
def minio(bare: dict[str, str]) -> Iterator[tuple[FakeMinIO, str]]:
    fake = FakeMinIO(bare["FEDQ_S3_URL"], bare["FEDQ_S3_SECRET_KEY"])
    with serving(fake) as url:
        yield fake, url


def test_minio_is_given_the_trainers_key_and_its_rights(
    bare: dict[str, str], servers: Servers, minio: tuple[FakeMinIO, str], capsys: pytest.CaptureFixture[str]
) -> None:
    fake, url = minio
    access, secret = servers.stack.s3.keys("trainer")
    mine = config(bare, s3_url=url, s3_bucket="fedq", trainer_s3_access_key=access, trainer_s3_secret_key=secret)

    setup.provision(mine)

    assert said(capsys)[f"key {access} of the object store"] == "made"
    assert fake.users == {access: secret}
    assert fake.attached == {access: ["fedq-trainer"]}
    rights = {
        (action, place)
        for statement in fake.policies["fedq-trainer"]["Statement"]
        for action in statement["Action"]
        for place in statement["Resource"]
        if statement["Effect"] == "Allow"
    }
    writes = [f"arn:aws:s3:::fedq/{pattern}" for pattern in names.TRAINER_WRITES]
    assert {place for action, place in rights if action == "s3:PutObject"} == set(writes)
    assert {place for action, place in rights if action == "s3:DeleteObject"} == set(writes)
    assert ("s3:GetObject", "arn:aws:s3:::fedq/*") in rights
    assert ("s3:ListBucket", "arn:aws:s3:::fedq") in rights
    assert not [action for action, _ in rights if "*" in action]

    setup.provision(mine)

    assert said(capsys)[f"key {access} of the object store"] == "found"


def test_a_key_whose_secret_changed_gets_the_new_one(bare: dict[str, str], minio: tuple[FakeMinIO, str]) -> None:
    fake, url = minio
    store = Blobs(config(bare, s3_url=url))
    for secret in ("an-old-secret", "a-new-secret"):
        store.make_key("trainer", secret, names.TRAINER_WRITES)

    assert fake.users == {"trainer": "a-new-secret"}


@pytest.mark.parametrize(
    ("status", "answer", "reason"),
    [
        (403, '{"Code": "AccessDenied", "Message": "Access Denied."}', "AccessDenied: Access Denied)"),
        (404, "<Error><Code>NoSuchBucket</Code></Error>", "it answers 404)"),
        (200, "<html>something else</html>", "it answers what is not MinIO's)"),
    ],
)
def test_why_minio_makes_no_key_is_said(
    bare: dict[str, str], minio: tuple[FakeMinIO, str], status: int, answer: str, reason: str
) -> None:
    fake, url = minio
    fake.refusal = status, answer

    with pytest.raises(NoKeys) as refusal:
        Blobs(config(bare, s3_url=url)).make_key("trainer", "a-secret", names.TRAINER_WRITES)

    assert reason in str(refusal.value)
    assert isinstance(refusal.value, FedqError)
