"""The client of Redis: it sets time-outs and turns the driver's errors into fedq's. No other module opens Redis."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from shared import names
from shared.errors import Denied, Unavailable, tls_trouble
from shared.process.settings import Record


class Redis:
    """A Redis server; safe to share between threads."""

    def __init__(self, settings: Record) -> None:
        url = settings.redis_url.get_secret_value()
        parts = urlsplit(url)
        self.place = f"{parts.scheme}://{parts.hostname}:{parts.port or 6379}{parts.path}"
        self._client: Any = redis.Redis.from_url(
            url,
            decode_responses=True,
            socket_timeout=2,
            socket_connect_timeout=2,
            retry=Retry(ExponentialWithJitterBackoff(cap=0.5, base=0.05), 2),
        )

    def run(self, script: "Script", keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Runs one atomic step on the server."""
        return self._guarded(script.bound(self._client), keys=keys, args=args)

    def probe(self) -> None:
        """Checks that the server runs scripts, and that they may write."""
        self.run(_PROBE, [names.PROBE], [])

    def __getattr__(self, command: str) -> Any:
        method = getattr(self._client, command)
        return lambda *args, **options: self._guarded(method, *args, **options)

    def _guarded(self, call: Any, *args: Any, **options: Any) -> Any:
        try:
            return call(*args, **options)
        except (redis.AuthenticationError, redis.exceptions.NoPermissionError, redis.ResponseError) as error:
            found = self._refusal(error)
            if found is None:
                raise
            raise found from error
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            if trouble := tls_trouble(error, "FEDQ_REDIS_URL"):
                raise Unavailable(f"{self.place}: {trouble}") from error
            raise Unavailable(
                f"{self.place} cannot be reached ({error}); "
                "is it running, and is FEDQ_REDIS_URL right, redis:// or rediss://?"
            ) from error

    def _refusal(self, error: Exception) -> Unavailable | None:
        """The error for users that stands for Redis's answer; None if the answer shows a mistake in fedq."""
        said = str(error)
        if isinstance(error, redis.AuthenticationError) or "NOAUTH" in said or "WRONGPASS" in said:
            return Denied(f"{self.place} refuses this password; check FEDQ_REDIS_URL")
        if isinstance(error, redis.exceptions.NoPermissionError) or "ACL failure" in said:  # in a script's error
            return Denied(f"{self.place} refuses this user ({said}); check the rights of the user in FEDQ_REDIS_URL")
        if "DB index" in said:
            return Unavailable(f"{self.place}: there is no such database; check FEDQ_REDIS_URL")
        if isinstance(error, _PASSING_CLASSES) or said.startswith(_PASSING_WORDS):
            return Unavailable(f"{self.place} takes no writes now: {said}; check it, and FEDQ_REDIS_URL")
        return None


#: Errors that an operator can repair, so that a later try may succeed: no memory, no disk, a replica not yet master.
_PASSING_CLASSES = (
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.MasterDownError,
    redis.exceptions.TryAgainError,
    redis.exceptions.ClusterDownError,
)
_PASSING_WORDS = ("MISCONF", "NOREPLICAS")


class Script:
    """A Lua script, sent as its SHA; only a server that does not know it yet gets the text."""

    def __init__(self, text: str) -> None:
        self._text = text

    def bound(self, client: Any) -> Any:
        return client.register_script(self._text)


_PROBE = Script("return redis.call('SET', KEYS[1], 'fedq', 'PX', 1000)")
