"""Custom compose file: the stack of deploy/compose with named clients, some slow, in place of its pool."""

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

import services
from shared.errors import BadInput

TEMPLATE = Path(services.__file__).parents[1] / "deploy" / "compose" / "compose.yaml"
PROCESSORS = {"slow": "0.5", "medium": "0.75", "fast": "1.25"}  #: CPUs of FLTK's kinds of clients
LINE = 100  #: characters of a list that is still written on one line
ENV = "deploy/compose/.env"  #: the file in which `make up` keeps the passwords
STATE = "/var/lib/fedq"  #: FEDQ_STATE_DIR in the images
LEFT_OUT = ("gpu", "observe")  #: profiles that need files other than the generated one
HEAD = """\
# fedq with named clients in place of a pool: {told}.
# Made by `fedq compose --trainers {trainers} --slow {slow} --medium {medium}`.
#
#   docker compose --env-file {env} -f FILE up -d --remove-orphans
#
# It is the stack of `make up` with other trainers: the same project, volumes, ports and .env; jobs and models stay.
# `make up` wrote that .env; or `install -m 600 deploy/compose/.env.example {env}`, and give each password a value.
#
# A job for these clients names them in place of `pool: cpu`:
#
#   silos: [{silos}]
#   data: {{name: digits, partition: {{name: dirichlet, alpha: 0.5}}}}  # without `clients`: there are as many as silos
#   rounds: {{count: 15, target: {target}, minimum: {minimum}, deadline: 60s}}

"""


def generate(trainers: int, slow: int, medium: int) -> str:
    """The compose file of `trainers` named clients; `BadInput` if more than all of them are slow or medium."""
    if slow + medium > trainers:
        raise BadInput(f"--slow {slow} and --medium {medium} are {slow + medium} clients, and --trainers is {trainers}")
    kinds = {"slow": slow, "medium": medium, "fast": trainers - slow - medium}
    clients = {f"{kind}-{number}": kind for kind, count in kinds.items() for number in range(1, count + 1)}
    target = max(1, trainers - slow)
    head = HEAD.format(
        told=", ".join(f"{count} {kind} ({PROCESSORS[kind]} CPU)" for kind, count in kinds.items() if count),
        trainers=trainers,
        slow=slow,
        medium=medium,
        env=ENV,
        silos=", ".join(clients),
        target=target,
        minimum=(target + 1) // 2,
    )
    return head + yaml.dump(_stack(_template(), clients), Dumper=_Plain, sort_keys=False, width=1000)


def _template() -> Any:
    try:
        return yaml.safe_load(TEMPLATE.read_text())
    except OSError as error:
        raise BadInput(f"{TEMPLATE} cannot be read ({error.strerror}): it is part of fedq's repository") from error


def _stack(template: Mapping[str, Any], clients: Mapping[str, str]) -> dict[str, Any]:
    kept = {
        name: {key: value for key, value in found.items() if key != "build"}
        for name, found in template["services"].items()
        if name != "trainer" and not set(LEFT_OUT) & set(found.get("profiles", ()))
    }
    kept |= {name: _client(template["services"]["trainer"], name, PROCESSORS[kind]) for name, kind in clients.items()}
    document = {key: value for key, value in template.items() if not key.startswith("x-")}
    document |= {"services": kept, "volumes": _volumes(template["volumes"], kept)}
    document["networks"] = {name: found or {} for name, found in template["networks"].items()}
    return document


def _client(trainer: Mapping[str, Any], name: str, processors: str) -> dict[str, Any]:
    """The pool's trainer as one named client, with a volume for its state between rounds."""
    made: dict[str, Any] = copy.deepcopy({key: value for key, value in trainer.items() if key != "build"})
    made["command"] = ["--client", name]
    made["volumes"] = [*made.get("volumes", ()), f"{name}:{STATE}"]
    made.setdefault("deploy", {}).pop("replicas", None)
    made["deploy"].setdefault("resources", {}).setdefault("limits", {})["cpus"] = processors
    return made


def _volumes(declared: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    """The volumes in use, as `data:/data` or `${DATA_DIR:-data}:/data`, with their declarations, and the clients'."""
    words = " ".join(str(one) for service in kept.values() for one in service.get("volumes", ()))
    used = set(re.findall(r"(?:^| |:-)([\w-]+)\}?:/", words))
    return {name: declared.get(name) or {} for name in (*declared, *kept) if name in used}


class _Plain(yaml.SafeDumper):
    """YAML dumper without anchors: it writes texts of several lines as blocks, and short lists on one line."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


def _list(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.SequenceNode:
    short = all(isinstance(value, str) and "\n" not in value for value in values) and len(str(values)) < LINE
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=short)


_Plain.add_representer(str, _text)
_Plain.add_representer(list, _list)
