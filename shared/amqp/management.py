"""RabbitMQ's management API, for what AMQP cannot do: virtual hosts, users and their rights, and policies."""

import base64
import http.client
import json
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from shared.amqp import topology
from shared.errors import BadInput, Denied, Unavailable, tls_trouble
from shared.process.settings import Console

TIMEOUT = 5.0  #: seconds in which the API must answer


def missing_policies(settings: Console, vhost: str) -> list[str]:
    """The policies of `shared.amqp.topology` that have no effect in `vhost`; with the reason if one exists there."""
    found = _call(settings, "GET", f"policies/{quote(vhost, safe='')}")
    set_here = {policy["name"]: policy for policy in found}
    missing = []
    for name, queue in topology.POLICIES.items():
        covering = [policy for policy in found if re.search(policy["pattern"], queue)]
        # RabbitMQ applies only one policy to a queue, the one with the highest priority.
        winner = max(covering, key=lambda policy: int(policy["priority"]), default=None)
        if name not in set_here:
            missing.append(name)
        elif set_here[name] not in covering:
            missing.append(f"{name} (does not cover {queue})")
        elif winner is not None and winner["priority"] > set_here[name]["priority"]:
            missing.append(f"{name} (outranked by {winner['name']})")
    return missing


def make_vhost(settings: Console, vhost: str) -> bool:
    """Makes a virtual host; true if there was none."""
    if vhost in _names(settings, "vhosts"):
        return False
    _call(settings, "PUT", f"vhosts/{quote(vhost, safe='')}", {})
    return True


def make_user(settings: Console, user: str, password: str) -> bool:
    """Makes a user with this password and no tags, or updates it; true if there was no such user."""
    missing = user not in _names(settings, "users")
    _call(settings, "PUT", f"users/{quote(user, safe='')}", {"password": password, "tags": ""})
    return missing


def permit(settings: Console, vhost: str, user: str, permissions: Mapping[str, str]) -> None:
    """Gives a user exactly these rights in a virtual host: `configure`, `write` and `read`, each a pattern."""
    _call(settings, "PUT", f"permissions/{quote(vhost, safe='')}/{quote(user, safe='')}", permissions)


def load(settings: Console, vhost: str, definitions: Mapping[str, Any]) -> None:
    """Sets the policies of a file such as `deploy/definitions.json`; other policies stay."""
    _call(settings, "POST", f"definitions/{quote(vhost, safe='')}", definitions)


def _names(settings: Console, kind: str) -> list[str]:
    return [one["name"] for one in _call(settings, "GET", kind)]


def _call(settings: Console, method: str, path: str, body: Any = None) -> Any:
    """The API's answer to one call by the user of `FEDQ_AMQP_URL`; `Denied` if that user may not make it."""
    if settings.rabbitmq_url is None:
        raise BadInput("FEDQ_RABBITMQ_URL: is not set, so the management API cannot be asked")
    url = settings.rabbitmq_url.get_secret_value().rstrip("/")
    place = f"RabbitMQ's management API at {urlsplit(url).netloc.rpartition('@')[2]}"
    user = urlsplit(settings.amqp_url.get_secret_value())
    login = f"{unquote(user.username or 'guest')}:{unquote(user.password or 'guest')}".encode()
    request = urllib.request.Request(  # noqa: S310 - the settings allow only http and https
        f"{url}/api/{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Basic {base64.b64encode(login).decode()}", "Content-Type": "application/json"},
    )
    try:
        with _direct.open(request, timeout=TIMEOUT) as response:
            text = response.read()
        return json.loads(text) if text else None
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (401, 403):
            tag = "policymaker" if path.startswith("policies/") else "administrator"
            raise Denied(
                f"{place} refuses the user of FEDQ_AMQP_URL; check its password, and that it has the tag {tag}"
            ) from error
        if error.code == 404:
            raise Unavailable(f"{place} knows no {path}; check the vhost in FEDQ_AMQP_URL") from error
        raise Unavailable(f"{place} answers {error.code} to {path}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        if trouble := tls_trouble(error, "FEDQ_RABBITMQ_URL"):
            raise Unavailable(f"{place}: {trouble}") from error
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, http.client.BadStatusLine):  # perhaps a TLS alert, which cannot be printed
            reason = "it does not answer in HTTP"
        raise Unavailable(
            f"{place} cannot be reached ({reason}); is FEDQ_RABBITMQ_URL right, http:// or https://?"
        ) from error


_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # without a proxy, as AMQP
