"""The shapes of what operators add to Kubernetes, as far as we use them; any other field is a mistake.

Taken from the types of KEDA 2.21, cert-manager 1.20, the Prometheus operator 0.90 and RabbitMQ's cluster operator 2.20.
"""

from typing import Any

import jsonschema

Shape = dict[str, Any]

TEXT: Shape = {"type": "string", "minLength": 1}
COUNT: Shape = {"type": "integer", "minimum": 0}
LABELS: Shape = {"type": "object", "additionalProperties": {"type": "string"}}
DURATION: Shape = {"type": "string", "pattern": r"^\d+(h|m|s)$"}
ELSEWHERE: Shape = {"type": "object"}  # a part that has a rule of its own, or Kubernetes' own schema


def one_of(*words: str) -> Shape:
    return {"enum": list(words)}


def listed(item: Shape) -> Shape:
    return {"type": "array", "items": item, "minItems": 1}


def of(required: str = "", **fields: Shape) -> Shape:
    return {
        "type": "object",
        "properties": fields,
        "required": required.split(),
        "additionalProperties": False,
    }


SELECTOR = of("matchLabels", matchLabels=LABELS)
ISSUER = of("name kind group", name=TEXT, kind=one_of("Issuer"), group=one_of("cert-manager.io"))
TLS = of(
    "serverName ca",
    serverName=TEXT,
    ca=of("secret", secret=of("name key", name=TEXT, key=TEXT)),
)
SCRAPE = {
    "port": TEXT,
    "path": {"type": "string", "pattern": "^/"},
    "params": {"type": "object", "additionalProperties": listed(TEXT)},
    "interval": DURATION,
    "honorLabels": {"type": "boolean"},
    "scheme": one_of("http", "https"),
    "tlsConfig": TLS,
}

SHAPES: dict[tuple[str, str], Shape] = {
    ("keda.sh/v1alpha1", "ScaledObject"): of(
        "scaleTargetRef triggers",
        scaleTargetRef=of("name", name=TEXT),
        minReplicaCount=COUNT,
        maxReplicaCount=COUNT,
        pollingInterval=COUNT,
        cooldownPeriod=COUNT,
        advanced=of(horizontalPodAutoscalerConfig=of(behavior=ELSEWHERE)),
        triggers=listed(
            of(
                "type metadata",
                type=one_of("rabbitmq", "metrics-api"),
                name=TEXT,
                metadata={"type": "object", "additionalProperties": TEXT},  # texts alone: "1", "false"
                authenticationRef=of("name", name=TEXT),
            )
        ),
    ),
    ("keda.sh/v1alpha1", "TriggerAuthentication"): of(
        "secretTargetRef", secretTargetRef=listed(of("parameter name key", parameter=TEXT, name=TEXT, key=TEXT))
    ),
    ("monitoring.coreos.com/v1", "PodMonitor"): of(
        "selector podMetricsEndpoints", selector=SELECTOR, podMetricsEndpoints=listed(of("port", **SCRAPE))
    ),
    ("monitoring.coreos.com/v1", "ServiceMonitor"): of(
        "selector endpoints", selector=SELECTOR, endpoints=listed(of("port", **SCRAPE))
    ),
    ("cert-manager.io/v1", "Issuer"): {
        "oneOf": [of("selfSigned", selfSigned=of()), of("ca", ca=of("secretName", secretName=TEXT))]
    },
    ("cert-manager.io/v1", "Certificate"): of(
        "secretName issuerRef",
        secretName=TEXT,
        issuerRef=ISSUER,
        isCA={"type": "boolean"},
        commonName=TEXT,
        dnsNames=listed(TEXT),
        ipAddresses=listed(TEXT),
        usages=listed(one_of("digital signature", "key encipherment", "server auth")),
        duration=DURATION,
        renewBefore=DURATION,
        privateKey=of(
            algorithm=one_of("ECDSA"), size={"enum": [256, 384, 521]}, rotationPolicy=one_of("Always", "Never")
        ),
    ),
    ("rabbitmq.com/v1beta1", "RabbitmqCluster"): of(
        "replicas image persistence resources",
        replicas={"enum": [1, 3, 5]},
        image=TEXT,
        persistence=of("storage", storage=TEXT),
        resources=ELSEWHERE,
        affinity=ELSEWHERE,
        secretBackend=of("externalSecret", externalSecret=of("name", name=TEXT)),
        rabbitmq=of("additionalConfig", additionalConfig=TEXT),
        tls=of("secretName", secretName=TEXT, disableNonTLSListeners={"type": "boolean"}),
    ),
}


def complaints(found: dict[str, Any]) -> list[str]:
    """What is wrong with an object of an operator's kind."""
    shape = of(
        "apiVersion kind metadata spec",
        apiVersion=TEXT,
        kind=TEXT,
        metadata=of("name namespace labels", name=TEXT, namespace=TEXT, labels=LABELS),
        spec=SHAPES[found["apiVersion"], found["kind"]],
    )
    errors = jsonschema.Draft202012Validator(shape).iter_errors(found)
    return [f"{found['kind']} {found['metadata']['name']}: {'.'.join(map(str, e.path))}: {e.message}" for e in errors]
