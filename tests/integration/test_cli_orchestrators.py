"""fedq in Kubernetes, by a kubectl that is a fake and servers that are real; and logs wherever they are."""

import base64
import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from deploy.native import kubectl
from services.cli.ops.log_lines import Reader
from services.cli.ops.orchestrators import kubernetes, tools
from services.cli.ops.orchestrators.kubernetes import TRAINERS, Kubernetes
from services.cli.ops.orchestrators.tools import Source
from shared.amqp import topology
from shared.errors import Unavailable
from shared.events import Heartbeat
from tests.conftest import Servers
from tests.harness import ROOT, SECONDS, Services, until
from tests.kubernetes import manifests
from tests.scripted import DIGITS, Fedq

NAMESPACE = "research"
HOSTS = {"FEDQ_AMQP_URL": "rabbitmq", "FEDQ_RABBITMQ_URL": "rabbitmq.research", "FEDQ_REDIS_URL": "redis.research.svc"}
SECRET = ("FEDQ_AMQP_URL", "FEDQ_REDIS_URL", "FEDQ_S3_ACCESS_KEY", "FEDQ_S3_SECRET_KEY")


@dataclass
class Cluster:
    """What the fake kubectl says and has heard."""

    folder: Path

    def has(self, kind: str, document: Any) -> None:
        (self.folder / "get" / f"{kind}.json").write_text(json.dumps(document))

    def has_all(self, kind: str, *documents: Any) -> None:
        self.has(kind, {"items": documents})

    def deployment(self, replicas: int = 2, pool: str = "cpu") -> dict[str, Any]:
        labels = {"app.kubernetes.io/component": "trainer", "fedq/pool": pool}
        return {"metadata": {"name": f"trainer-{pool}", "labels": labels}, "spec": {"replicas": replicas}}

    def fails(self, verb: str, complaint: str) -> None:
        (self.folder / "fail" / verb).write_text(complaint)

    def calls(self, verb: str) -> list[list[str]]:
        """What kubectl was asked of that kind, without the words that say where."""
        return [call["words"][2:] for call in self.noted() if verb in call["words"]]

    def noted(self) -> list[dict[str, Any]]:
        file = self.folder / "calls"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def left(self) -> list[Any]:
        """Calls that still run."""
        return [call for call in self.noted() if Path(f"/proc/{call['pid']}").exists()]


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    """A cluster with trainers of the pool cpu in kubectl's namespace, and nothing else."""
    found = Cluster(tmp_path / "cluster")
    for folder in ("get", "fail", "bin"):
        (found.folder / folder).mkdir(parents=True)
    fake = found.folder / "bin" / "kubectl"
    fake.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT / "tests/fake_kubectl.py"} "$@"\n')
    docker = found.folder / "bin" / "docker"
    docker.write_text("#!/bin/sh\nexit 0\n")  # which runs no container, whatever runs on this machine
    for program in (fake, docker):
        program.chmod(0o755)
    context = {"name": "lab", "context": {"namespace": NAMESPACE}}
    (found.folder / "config.json").write_text(json.dumps({"contexts": [context]}))
    found.has_all("deployments", found.deployment())
    found.has_all("horizontalpodautoscalers")
    return found


@pytest.fixture
def federated(cluster: Cluster, servers: Servers) -> Cluster:
    """The same with this test's servers behind its Services; the object store is somebody else's, outside."""
    settings = servers.environment()
    ports: dict[str, dict[str, int]] = {}
    for name, host in HOSTS.items():
        url = urlsplit(settings[name])
        assert url.port is not None
        inside = {"amqp": 5672, "http": 15672, "redis": 6379}[url.scheme]
        ports.setdefault(host.partition(".")[0], {})[str(inside)] = url.port
        settings[name] = url._replace(netloc=f"{url.netloc.rpartition('@')[0]}@{host}:{inside}".lstrip("@")).geturl()
    ports["registry"] = {"8080": 9}
    del settings["FEDQ_REGISTRY_URL"]
    (cluster.folder / "forward.json").write_text(json.dumps(ports))
    services = [{"metadata": {"name": name}, "spec": {"selector": {"a": "b"}}} for name in ports]
    outside = {"metadata": {"name": "minio"}, "spec": {"type": "ExternalName", "externalName": "s3.example.org"}}
    cluster.has_all("services", *services, outside)
    cluster.has("configmap-fedq", {"data": {k: v for k, v in settings.items() if k not in SECRET}})
    hidden = {name: base64_of(settings[name]) for name in SECRET}
    cluster.has("secret-fedq-operator", {"data": hidden})
    return cluster


