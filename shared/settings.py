"""Where the servers are and how this process behaves, read once from `FEDQ_*` into a frozen value.

Values come from the environment, then `.env`, then `.fedq/env` (which `make up` writes), in that order.
Each service asks for the part it needs: a trainer's settings hold no Redis address at all.
"""

import os
import tempfile
from pathlib import Path
from typing import Annotated, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.errors import BadInput


def _url(*schemes: str) -> AfterValidator:
    def check(value: SecretStr) -> SecretStr:
        try:
            parts = urlsplit(value.get_secret_value())
            _ = parts.port
        except ValueError:  # its text may hold a part of the password
            raise ValueError("is no URL; write special characters of a password as %2F, %23, %5B …") from None
        if parts.scheme not in schemes or not parts.hostname:
            raise ValueError(f"must be a URL such as {schemes[0]}://host:port")
        return value

    return AfterValidator(check)


class Common(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="FEDQ_", env_file=(".fedq/env", ".env"), extra="ignore", frozen=True)

    log: Literal["auto", "json", "console"] = "auto"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    probe_dir: Path | None = None  # of this process alone: where `alive` and `ready` are
    probe_s: float = Field(default=10.0, ge=0.01, le=60)  # in which each loop turns; they are dead after 180 s


class Broker(Common):
    amqp_url: Annotated[SecretStr, _url("amqp", "amqps")]
    amqp_heartbeat_s: int = Field(default=30, ge=2, le=600)  # a dead broker is noticed within 75 s of the default


class Record(Common):
    redis_url: Annotated[SecretStr, _url("redis", "rediss")]


class Store(Common):
    s3_url: Annotated[SecretStr, _url("http", "https")]
    s3_access_key: SecretStr
    s3_secret_key: SecretStr
    s3_bucket: str = Field(default="fedq", min_length=3)
    s3_region: str = "us-east-1"
    s3_timeout_s: float = Field(default=30.0, ge=0.1, le=600)  # without a byte of an answer


class Console(Broker):
    """RabbitMQ's management API; the credentials are those of `FEDQ_AMQP_URL`."""

    rabbitmq_url: Annotated[SecretStr, _url("http", "https")] | None = None


class Aggregator(Console, Record, Store):
    lease_s: float = Field(default=15.0, gt=0.5, le=600)
    max_jobs: int = Field(default=8, ge=1, le=256)


class Data(Common):
    data_dir: Path = Path("data")  # below which a job's data sets are looked for


class Trainer(Broker, Store, Data):
    heartbeat_s: float = Field(default=2.0, ge=0.1, le=300)
    grace_s: float = Field(default=25.0, ge=0, le=86400)  # to finish in when asked to stop; then work is handed back
    cache_dir: Path = Path(tempfile.gettempdir()) / f"fedq-cache-{os.getuid()}"
    cache_mb: int = Field(default=4096, ge=1)
    state_dir: Path = Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share") / "fedq"  # of a silo
    device: str = "auto"
    threads: int | None = Field(default=None, ge=1)  # of torch, in each slot


class Registry(Broker, Record):
    registry_url: Annotated[SecretStr, _url("http")] = SecretStr("http://127.0.0.1:8080")
    heartbeat_s: float = Field(default=2.0, ge=0.1, le=300)  # as the trainers have it
    patience: int = Field(default=5, ge=2)  # heartbeats without a sign of life: then a trainer is lost


class Cli(Console, Record, Store):
    registry_url: Annotated[SecretStr, _url("http")] = SecretStr("http://127.0.0.1:8080")


AnySettings = TypeVar("AnySettings", bound=Common)


def load(kind: type[AnySettings]) -> AnySettings:
    """The settings of one service, or `BadInput` that names everything missing or wrong at once."""
    try:
        return kind()
    except ValidationError as error:
        lines = []
        for mistake in error.errors(include_url=False, include_input=False):
            name = f"FEDQ_{'_'.join(str(part) for part in mistake['loc'])}".upper()
            reason = "is not set" if mistake["type"] == "missing" else mistake["msg"]
            lines.append(f"{name}: {reason.removeprefix('Value error, ')}")
        lines.append("Set them in the environment or in .env (`make up` starts servers and writes .fedq/env).")
        raise BadInput("\n".join(lines)) from None  # the cause would show the values, secrets too
