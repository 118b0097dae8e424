"""The table of all selection policies, by the names that a job file knows them by."""

from collections.abc import Mapping
from typing import Any

from services.aggregator.selection.oort import OortPolicy
from services.aggregator.selection.policy import Policy
from services.aggregator.selection.power_of_choice import PowerOfChoicePolicy
from services.aggregator.selection.round_robin import RoundRobinPolicy
from services.aggregator.selection.tifl import TiflPolicy
from services.aggregator.selection.uniform import AllPolicy, RandomPolicy

POLICIES: Mapping[str, Policy[Any]] = {
    "all": AllPolicy(),
    "random": RandomPolicy(),
    "round_robin": RoundRobinPolicy(),
    "power_of_choice": PowerOfChoicePolicy(),
    "oort": OortPolicy(),
    "tifl": TiflPolicy(),
}