def base64_of(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.fixture
def fedq(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fedq]:
    """`fedq` in a folder of its own, without a setting: it knows of servers what kubectl tells it."""
    for name in [name for name in os.environ if name.startswith("FEDQ_")]:
        monkeypatch.delenv(name)
    environment = {
        "FAKE_KUBECTL": str(cluster.folder),
        "PATH": f"{cluster.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }
    (tmp_path / "folder").mkdir()
    runs = Fedq(environment, tmp_path / "folder")
    yield runs
    for process in runs.running:
        if process.poll() is None:
            process.kill()
            process.communicate()


# --- submit and connect -------------------------------------------------------------------------


@pytest.mark.timeout(240)
def test_submit_trains_in_the_contexts_namespace(fedq: Fedq, federated: Cluster, services: Services) -> None:
    """By ports that are open while it runs, with the secrets of the cluster, none of which anybody could list."""
    services.all(trainers=1)
    process = fedq.begin("submit", DIGITS, "--set", "rounds.count=1", "--watch")
    lines, complaints = (text.splitlines() for text in process.communicate(timeout=SECONDS))

    assert process.returncode == 0, complaints
    assert lines[-1].startswith("accuracy ")
    assert {tuple(call["words"][:2]) for call in federated.noted()} >= {("--context=lab", f"--namespace={NAMESPACE}")}
    assert len(federated.calls("port-forward")) == 3  # each Service once, and none for the store outside
    assert federated.left() == []
    secrets = {urlsplit(services.servers.environment()[name]).password for name in SECRET[:2]}
    assert not any(str(secret) in word for secret in secrets for call in federated.noted() for word in call["words"])
    what_they_wrote_is_read_whole(fedq, services, lines[0])


def what_they_wrote_is_read_whole(fedq: Fedq, services: Services, job: str) -> None:
    """`fedq logs` on the files of real services: each line that names the job, in order."""
    stack = fedq.folder / ".fedq/stack"
    stack.mkdir(parents=True)
    started = [
        {"name": one.name, "pid": one.pid, "started": one.started, "log": str(one.log)} for one in services.started
    ]
    (stack / "stack.json").write_text(json.dumps({"processes": started}))
    found = [json.loads(line) for line in fedq("logs", job, "--on", "native", "--json").lines]

    assert [line["timestamp"] for line in found] == sorted(line["timestamp"] for line in found)
    assert {line["service"] for line in found} >= {"aggregator", "trainer"}
    assert sum(line["event"] == "trained" for line in found) == 1 + 10
    written = [line for one in services.started for line in one.log.read_text().splitlines() if job in line]
    assert len(found) >= len(written)  # and perhaps lines of a traceback


def test_connect_leads_other_commands_there_until_it_is_interrupted(fedq: Fedq, federated: Cluster) -> None:
    """`.fedq/env` is for its owner's eyes, and gone when it ends, as is every kubectl."""
    file = fedq.folder / ".fedq/env"
    file.parent.mkdir()
    file.write_text("FEDQ_AMQP_URL=amqp://guest@127.0.0.1:1/gone\n")  # of a stack that was killed
    process = fedq.begin("connect")
    assert process.stdout is not None
    assert process.stdout.readline() == f".fedq/env leads to namespace {NAMESPACE} of lab until you press Ctrl-C\n"
    assert file.stat().st_mode & 0o777 == 0o600
    assert fedq("jobs", "--json").document == []

    again = fedq("connect")
    assert again.code == 2
    assert ".fedq/env leads to a stack that runs, RabbitMQ at 127.0.0.1:" in again.err

    process.send_signal(signal.SIGINT)
    done = fedq.finish(process)
    assert (done.code, done.err) == (0, "")
    assert not file.exists()
    assert federated.left() == []


def test_a_way_that_is_lost_is_opened_again_where_it_was(fedq: Fedq, federated: Cluster) -> None:
    """As when the pod behind it is replaced: what others have read of `.fedq/env` stays right."""
    process = fedq.begin("connect")
    assert process.stdout is not None
    process.stdout.readline()
    (before,) = [call for call in federated.noted() if "service/redis" in call["words"]]

    os.kill(before["pid"], signal.SIGKILL)
    assert process.stderr is not None
    assert "the way to service redis was lost, and is opened again in 1 s" in process.stderr.readline()
    until(lambda: len(federated.calls("service/redis")) == 2, 20, "another port-forward")
    first, second = federated.calls("service/redis")

    assert first == second
    until(lambda: fedq("jobs").code == 0, 20, "the way to Redis")
    process.send_signal(signal.SIGINT)
    assert fedq.finish(process).code == 0


def test_connect_brings_the_certificate_of_the_clusters_authority(fedq: Fedq, federated: Cluster) -> None:
    """Where services are told to trust it; which file that is for other programs, a person has to tell them."""
    document = json.loads((federated.folder / "get/configmap-fedq.json").read_text())
    document["data"]["SSL_CERT_FILE"] = "/etc/fedq-ca/ca.crt"
    federated.has("configmap-fedq", document)
    (federated.folder / "get/secret-fedq-ca.json").write_text(base64_of("-----BEGIN CERTIFICATE-----"))
    process = fedq.begin("connect")
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(5)]
    file = fedq.folder / ".fedq/ca.crt"

    assert lines[-1] == f"its certificates are of its own authority: export SSL_CERT_FILE={file}\n"
    assert file.read_text() == "-----BEGIN CERTIFICATE-----"
    assert "SSL_CERT_FILE" not in (fedq.folder / ".fedq/env").read_text()

    process.send_signal(signal.SIGINT)
    assert fedq.finish(process).code == 0
    assert federated.left() == []


def test_nothing_is_left_of_a_connect_whose_terminal_is_closed(fedq: Fedq, federated: Cluster) -> None:
    """Neither a way into the cluster nor the file with its passwords."""
    process = fedq.begin("connect")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGHUP)

    assert fedq.finish(process).code == 128 + signal.SIGHUP
    assert not (fedq.folder / ".fedq/env").exists()
    assert federated.left() == []


