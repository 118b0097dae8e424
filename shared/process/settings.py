"""Settings of a process: its servers and its behavior, read once from `FEDQ_*` into a frozen value.

Values come from the environment, then `.env`, then `.fedq/env` (which `make up` writes), in that order. `.env`
is the working folder's; `.fedq/env` may be in a folder above it.
Each service reads only the part that it needs: a trainer's settings hold no Redis address at all.
"""

import difflib
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, TypeVar
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from shared.errors import BadInput
from shared.job.user_code import ENTRY

PREFIX = "FEDQ_"
FILE, OWN = ".fedq/env", ".env"


def _url(example: str, *schemes: str, login: bool = False, path: str = "/?") -> AfterValidator:
    """A check for a URL like the example: with a login only if `login`, and with `path` after host and port."""

    def check(value: SecretStr) -> SecretStr:
        try:
            parts = urlsplit(value.get_secret_value())
            _ = parts.port
        except ValueError:  # the error's text may hold a part of the password, so it is dropped
            raise ValueError("is no URL; write special characters of a password as %2F, %23, %5B …") from None
        if parts.scheme not in schemes or not parts.hostname:
            raise ValueError(f"must be a URL such as {example}")
        if "@" in parts.netloc and not login:
            raise ValueError(f"must be a URL such as {example}, without a login")
        if parts.query or parts.fragment or not re.fullmatch(path, parts.path):
            raise ValueError(f"must be a URL such as {example}, and nothing after it")
        return value

    return AfterValidator(check)


def _matching(pattern: str, what: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"must be {what}")
        return value

    return AfterValidator(check)


def _entries(value: object) -> object:
    """Entries of an allow list, from a text with commas."""
    if not isinstance(value, str):
        return value
    found = tuple(entry.strip() for entry in value.split(",") if entry.strip())
    for entry in found:
        if not re.fullmatch(ENTRY, entry):
            raise ValueError(
                f"{entry!r} is neither an attribute, such as mypkg.nets:make, nor a module with all below it, which "
                "ends in a dot, such as mypkg."
            )
    return found


# A bare / in a password ends the host early: the text after it is no path, and must not be shown as one.
Amqp = Annotated[SecretStr, _url("amqp://user:password@host:5672/vhost", "amqp", "amqps", login=True, path="[^@]*")]
RedisUrl = Annotated[SecretStr, _url("redis://:password@host:6379/0", "redis", "rediss", login=True, path=r"(/\d*)?")]
S3Url = Annotated[SecretStr, _url("http://host:9000", "http", "https")]
Management = Annotated[SecretStr, _url("http://host:15672", "http", "https", path=".*")]
Listen = Annotated[SecretStr, _url("http://127.0.0.1:8080", "http")]
Key = Annotated[SecretStr, Field(min_length=1)]
_LABEL = "[a-z0-9]([a-z0-9-]*[a-z0-9])?"
Bucket = Annotated[
    str,
    _matching(
        rf"(?=.{{3,63}}$)(?!\d+(\.\d+){{3}}$){_LABEL}(\.{_LABEL})*",
        "the name of a bucket: 3 to 63 of a-z, 0-9, - and . that are no address",
    ),
]
Region = Annotated[str, _matching("[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?", "a region such as us-east-1")]
Device = Annotated[str, _matching(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", "auto, cpu, cuda, cuda:1, mps or xpu")]


class Common(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,  # compose passes an unset variable as an empty one
        str_strip_whitespace=True,  # a Kubernetes Secret that is made from a file ends in a line feed
        extra="ignore",
        frozen=True,
    )

    log: Literal["auto", "json", "console"] = "auto"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    probe_dir: Path | None = None  # for this process alone: the folder of `alive` and `ready`
    probe_s: float = Field(default=10.0, ge=0.01, le=60)  # for a turn of each loop; dead after 180 s


class Broker(Common):
    amqp_url: Amqp
    amqp_heartbeat_s: int = Field(default=30, ge=2, le=600)  # a dead broker is noticed within 75 s of the default


class Record(Common):
    redis_url: RedisUrl


class Store(Common):
    s3_url: S3Url
    s3_access_key: Key
    s3_secret_key: Key
    s3_bucket: Bucket = "fedq"
    s3_region: Region = "us-east-1"
    s3_timeout_s: float = Field(default=30.0, ge=0.1, le=600)  # longest silence of an answer


class Console(Broker):
    """Settings of RabbitMQ's management API, which takes the credentials of `FEDQ_AMQP_URL`."""

    rabbitmq_url: Management | None = None


class Code(Common):
    """The allow list of the user's own code, by the names that jobs give: without an entry, nothing may run."""

    allow: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_entries)] = ()


class Aggregator(Console, Record, Store, Code):
    lease_s: float = Field(default=15.0, gt=0.5, le=600)
    max_jobs: int = Field(default=8, ge=1, le=256)


class Data(Common):
    data_dir: Path = Path("data")  # the folder that holds the data sets of jobs


