"""What a rule is."""

from collections.abc import Callable, Iterator

from shared.process import settings
from tests.kubernetes.manifests import Manifests

Complaints = Iterator[str]
Rule = Callable[[Manifests], Complaints]
RULES: dict[str, Rule] = {}

NAME, COMPONENT, POOL = "app.kubernetes.io/name", "app.kubernetes.io/component", "fedq/pool"
PORTS = {"amqp": 5672, "amqps": 5671, "redis": 6379, "rediss": 6379, "http": 80, "https": 443}
SETTINGS: dict[str, type[settings.Common]] = {  #: what each component's process reads
    "setup": settings.Setup,
    "registry": settings.Registry,
    "aggregator": settings.Aggregator,
    "trainer": settings.Trainer,
}


def rule(check: Rule) -> Rule:
    """Makes it one of those that all manifests must obey."""
    RULES[check.__name__] = check
    return check