def test_a_signal_that_nohup_ignores_stays_ignored() -> None:
    """A job that is watched outlives its terminal, where a person wants that."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with tools.ending_in_order():
            os.kill(os.getpid(), signal.SIGHUP)
            with pytest.raises(SystemExit):
                os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_connect_says_what_there_is_not(fedq: Fedq, cluster: Cluster, federated: Cluster) -> None:
    """Each in a sentence, with an exit code that says whose mistake it is."""
    (federated.folder / "get/secret-fedq-operator.json").unlink()
    assert fedq("connect").err == (
        f'error: namespace {NAMESPACE} of lab has no fedq (`kubectl get secret` failed: secret "fedq-operator" not '
        "found); --namespace names another\n"
    )
    cluster.fails("get", 'Error from server (Forbidden): configmaps "fedq" is forbidden: User "eve" cannot get it')
    forbidden = fedq("connect", "--namespace", "other")
    assert forbidden.code == 3
    assert forbidden.err == (
        'error: the cluster forbids it: configmaps "fedq" is forbidden: User "eve" cannot get it; ask whoever runs it '
        "for that right\n"
    )
    cluster.fails("get", "Unable to connect to the server: exec: executable gke-gcloud-auth-plugin not found")
    keyless = fedq("connect")
    assert (keyless.code, keyless.err) == (
        3, "error: the cluster does not answer: Unable to connect to the server: exec: executable "
        "gke-gcloud-auth-plugin not found\n",
    )  # fmt: skip
    (cluster.folder / "config.json").unlink()
    nowhere = fedq("submit", DIGITS)
    assert nowhere.code == 2
    assert "`kubectl config use-context NAME` chooses one" in nowhere.err


def test_without_kubectl_or_docker_it_says_so(fedq: Fedq) -> None:
    """A laptop that has neither."""
    empty = {"PATH": "/nonexistent"}
    assert fedq("connect", **empty).err == "error: kubectl is not installed here, or not on the PATH\n"
    scaling = fedq("scale", "3", **empty)
    assert scaling.code == 2
    assert "docker is not installed here" in scaling.err
    assert "each `python -m services.trainer --pool cpu` is one trainer more" in scaling.err


# --- scale --------------------------------------------------------------------------------------


def test_scale_waits_for_trainers_to_join(fedq: Fedq, federated: Cluster, services: Services) -> None:
    """It hears each from the registry, and says when all were there; another pool's do not count."""
    services.start("registry")
    federated.has_all("deployments", federated.deployment(replicas=0))
    process = fedq.begin("scale", "2")
    until(lambda: federated.calls("scale"), SECONDS, "kubectl scale")
    bus = services.servers.bus()
    bus.declare(topology.heartbeats())
    said = {"host": "h", "pid": 1, "client": None, "device": "cpu", "slots": 1, "busy": 0, "sent_at": 0.0}
    bus.publish(Heartbeat(trainer="one", pool="cpu", **said))
    assert process.stderr is not None
    assert process.stderr.readline() == "1 of 2 are in the roster\n"
    for trainer, pool in (("other", "gpu"), ("two", "cpu")):
        bus.publish(Heartbeat(trainer=trainer, pool=pool, **said))
    out, err = process.communicate(timeout=SECONDS)

    assert process.returncode == 0, err
    assert federated.calls("scale") == [["--request-timeout=10s", "scale", "deployment/trainer-cpu", "--replicas=2"]]
    first, last = out.splitlines()
    assert first == f"Deployment trainer-cpu in namespace {NAMESPACE} of lab: 0 → 2 trainers of pool cpu"
    assert last.startswith("2 trainers of pool cpu are in the roster, ")
    assert err == "2 of 2 are in the roster\n"
    assert federated.left() == []