class Trainer(Broker, Store, Data, Code):
    heartbeat_s: float = Field(default=2.0, ge=0.1, le=300)
    grace_s: float = Field(default=25.0, ge=0, le=86400)  # to finish work after a stop; the rest is handed back
    cache_dir: Path = Field(default_factory=lambda: _temporary() / f"fedq-cache-{os.getuid()}")
    cache_mb: int = Field(default=4096, ge=1)
    state_dir: Path = Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share") / "fedq"  # of a silo's state
    device: Device = "auto"
    threads: int = Field(default=1, ge=1)  # of torch, per slot; more for a trainer alone on its machine


class Registry(Broker, Record):
    registry_url: Listen = SecretStr("http://127.0.0.1:8080")
    heartbeat_s: float = Field(default=2.0, ge=0.1, le=300)  # the same as the trainers'
    patience: int = Field(default=5, ge=2)  # missing heartbeats after which a trainer is lost


class Cli(Console, Record, Store, Code):
    """Settings of the command line."""


class Setup(Console, Record, Store):
    """Settings of `fedq setup`: the trainers' credentials, and an operator's right to make users and keys."""

    rabbitmq_url: Management
    trainer_amqp_password: Key
    trainer_s3_access_key: Key
    trainer_s3_secret_key: Key


AnySettings = TypeVar("AnySettings", bound=Common)

#: Variables that the failpoints, the native stack and the tests read elsewhere.
ELSEWHERE = ("FEDQ_FAILPOINT", "FEDQ_NATIVE_CACHE", "FEDQ_SIMULATION_SEED")


def load(kind: type[AnySettings]) -> AnySettings:
    """The settings of one service, or `BadInput` that names everything missing or wrong at once."""
    try:
        return kind(_env_file=_files())  # pydantic lets the later file win
    except ValidationError as error:
        missing, lines = [], []
        for mistake in error.errors(include_url=False, include_input=False):
            name = _name("_".join(str(part) for part in mistake["loc"]))
            if mistake["type"] == "missing":
                missing.append(name)
            else:
                lines.append(f"{name}: {mistake['msg'].removeprefix('Value error, ')}")
        if missing:
            lines.append(_say_missing(missing))
        raise BadInput("\n".join(lines)) from None  # the cause would show the values, including secrets


def unknown() -> dict[str, str | None]:
    """The `FEDQ_` variables that are set but not read by fedq, each with the one that may have been meant."""
    known = {*ELSEWHERE, *(_name(field) for kind in _kinds(Common) for field in kind.model_fields)}
    found = (name.upper() for name in (*os.environ, *(name for file in _files() for name in dotenv_values(file))))
    strangers = {name for name in found if name.startswith(PREFIX)} - known
    # Kubernetes sets a dozen such variables in every container for each Service whose name begins with fedq-.
    strangers = {name for name in strangers if not re.search(r"_(SERVICE|PORT)(_|$)", name)}
    return {name: next(iter(difflib.get_close_matches(name, known, 1, 0.8)), None) for name in sorted(strangers)}


def _files() -> list[str]:
    """The settings files that are readable: in a container, a mounted folder may hold files of the host's user."""
    return [str(file) for file in (stack_file(), Path(OWN)) if file is not None and os.access(file, os.R_OK)]


def stack_file() -> Path | None:
    """The file `.fedq/env` of the working folder, or of the nearest folder above it that is `searched`."""
    found = (folder / FILE for folder in searched())
    return next((file for file in found if os.access(file, os.R_OK)), None)


def searched() -> list[Path]:
    """The working folder and those above it, up to the user's home or to the last that only this user can write to.

    A user who could put a file there could lead this process to servers of their choice.
    """
    home = Path(os.path.expanduser("~"))  # `Path.home` raises for a user without a home, as in a container
    try:
        folder = Path.cwd()
        found = [folder]
        while folder not in (home, folder.parent):
            folder = folder.parent
            here = folder.stat()
            if here.st_uid != os.geteuid() or here.st_mode & stat.S_IWOTH:
                break
            found.append(folder)
    except OSError:  # the folder was removed, or may not be read
        return [Path()]
    return found


def _say_missing(names: list[str]) -> str:
    *others, last = names
    both = f"{', '.join(others)} and {last} are" if others else f"{last} is"
    typos = ", ".join(typo for typo, meant in unknown().items() if meant in names)
    but = f" (but {typos} {'are' if ',' in typos else 'is'})" if typos else ""
    file, folders = stack_file(), searched()
    up = f" or above, up to {folders[-1]}" if len(folders) > 1 else ""
    looked = f"{file} does not have {'them' if others else 'it'}" if file else f"there is none in {folders[0]}{up}"
    return (
        f"{both} not set{but}: set {'them' if others else 'it'} in the environment (of the container, where this is "
        f"one) or in .env; `make up` starts servers and writes {FILE} in its folder, and {looked}"
    )


def _temporary() -> Path:
    """The system's folder for temporary files, or /tmp if none is writable: a later error then names the setting."""
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        return Path("/tmp")  # noqa: S108 - only a name for the error


def _kinds(kind: type[Common]) -> Iterator[type[Common]]:
    yield kind
    for narrower in kind.__subclasses__():
        yield from _kinds(narrower)


def _name(field: str) -> str:
    return f"{PREFIX}{field}".upper()
