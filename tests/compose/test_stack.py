"""What `docker compose up` makes: the design's queues, users and networks, in containers that may do little."""

import json
import urllib.request
from typing import Any

import pika
import pika.exceptions
import pytest
from minio import Minio
from minio.error import S3Error

from shared import names
from shared.amqp import topology
from tests.compose.containers import VHOST, Federation, said
from tests.harness import ROOT, until

DEFINITIONS = json.loads((ROOT / "deploy/definitions.json").read_text())


def test_the_queues_are_those_of_the_design(federation: Federation) -> None:
    """While a job runs, and after it; the management API says so, as a person sees it in the console."""
    job = federation.submit(count=1000)
    federation.reached(job, 1)
    always = {
        names.COMMANDS,
        names.HEARTBEATS,
        names.DEAD_LETTERS,
        names.rounds_queue("cpu"),
        names.tasks_queue("cpu"),
        *(names.notices_queue(member.trainer) for member in federation.servers.roster().alive()),
    }
    assert set(federation.queues()) == {*always, names.updates_queue(job)}
    kinds = {queue["name"]: queue["type"] for queue in api(federation, f"queues/{VHOST}")}
    federation.fedq("stop", job)

    until(lambda: set(federation.queues()) == always, 20, "the queues of a federation at rest")
    assert {name for name, kind in kinds.items() if kind == "classic"} == {
        names.HEARTBEATS,
        *(name for name in always if name.startswith("trainer.notices.")),
    }


def test_users_rights_and_policies_are_those_of_the_design(federation: Federation) -> None:
    """`setup` made them; nobody else has a login, and nothing else is set."""
    users = {user["name"]: user["tags"] for user in api(federation, "users")}
    rights = {
        entry["user"]: {part: entry[part] for part in ("configure", "write", "read")}
        for entry in api(federation, f"vhosts/{VHOST}/permissions")
    }
    policies = [
        {part: policy[part] for part in ("name", "pattern", "apply-to", "priority", "definition")}
        for policy in api(federation, f"policies/{VHOST}")
    ]

    assert users == {"operator": ["administrator"], "trainer": []}
    assert rights == topology.PERMISSIONS
    assert sorted(policies, key=lambda policy: policy["name"]) == sorted(
        DEFINITIONS["policies"], key=lambda policy: policy["name"]
    )
    assert [vhost["name"] for vhost in api(federation, "vhosts")] == [VHOST]


def api(federation: Federation, path: str) -> Any:
    return federation.containers.rabbitmq.call("GET", path)


# --- who reaches what -------------------------------------------------------------------------------

PROBE = """
import socket, sys
for host in sys.argv[1:]:
    name, port = host.split(":")
    try:
        socket.create_connection((name, int(port)), 3).close()
        print(host, "reached")
    except OSError:
        print(host, "out of reach")
"""


def test_a_trainer_reaches_the_bus_and_the_store_and_nothing_else(federation: Federation) -> None:
    """By name or by address: Redis and the registry are on a network that it has no part in."""
    containers = federation.containers
    wanted = {"rabbitmq:5672": "reached", "minio:9000": "reached", "redis:6379": "out of reach"}
    wanted |= {"registry:8080": "out of reach", "aggregator:1": "out of reach"}
    for service, port in (("redis", 6379), ("registry", 8080)):
        (found,) = containers.inspect(service)
        for network in found["NetworkSettings"]["Networks"].values():
            wanted[f"{network['IPAddress']}:{port}"] = "out of reach"
    (trainer, *_) = containers.ids("trainer")
    told = said("docker", "exec", trainer, "python", "-c", PROBE, *wanted)
    settings = said("docker", "exec", trainer, "env")

    assert dict(line.split(" ", 1) for line in told.splitlines()) == wanted
    assert "REDIS" not in settings
    assert containers.variables["RABBITMQ_PASSWORD"] not in settings


def test_a_trainers_login_serves_trainers_queues_alone(federation: Federation) -> None:
    """Not what aggregators hear, no queue of another's, no message in another's name; no console at all."""
    url = federation.containers.environment("trainer")["FEDQ_AMQP_URL"]
    another = pika.BasicProperties(user_id="operator")
    for attempt in (
        lambda channel: channel.basic_get(names.COMMANDS),
        lambda channel: channel.queue_purge(names.HEARTBEATS),
        lambda channel: channel.queue_declare("aggregator.updates.mine", arguments=topology.QUORUM),
        lambda channel: channel.queue_bind(names.rounds_queue("cpu"), "amq.topic", "#"),
        lambda channel: channel.basic_publish(names.EVENTS, "heartbeat.x", b"", another),
    ):
        with pika.BlockingConnection(pika.URLParameters(url)) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            with pytest.raises(pika.exceptions.ChannelClosedByBroker, match=r"ACCESS_REFUSED|user_id property"):
                attempt(channel)
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        assert connection.channel().queue_declare(names.tasks_queue("cpu"), passive=True).method.consumer_count == 2


