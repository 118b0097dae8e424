"""Where the servers are and how this process behaves, read once from `FEDQ_*` into a frozen value.

Values come from the environment, then `.env`, then `.fedq/env` (which `make up` writes), in that order. `.env`
is the working folder's; `.fedq/env` may be that of a folder above it.
Each service asks for the part it needs: a trainer's settings hold no Redis address at all.
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
    """A URL like the example: with a login only where that is used, and with what may follow host and port."""

    def check(value: SecretStr) -> SecretStr:
        try:
            parts = urlsplit(value.get_secret_value())
            _ = parts.port
        except ValueError:  # its text may hold a part of the password
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
    """Of an allow list, as it is written with commas."""
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


# A password with a bare / in it ends the host early: what follows is no path, and must not be shown as one.
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
        env_ignore_empty=True,  # what compose makes of a variable that nobody set
        str_strip_whitespace=True,  # a Secret that is made of a file ends in a line feed
        extra="ignore",
        frozen=True,
    )

    log: Literal["auto", "json", "console"] = "auto"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    probe_dir: Path | None = None  # of this process alone: where `alive` and `ready` are
    probe_s: float = Field(default=10.0, ge=0.01, le=60)  # in which each loop turns; they are dead after 180 s


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
    s3_timeout_s: float = Field(default=30.0, ge=0.1, le=600)  # without a byte of an answer


class Console(Broker):
    """RabbitMQ's management API; the credentials are those of `FEDQ_AMQP_URL`."""

    rabbitmq_url: Management | None = None


class Code(Common):
    """Which code of the user's own a process may run, by the name that a job gives: nothing unless it is listed."""

    allow: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_entries)] = ()


class Aggregator(Console, Record, Store, Code):
    lease_s: float = Field(default=15.0, gt=0.5, le=600)
    max_jobs: int = Field(default=8, ge=1, le=256)


class Data(Common):
    data_dir: Path = Path("data")  # below which a job's data sets are looked for


class Trainer(Broker, Store, Data, Code):
    heartbeat_s: float = Field(default=2.0, ge=0.1, le=300)
    grace_s: float = Field(default=25.0, ge=0, le=86400)  # to finish in when asked to stop; then work is handed back
    cache_dir: Path = Field(default_factory=lambda: _temporary() / f"fedq-cache-{os.getuid()}")
    cache_mb: int = Field(default=4096, ge=1)
    state_dir: Path = Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share") / "fedq"  # of a silo
    device: Device = "auto"
    threads: int = Field(default=1, ge=1)  # of torch, in each slot: more, for a machine that it has to itself


class Registry(Broker, Record):
    registry_url: Listen = SecretStr("http://127.0.0.1:8080")
    heartbeat_s: float = Field(default=2.0, ge=0.1, le=300)  # as the trainers have it
    patience: int = Field(default=5, ge=2)  # heartbeats without a sign of life: then a trainer is lost


class Cli(Console, Record, Store, Code):
    """What a person's commands need."""


class Setup(Console, Record, Store):
    """What `fedq setup` gives the trainers, by an operator who may make users and keys."""

    rabbitmq_url: Management
    trainer_amqp_password: Key
    trainer_s3_access_key: Key
    trainer_s3_secret_key: Key


AnySettings = TypeVar("AnySettings", bound=Common)

#: Read elsewhere: by the failpoints, the native stack and the tests.
ELSEWHERE = ("FEDQ_FAILPOINT", "FEDQ_NATIVE_CACHE", "FEDQ_SIMULATION_SEED")


def load(kind: type[AnySettings]) -> AnySettings:
    """The settings of one service, or `BadInput` that names everything missing or wrong at once."""
    try:
        return kind(_env_file=_files())  # the later one stands above
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
        raise BadInput("\n".join(lines)) from None  # the cause would show the values, secrets too


def unknown() -> dict[str, str | None]:
    """The variables that are set for us and that nobody reads, each with the one that may have been meant."""
    known = {*ELSEWHERE, *(_name(field) for kind in _kinds(Common) for field in kind.model_fields)}
    found = (name.upper() for name in (*os.environ, *(name for file in _files() for name in dotenv_values(file))))
    strangers = {name for name in found if name.startswith(PREFIX)} - known
    # For each Service called fedq-… Kubernetes sets a dozen of these in every container.
    strangers = {name for name in strangers if not re.search(r"_(SERVICE|PORT)(_|$)", name)}
    return {name: next(iter(difflib.get_close_matches(name, known, 1, 0.8)), None) for name in sorted(strangers)}


def _files() -> list[str]:
    """Those that are there for us to read: in a container, a folder of the host's may hold its user's own."""
    return [str(file) for file in (stack_file(), Path(OWN)) if file is not None and os.access(file, os.R_OK)]


def stack_file() -> Path | None:
    """`.fedq/env` of the working folder, or of the nearest folder above it that may say where our servers are."""
    found = (folder / FILE for folder in searched())
    return next((file for file in found if os.access(file, os.R_OK)), None)


def searched() -> list[Path]:
    """The working folder and those above it, up to our home or to the last in which nobody else can write.

    Whoever could put a file there would lead us to servers of theirs.
    """
    home = Path(os.path.expanduser("~"))  # Path's own raises for a user without a home, as in a container
    try:
        folder = Path.cwd()
        found = [folder]
        while folder not in (home, folder.parent):
            folder = folder.parent
            here = folder.stat()
            if here.st_uid != os.geteuid() or here.st_mode & stat.S_IWOTH:
                break
            found.append(folder)
    except OSError:  # it was removed, or we may not look
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
    """The system's folder for what may go; where nothing can be written, the error comes with the setting's name."""
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        return Path("/tmp")  # noqa: S108 - only to be named


def _kinds(kind: type[Common]) -> Iterator[type[Common]]:
    yield kind
    for narrower in kind.__subclasses__():
        yield from _kinds(narrower)


def _name(field: str) -> str:
    return f"{PREFIX}{field}".upper()
