"""deploy/compose/compose.yaml: what every container is held to, and what must be the same in two places."""

import itertools
import re
import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.compose import stack, variables
from deploy.native import rabbitmq
from services.trainer import __main__ as trainer
from shared.errors import BadInput
from shared.process import settings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "deploy/compose/compose.yaml").read_text()
FILE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
EXAMPLE = variables.read(variables.EXAMPLE)
SECRETS = {name for name, value in EXAMPLE.items() if not value}

#: `${NAME}`, `${NAME:-default}` and `${NAME:?why}`; `$$` is a dollar for the shell.
VARIABLE = re.compile(r"(?<!\$)\$\{([A-Z0-9_]+)(?::([-?])([^}]*))?\}")
USED = {found[1] for found in VARIABLE.finditer(TEXT)} - {"PWD"}
DEFAULTS = {found[1]: found[3] for found in VARIABLE.finditer(TEXT) if found[2] == "-" and found[1] != "PWD"}

ONE_SHOT = {"setup", "fedq"}
OURS = {"setup", "registry", "aggregator", "trainer", "trainer-gpu", "fedq"}

each = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)


def filled(value: Any, values: dict[str, str]) -> str:
    return VARIABLE.sub(lambda found: values.get(found[1]) or found[3], str(value))


# --- variables --------------------------------------------------------------------------------------------------------


def test_every_variable_is_explained_and_every_explained_one_used() -> None:
    assert set(EXAMPLE) == USED


def test_the_example_shows_the_defaults() -> None:
    assert {name: EXAMPLE[name] for name in DEFAULTS} == DEFAULTS


def test_no_password_has_a_default() -> None:
    """What is a login or a part of one must be given, and the example leaves every password empty."""
    required = {found[1] for found in VARIABLE.finditer(TEXT) if found[2] == "?"}
    assert {name for name in USED if re.search("PASSWORD|SECRET", name)} == SECRETS
    assert required == SECRETS | {"MINIO_ROOT_USER", "TRAINER_S3_ACCESS_KEY"}


def test_the_tag_is_the_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert EXAMPLE["IMAGE_TAG"] == project["version"]


def test_a_new_file_of_variables_is_complete_and_its_owners(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    variables.make(path, {"S3_PORT": "23456"})
    made = variables.read(path)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert made["S3_PORT"] == "23456"
    assert {name: value for name, value in made.items() if name not in SECRETS | {"S3_PORT"}} == {
        name: value for name, value in EXAMPLE.items() if name not in SECRETS | {"S3_PORT"}
    }
    passwords = [made[name] for name in SECRETS]
    assert len(set(passwords)) == len(passwords)
    assert all(re.fullmatch("[A-Za-z0-9_-]{20,}", password) for password in passwords), "they become parts of URLs"


def test_changing_a_variable_leaves_the_rest_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("# mine\nTRAINERS=2\nIMAGE_TAG=9\n")
    variables.change(path, {"TRAINERS": "6"})

    assert path.read_text() == "# mine\nTRAINERS=6\nIMAGE_TAG=9\n"


def test_a_missing_file_of_variables_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"There is no .*\.env: run `make up`"):
        variables.read(tmp_path / ".env")


# --- every container --------------------------------------------------------------------------------------------------


@each
def test_a_container_holds_no_more_rights_than_it_needs(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "network_mode", "pid"} & set(service)
    assert not [volume for volume in service.get("volumes", []) if "docker.sock" in volume]


@each
def test_a_container_may_not_use_the_whole_machine(service: dict[str, Any]) -> None:
    limits = service["deploy"]["resources"]["limits"]
    assert set(limits) == {"cpus", "memory"}
    assert float(filled(limits["cpus"], EXAMPLE)) > 0
    assert re.fullmatch(r"\d+[mg]", filled(limits["memory"], EXAMPLE))
    assert service["logging"]["options"]["max-size"]


@pytest.mark.parametrize("name", SERVICES)
def test_what_goes_on_is_restarted_and_probed_and_what_ends_is_not(name: str) -> None:
    service = SERVICES[name]
    if name in ONE_SHOT:
        assert service["restart"] == "no"
    else:
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")


@each
def test_nothing_is_offered_beyond_this_machine(service: dict[str, Any]) -> None:
    assert [port for port in service.get("ports", []) if not port.startswith("127.0.0.1:${")] == []


@each
def test_an_image_has_a_tag_of_its_own(service: dict[str, Any]) -> None:
    name, _, tag = filled(service["image"], EXAMPLE).rpartition(":")
    assert name
    assert tag not in ("", "latest")