def test_a_trainers_key_writes_updates_alone(federation: Federation) -> None:
    """Where the object store can make a key of its own for them."""
    theirs = federation.containers.environment("trainer")
    if theirs["FEDQ_S3_ACCESS_KEY"] == federation.containers.environment()["FEDQ_S3_ACCESS_KEY"]:
        pytest.skip("this object store makes no keys: the trainers use the operator's")
    client = Minio(
        theirs["FEDQ_S3_URL"].removeprefix("http://"),
        theirs["FEDQ_S3_ACCESS_KEY"], theirs["FEDQ_S3_SECRET_KEY"], secure=False, region="us-east-1",
    )  # fmt: skip
    job = federation.submit()
    federation.holds(job)
    with pytest.raises(S3Error, match="AccessDenied"):
        client.remove_object("fedq", names.job_blob(job))
    with pytest.raises(S3Error, match="AccessDenied"):
        client.make_bucket("another")


# --- what a container may do ------------------------------------------------------------------------


def test_containers_may_do_little(federation: Federation) -> None:
    """Not root, no capability, nothing gained by a program, nothing written but where that is foreseen.

    But for the object store's user: its image's folder of data is root's, and root without a capability is hardly one.
    """
    found = {f"{service_of(one)} {one['Id'][:12]}": one for one in federation.containers.inspect()}
    assert len(found) == 8  # three servers, setup, registry, aggregator, two trainers
    for name, container in found.items():
        host, user = container["HostConfig"], container["Config"]["User"]
        assert host["ReadonlyRootfs"], name
        assert host["CapDrop"] == ["ALL"], name
        assert not host["CapAdd"], name
        assert not host["Privileged"], name
        assert "no-new-privileges:true" in host["SecurityOpt"], name
        assert host["PidMode"] == host["UTSMode"] == "", name
        assert host["NetworkMode"].startswith(federation.containers.project.name), name
        assert (host["NanoCpus"] > 0 and host["Memory"] > 0) or name.startswith("setup"), name
        assert user not in ("", "0", "root") or name.startswith("minio"), name
        if container["State"]["Running"]:
            status = said("docker", "exec", container["Id"], "cat", "/proc/1/status")
            fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            assert "0" not in fields["Uid"].split() or name.startswith("minio"), name
            assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0, name
            assert fields["NoNewPrivs"] == "1", name


def service_of(container: dict[str, Any]) -> str:
    return str(container["Config"]["Labels"]["com.docker.compose.service"])


def test_consoles_answer_on_this_machine_alone(federation: Federation) -> None:
    """RabbitMQ's console and the registry; and each port that is published is on loopback."""
    bound = {
        (service_of(container), entry["HostIp"])
        for container in federation.containers.inspect()
        for entries in container["NetworkSettings"]["Ports"].values()
        for entry in entries or ()
    }
    environment = federation.containers.environment()
    with urllib.request.urlopen(environment["FEDQ_RABBITMQ_URL"]) as page:  # noqa: S310 - ours
        assert b"RabbitMQ Management" in page.read()
    with urllib.request.urlopen(f"{environment['FEDQ_REGISTRY_URL']}/healthz") as answer:  # noqa: S310
        assert json.load(answer) == {"status": "ok", "away": []}

    assert bound == {(service, "127.0.0.1") for service in ("rabbitmq", "redis", "minio", "registry")}


# --- the command line, in a container and outside -----------------------------------------------------


def test_the_command_line_in_a_container_finds_all_well(federation: Federation) -> None:
    """`docker compose run --rm fedq doctor`; the same from this machine, by the ports on loopback."""
    inside = json.loads(federation.containers.fedq("doctor", "--json"))
    outside = federation.json("doctor")

    assert {finding["state"] for finding in inside["findings"]} == {"fine"}, inside
    assert {finding["state"] for finding in outside["findings"]} == {"fine"}, outside
    assert any("RabbitMQ 4" in finding["sentence"] for finding in inside["findings"])
    assert len(json.loads(federation.containers.fedq("nodes", "--json"))) == 2


def test_setup_may_run_again_beside_a_job(federation: Federation) -> None:
    """It ends in the same state; the job's digests are those of an undisturbed one."""
    digests = federation.expected(10)
    job = federation.submit(count=10)
    federation.reached(job, 1)
    federation.containers.compose("run", "--rm", "--no-TTY", "setup")

    federation.holds(job, digests)
