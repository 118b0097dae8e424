"""What the services and servers are told."""

import os
from unittest import mock
from urllib.parse import urlsplit

from deploy.native import rabbitmq
from shared.errors import BadInput
from shared.process import settings
from tests.kubernetes.manifests import Manifests, Workload
from tests.kubernetes.rules.references import of_pod
from tests.kubernetes.rules.rule import PORTS, SETTINGS, Complaints, rule


@rule
def services_have_their_settings(manifests: Manifests) -> Complaints:
    """By the code that will read them: all that it needs, values that it takes, and no name that nobody reads."""
    for one in manifests.ours:
        environment, kind = manifests.environment(one), SETTINGS[one.component]
        no_files = mock.patch.object(settings, "_files", list)
        with mock.patch.dict(os.environ, environment, clear=True), no_files:
            try:
                settings.load(kind)
            except BadInput as error:
                yield f"{one.name}: {error}"
            for name in settings.unknown():
                yield f"{one.name}: nobody reads {name}"
        for name in sorted(environment.keys() - _known()):
            yield f"{one.name}: {name} is no setting of fedq"


@rule
def trainers_hold_little(manifests: Manifests) -> Complaints:
    """The bus and the object store by keys of their own: nothing of Redis, nothing of the operator's."""
    for one in manifests.trainers:
        for name in manifests.environment(one):
            if "REDIS" in name:
                yield f"{one.name}: is told {name}"
        for reference in of_pod(one):
            if reference.kind == "Secret" and reference.name not in ("fedq-trainer", "fedq-ca"):
                yield f"{one.name}: is given the Secret {reference.name}"
        login = urlsplit(manifests.environment(one).get("FEDQ_AMQP_URL", "")).username
        if login not in (None, "trainer"):
            yield f"{one.name}: is the user {login}"


@rule
def addresses_lead_to_services(manifests: Manifests) -> Complaints:
    """A URL without a dot in its host is a Service here; it listens at that port, and its certificate has that name."""
    for one in manifests.ours:
        for name, value in manifests.environment(one).items():
            url = urlsplit(value)
            if not name.endswith("_URL") or url.hostname is None or "." in url.hostname:
                continue
            port = url.port or PORTS[url.scheme]
            if port not in manifests.service_ports(url.hostname):
                yield f"{one.name}: {name} leads to port {port} of {url.hostname}, where nothing listens"
            if url.scheme in ("https", "amqps", "rediss"):
                certificate = manifests.find("Certificate", url.hostname)
                names_of = certificate["spec"]["dnsNames"] if certificate else []
                if not {url.hostname, "localhost"} <= set(names_of):
                    yield f"{one.name}: no certificate has the names {url.hostname} and localhost"
                trusted = manifests.environment(one).get("SSL_CERT_FILE")
                if trusted is None or trusted not in _files(one):
                    yield f"{one.name}: has no CA to know {url.hostname} by"


@rule
def rabbitmq_is_configured_alike(manifests: Manifests) -> Complaints:
    """One node, three, and the native stack: the limits that fedq counts on are the same."""
    wanted = _configuration(rabbitmq.CONFIGURATION)
    found = [one["spec"]["rabbitmq"]["additionalConfig"] for one in manifests.kind("RabbitmqCluster")]
    for config in manifests.kind("ConfigMap"):
        found += [text for name, text in config["data"].items() if name == "20-fedq.conf"]
    for text in found:
        for key in ("consumer_timeout", "max_message_size", "heartbeat", "raft.wal_max_size_bytes"):
            if _configuration(text).get(key) != wanted[key]:
                yield f"RabbitMQ: {key} is not {wanted[key]}, as deploy/native/rabbitmq.py has it"


def _files(one: Workload) -> set[str]:
    """Files of Secrets in a container."""
    paths = {mount["name"]: mount["mountPath"] for mount in one.container["volumeMounts"]}
    return {
        f"{paths[volume['name']]}/{item['path']}"
        for volume in one.pod["volumes"]
        for item in volume.get("secret", {}).get("items", [])
    }


def _known() -> set[str]:
    """Variables that somebody reads: fedq's, and OpenSSL's."""
    fields = {field for kind in settings._kinds(settings.Common) for field in kind.model_fields}
    return {f"FEDQ_{field}".upper() for field in fields} | {"SSL_CERT_FILE"}


def _configuration(text: str) -> dict[str, str]:
    return dict(line.split(" = ", 1) for line in text.splitlines() if " = " in line and not line.startswith("#"))