def test_scale_says_how_many_came_in_time(fedq: Fedq, federated: Cluster) -> None:
    """A cluster without room for more is no success."""
    done = fedq("scale", "4", "--wait", "0.5", "--json")

    assert done.code == 3
    told = done.document
    assert told.pop("seconds") >= 0.5
    assert told == {
        "on": "kubernetes", "place": f"namespace {NAMESPACE} of lab", "pool": "cpu",
        "before": 2, "wanted": 4, "alive": 0,
    }  # fmt: skip
    assert "0 of 4 trainers of pool cpu are in the roster after 0.5 s; `kubectl get pods` shows" in done.err


def test_a_redis_that_refuses_us_changes_nothing(fedq: Fedq, federated: Cluster) -> None:
    """Where as many trainers as wanted should be there already, they are looked for as well."""
    secret = json.loads((federated.folder / "get/secret-fedq-operator.json").read_text())["data"]
    url = base64.b64decode(secret["FEDQ_REDIS_URL"]).decode()
    secret["FEDQ_REDIS_URL"] = base64_of(url.replace(f":{urlsplit(url).password}@", ":wrong@"))
    federated.has("secret-fedq-operator", {"data": secret})
    done = fedq("scale", "2", "--json")

    assert (done.code, done.out) == (3, ""), done.err
    assert "FEDQ_REDIS_URL" in done.err
    assert federated.calls("scale") == []


def test_fewer_trainers_need_no_server(fedq: Fedq, cluster: Cluster) -> None:
    """Whoever stops finishes, or hands back, and nobody has to wait for that."""
    done = fedq("scale", "1")

    assert done.code == 0
    assert done.lines == [f"Deployment trainer-cpu in namespace {NAMESPACE} of lab: 2 → 1 trainers of pool cpu"]
    assert done.err == "each that stops finishes the client it trains, or hands it back to the queue for another\n"


HPA = {
    "metadata": {"name": "trainer-cpu"},
    "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "trainer-cpu"}, "minReplicas": 1, "maxReplicas": 4},
}
KEDA = {
    "metadata": {"name": "trainers"},
    "spec": {"scaleTargetRef": {"name": "trainer-cpu"}, "maxReplicaCount": 8},
}


