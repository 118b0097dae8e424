"""What our manifests must be beyond what the API server asks: each rule says in words what breaks it.

`test_rules.py` breaks each of them.
"""

from tests.kubernetes.rules import belonging, configuration, containers, network, references, scaling, trainers
from tests.kubernetes.rules.rule import RULES

__all__ = ["RULES", "belonging", "configuration", "containers", "network", "references", "scaling", "trainers"]
