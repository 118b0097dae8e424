"""RabbitMQ's management API, asked the one thing that AMQP cannot say: are the policies in place?"""

import base64
import http.client
import json
import re
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from shared import topology
from shared.errors import BadInput, Unavailable, tls_trouble
from shared.settings import Console

TIMEOUT = 5.0  #: seconds that an answer may take


def missing_policies(settings: Console, vhost: str) -> list[str]:
    """The policies of `shared.topology` that do not hold in `vhost`, each with the reason where it is there."""
    found = _get(settings, f"policies/{quote(vhost, safe='')}")
    set_here = {policy["name"]: policy for policy in found}
    missing = []
    for name, queue in topology.POLICIES.items():
        covering = [policy for policy in found if re.search(policy["pattern"], queue)]
        # Only one policy applies to a queue: the one of the highest priority.
        winner = max(covering, key=lambda policy: int(policy["priority"]), default=None)
        if name not in set_here:
            missing.append(name)
        elif set_here[name] not in covering:
            missing.append(f"{name} (does not cover {queue})")
        elif winner is not None and winner["priority"] > set_here[name]["priority"]:
            missing.append(f"{name} (outranked by {winner['name']})")
    return missing


def _get(settings: Console, path: str) -> Any:
    """One answer of the API, to the user of `FEDQ_AMQP_URL`."""
    if settings.rabbitmq_url is None:
        raise BadInput("FEDQ_RABBITMQ_URL: is not set, so the management API cannot be asked")
    url = settings.rabbitmq_url.get_secret_value().rstrip("/")
    place = f"RabbitMQ's management API at {urlsplit(url).netloc.rpartition('@')[2]}"
    user = urlsplit(settings.amqp_url.get_secret_value())
    login = f"{unquote(user.username or 'guest')}:{unquote(user.password or 'guest')}".encode()
    request = urllib.request.Request(  # noqa: S310 - the settings allow http and https alone
        f"{url}/api/{path}", headers={"Authorization": f"Basic {base64.b64encode(login).decode()}"}
    )
    try:
        with _direct.open(request, timeout=TIMEOUT) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (401, 403):
            raise Unavailable(
                f"{place} refuses the user of FEDQ_AMQP_URL; check its password, and that it has the tag policymaker"
            ) from error
        if error.code == 404:
            raise Unavailable(f"{place} knows no {path}; check the vhost in FEDQ_AMQP_URL") from error
        raise Unavailable(f"{place} answers {error.code} to {path}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        if trouble := tls_trouble(error, "FEDQ_RABBITMQ_URL"):
            raise Unavailable(f"{place}: {trouble}") from error
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, http.client.BadStatusLine):  # an alert of TLS perhaps, which cannot be printed
            reason = "it does not answer in HTTP"
        raise Unavailable(
            f"{place} cannot be reached ({reason}); is FEDQ_RABBITMQ_URL right, http:// or https://?"
        ) from error


_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # as AMQP goes: past any proxy