def test_the_ports_are_those_that_the_runner_knows() -> None:
    """`make up` looks whether they are free, and writes them into .fedq/env."""
    found = {}
    for name, service in SERVICES.items():
        for port in service.get("ports", []):
            _, outer, inner = re.fullmatch(r"127\.0\.0\.1:(\$\{([A-Z0-9_]+):-\d+\}):(\d+)", port).groups()  # type: ignore[union-attr]
            found[name, int(inner)] = outer
    assert found == stack.PORTS


# --- who reaches what -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["trainer", "trainer-gpu"])
def test_a_trainer_reaches_the_bus_and_the_object_store_alone(name: str) -> None:
    reached = {
        other for other, service in SERVICES.items() if set(service["networks"]) & set(SERVICES[name]["networks"])
    }
    assert reached == {"trainer", "trainer-gpu", "rabbitmq", "minio"}


@pytest.mark.parametrize("name", ["trainer", "trainer-gpu"])
def test_a_trainer_is_told_no_secret_of_an_operators(name: str) -> None:
    told = {found[1] for value in SERVICES[name]["environment"].values() for found in VARIABLE.finditer(str(value))}
    secrets = {"RABBITMQ_TRAINER_PASSWORD", "TRAINER_S3_ACCESS_KEY", "TRAINER_S3_SECRET_KEY"}
    assert told - secrets == {"TRAINER_THREADS", "FEDQ_ALLOW"}


def test_no_password_is_an_argument() -> None:
    for service in SERVICES.values():
        words = " ".join([*service.get("command", []), *service.get("healthcheck", {}).get("test", [])])
        assert not {found[1] for found in VARIABLE.finditer(words)} & SECRETS


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("setup", settings.Setup),
        ("registry", settings.Registry),
        ("aggregator", settings.Aggregator),
        ("trainer", settings.Trainer),
        ("trainer-gpu", settings.Trainer),
        ("fedq", settings.Cli),
    ],
)
def test_a_service_finds_its_settings(
    name: str, kind: type[settings.Common], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / ".env.made"
    variables.make(made)
    monkeypatch.chdir(tmp_path)
    for variable, value in SERVICES[name]["environment"].items():
        monkeypatch.setenv(variable, filled(value, variables.read(made)))

    assert settings.load(kind)
    assert settings.unknown() == {}


# --- what the servers are told ----------------------------------------------------------------------------------------


def lines(text: str) -> set[str]:
    return {line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")}


def test_rabbitmq_is_told_here_what_it_is_told_without_docker() -> None:
    elsewhere = r"default_|log\.|(listeners|management|prometheus)\.tcp"  # who and where: its environment says it here
    native, here = (
        {line for line in lines(text) if not re.match(elsewhere, line)}
        for text in (rabbitmq.CONFIGURATION, SERVICES["rabbitmq"]["environment"]["CONFIGURATION"])
    )
    assert here == native


def test_redis_keeps_what_it_has_acknowledged() -> None:
    told = lines(SERVICES["redis"]["environment"]["CONFIGURATION"])
    assert {"appendonly yes", "appendfsync always", "maxmemory-policy noeviction", "dir /data"} <= told
    assert "redis:/data" in SERVICES["redis"]["volumes"]


def test_every_server_keeps_its_data_in_a_volume() -> None:
    kept = {volume.partition(":")[0] for name in stack.SERVERS for volume in SERVICES[name]["volumes"]}
    assert kept == set(stack.SERVERS) <= set(FILE["volumes"])


@pytest.mark.parametrize("name", ["trainer", "trainer-gpu"])
def test_a_trainer_may_finish_before_it_is_killed(name: str) -> None:
    grace = float(SERVICES[name]["environment"]["FEDQ_GRACE_S"])
    assert _seconds(SERVICES[name]["stop_grace_period"]) > grace + trainer.HEED + trainer.LEAVE + trainer.CLOSING


def test_the_gpu_trainer_differs_by_settings_alone() -> None:
    cpu, gpu = SERVICES["trainer"], SERVICES["trainer-gpu"]
    different = {key for key in cpu.keys() | gpu.keys() if cpu.get(key) != gpu.get(key)}

    assert different == {"profiles", "image", "command", "deploy"}
    assert gpu["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


def test_every_own_service_starts_when_the_servers_are_provisioned() -> None:
    for name in OURS - ONE_SHOT:
        assert SERVICES[name]["depends_on"] == {"setup": {"condition": "service_completed_successfully"}}
    assert set(SERVICES["setup"]["depends_on"]) == set(stack.SERVERS)


def test_what_is_mounted_from_the_repository_is_there() -> None:
    mounted = itertools.chain.from_iterable(service.get("volumes", []) for service in SERVICES.values())
    paths = [volume.split(":")[0] for volume in mounted if volume.startswith("./")]

    assert paths
    assert [path for path in paths if not (variables.ENV.parent / path).exists()] == []


def _seconds(text: str) -> float:
    return float(text.removesuffix("s"))