@pytest.mark.parametrize(
    ("kind", "scaler", "wanted", "bounds", "kept"),
    [
        ("horizontalpodautoscalers", HPA, 3, {"minReplicas": 3}, "HPA trainer-cpu keeps it at 3 to 4"),
        (
            "horizontalpodautoscalers",
            HPA,
            6,
            {"minReplicas": 6, "maxReplicas": 6},
            "HPA trainer-cpu keeps it at 6 to 6, raised from 4",
        ),
        ("scaledobjects", KEDA, 6, {"minReplicaCount": 6}, "ScaledObject trainers keeps it at 6 to 8"),
        ("scaledobjects", KEDA, 0, {"minReplicaCount": 0}, "ScaledObject trainers keeps it at 0 to 8"),
    ],
)
def test_an_autoscaler_is_told_as_well(
    fedq: Fedq, cluster: Cluster, kind: str, scaler: Any, wanted: int, bounds: dict[str, int], kept: str
) -> None:
    """Or it would undo what was set on the Deployment alone."""
    cluster.has_all(
        kind,
        {**scaler, "metadata": {"name": "other"}, "spec": {**scaler["spec"], "scaleTargetRef": {"name": "x"}}},
        scaler,
    )
    done = fedq("scale", str(wanted), "--wait", "0")

    assert done.code == 0, done.err
    name = scaler["metadata"]["name"]
    assert f"; {kept}, by the work that waits: 2 → {wanted} trainers of pool cpu\n" in done.out
    (patch,) = cluster.calls("patch")
    assert (patch[2].partition(".")[0], patch[3]) == (kind, name)
    assert json.loads(patch[-1].removeprefix("--patch=")) == {"spec": bounds}
    assert cluster.calls("scale")[-1][-2:] == ["deployment/trainer-cpu", f"--replicas={wanted}"]


@pytest.mark.parametrize(
    ("overlay", "scaler", "bounds"),
    [
        ("local", None, None),
        ("gpu", "horizontalpodautoscalers", {"minReplicas": 12, "maxReplicas": 12}),
        ("keda", "scaledobjects", {"minReplicaCount": 12, "maxReplicaCount": 12}),
    ],
)
def test_our_manifests_are_understood(
    fedq: Fedq, cluster: Cluster, overlay: str, scaler: str | None, bounds: dict[str, int] | None
) -> None:
    """Labels, names and autoscalers as deploy/k8s has them."""
    built = manifests.overlay(overlay)
    labels = dict(pair.split("=") for pair in TRAINERS.split(","))
    trainers = [one for one in built.kind("Deployment") if manifests.selects(labels, one["metadata"]["labels"])]
    cluster.has_all("deployments", *trainers)
    cluster.has_all("horizontalpodautoscalers", *built.kind("HorizontalPodAutoscaler"))
    cluster.has_all("scaledobjects", *built.kind("ScaledObject"))
    done = fedq("scale", "12", "--wait", "0")

    assert done.code == 0, done.err
    patched = [
        (words[2].partition(".")[0], json.loads(words[-1].removeprefix("--patch="))["spec"])
        for words in cluster.calls("patch")
    ]
    assert patched == ([(scaler, bounds)] if scaler else [])
    assert cluster.calls("scale")[-1][-2:] == ["deployment/trainer-cpu", "--replicas=12"]


def test_an_hpa_is_switched_off_by_a_deployment_of_none(fedq: Fedq, cluster: Cluster) -> None:
    """Its minimum cannot be 0; a Deployment of 0 replicas disables it, and it stays as it is."""
    cluster.has_all("horizontalpodautoscalers", HPA)
    assert fedq("scale", "0").code == 0

    assert cluster.calls("patch") == []
    assert cluster.calls("scale")[-1][-1] == "--replicas=0"


def test_a_pool_that_is_not_there_is_named_with_those_that_are(fedq: Fedq, cluster: Cluster) -> None:
    """A person who types the wrong one reads the right one."""
    done = fedq("scale", "2", "--pool", "gpu")

    assert done.code == 2
    assert done.err.endswith(
        "(app.kubernetes.io/name=fedq,app.kubernetes.io/component=trainer,fedq/pool=gpu); its pools: cpu\n"
    )


# --- what a real kubectl says to all this -------------------------------------------------------

PLACE = Kubernetes("lab", NAMESPACE)
WORDS = {
    "read": PLACE.command("--request-timeout=10s", "get", "deployments", f"--selector={TRAINERS}", "--output=json"),
    "patch": PLACE.command("patch", "horizontalpodautoscalers", "trainer-cpu", "--type=merge", '--patch={"spec":{}}'),
    "scale": PLACE.command("scale", "deployment/trainer-cpu", "--replicas=6"),
    "forward": PLACE.command("port-forward", "--address=127.0.0.1", "service/rabbitmq", "20000:5672", "20001:15672"),
    "logs": list(PLACE.sources(follow=False)[0].command),
    "follow": list(PLACE.sources(follow=True)[0].command),
}


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The real kubectl on the PATH, with a context whose cluster is not there; the file of its settings."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/kubectl").symlink_to(kubectl.find())
    file = tmp_path / "config"
    cluster = {"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}
    context = {"name": "lab", "context": {"cluster": "c", "namespace": NAMESPACE}}
    file.write_text(json.dumps({"clusters": [cluster], "contexts": [context], "current-context": "lab"}))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("KUBECONFIG", str(file))
    return file


@pytest.mark.parametrize("words", WORDS)
def test_a_real_kubectl_takes_our_words(real: Path, words: str) -> None:
    """And goes as far as to look for the cluster: whatever it does not know, it would refuse before that."""
    with pytest.raises(Unavailable, match=r"^the cluster does not answer: .*127\.0\.0\.1:1\b"):
        tools.run(WORDS[words])


def test_a_real_kubectls_context_is_understood(real: Path) -> None:
    """Its namespace, another one, none, and that there is no context at all."""
    assert kubernetes.at(None) == PLACE
    assert kubernetes.at("other") == Kubernetes("lab", "other")
    settings = json.loads(real.read_text())
    del settings["contexts"][0]["context"]["namespace"]
    real.write_text(json.dumps(settings))
    assert kubernetes.at(None).namespace == "default"
    for left in ({**settings, "current-context": "gone"}, {}):
        real.write_text(json.dumps(left))
        with pytest.raises(tools.NotHere, match="`kubectl config use-context NAME` chooses one"):
            kubernetes.at(None)


# --- logs ---------------------------------------------------------------------------------------

JOB = "digits-k3x9qa"


def line(second: float, service: str, **fields: str | int) -> str:
    """A line as a service writes it for programs."""
    return json.dumps({**fields, "service": service, "level": "info", "timestamp": f"2026-11-24T20:18:{second:04.1f}Z"})


OTHER = line(44.0, "aggregator", job=f"x-{JOB}", event="opened")
ONE = line(45.1, "aggregator", job=JOB, round=1, event="opened")
TWO = line(45.2, "trainer", job=JOB, client="client-07", event="trained")
THREE = line(45.3, "trainer", reason=f"job {JOB} is over", event="stale")
POD = "[pod/{}/main] {}\n"
WAITS = 'error: container "main" in pod "trainer-cpu-2" is waiting to start: ContainerCreating\n'


def test_logs_are_a_jobs_lines_of_all_pods_by_time(fedq: Fedq, cluster: Cluster) -> None:
    """Those that name it, in whatever field; another job's, and what is no log line, are not shown."""
    lines = [("trainer-cpu-1", THREE), ("aggregator-0", OTHER), ("aggregator-0", ONE), ("trainer-cpu-1", TWO)]
    (cluster.folder / "logs").write_text("".join(POD.format(*line) for line in lines) + "no line\n" + WAITS)
    done, as_json = fedq("logs", JOB), fedq("logs", JOB, "--json")

    assert done.code == 0, done.err
    assert [line.split()[1:] for line in done.lines] == [
        ["aggregator-0", "opened", "round=1"],
        ["trainer-cpu-1", "trained", "client=client-07"],
        ["trainer-cpu-1", "stale", "reason=job", JOB, "is", "over"],
    ]
    assert json.loads(as_json.lines[0]) == {"source": "aggregator-0", **json.loads(ONE)}
    assert cluster.calls("logs")[0] == [
        "logs",
        "--selector=app.kubernetes.io/name=fedq,app.kubernetes.io/component in (aggregator,registry,trainer)",
        *("--all-containers", "--prefix", "--tail=-1", "--ignore-errors"),
    ]


def test_logs_that_nobody_may_read_are_no_logs_without_a_line(fedq: Fedq, cluster: Cluster) -> None:
    """Of a container that it cannot read kubectl says so among the lines, and goes on."""
    told = 'pods "aggregator-0" is forbidden: User "eve" cannot get resource "pods/log"'
    (cluster.folder / "logs").write_text(f"error: {told}\n")
    done = fedq("logs", JOB)

    assert (done.code, done.out) == (3, "")
    assert done.err == f"error: the cluster forbids it: {told}; ask whoever runs it for that right\n"


def test_lines_of_docker_compose_are_understood(tmp_path: Path) -> None:
    """It clears the line of the terminal before each, also where there is no terminal."""
    file = tmp_path / "logs"
    file.write_text(
        f"\x1b[2Kaggregator-1  | {ONE}\n\x1b[2K\rslow-1        | {TWO}\n\x1b[2Kredis-1 exited with code 0\n"
    )
    with Reader([Source(None, ("cat", str(file)))], JOB) as reader:
        found = [reader.lines.get(timeout=SECONDS) for _ in range(3)]

    assert [(one.source, one.fields["event"]) for one in found if one] == [
        ("aggregator-1", "opened"),
        ("slow-1", "trained"),
    ]
    assert found[-1] is None
    assert reader.failure is None


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_logs_that_are_followed_end_quietly(fedq: Fedq, cluster: Cluster, sign: signal.Signals, code: int) -> None:
    """Ctrl-C is how they are meant to end; until then a new line is shown as it comes."""
    file = cluster.folder / "logs"
    file.write_text(POD.format("trainer-cpu-1", TWO) + POD.format("aggregator-0", ONE))
    process = fedq.begin("logs", JOB, "--follow")
    assert process.stdout is not None
    assert [process.stdout.readline().split()[2] for _ in range(2)] == ["opened", "trained"]
    with file.open("a") as more:
        more.write(POD.format("trainer-cpu-1", THREE))
    assert process.stdout.readline().split()[2] == "stale"
    process.send_signal(sign)
    done = fedq.finish(process)

    assert (done.code, done.out, done.err) == (code, "", "")
    assert cluster.left() == []


def test_logs_of_the_stack_without_docker_are_its_files(fedq: Fedq) -> None:
    """JSON or for a console, with colours or without, and a traceback below its line."""
    logs = fedq.folder / ".fedq/stack/logs"
    logs.mkdir(parents=True)
    processes = [
        {"name": name, "pid": 1, "started": -2, "log": str(logs / f"{name}.log")}
        for name in ("aggregator", "trainer-1", "redis")
    ]
    (logs.parent / "stack.json").write_text(json.dumps({"processes": processes}))
    (logs / "aggregator.log").write_text(f"{ONE}\n{OTHER}\n")
    coloured = "\x1b[2m2026-11-24T20:18:46.5\x1b[0m [\x1b[31merror    \x1b[0m] \x1b[1mnot trained   \x1b[0m "
    coloured += f"\x1b[36mjob\x1b[0m=\x1b[35m{JOB}\x1b[0m reason='no room'"
    (logs / "trainer-1.log").write_text(f"{coloured}\nTraceback of it\n")
    (logs / "redis.log").write_text(f"{ONE}\n")
    done = fedq("logs", JOB, "--on", "native")

    assert done.code == 0, done.err
    assert [line.split(maxsplit=1)[1] for line in done.lines] == [
        "aggregator  opened       round=1",
        "trainer-1   not trained  reason=no room",
        "trainer-1   Traceback of it",
    ]
    nothing = fedq("logs", "digits-aaaaaa", "--on", "native")
    assert (nothing.code, nothing.out) == (0, "")
    assert nothing.err == "no service of the stack in .fedq/stack has a line about job digits-aaaaaa\n"
    assert fedq("logs", "digits", "--on", "native").code == 2
