"""The ledger's rules: each transition of a job or a round as one Lua script, atomic on the Redis server.

A script is a function of a file in this folder, sent with its file and with `common.lua`. A step names the fence that
it expects and answers with a word: `ok`, `duplicate`, `late`, `stranger`, `fenced`, `lost` or `conflict`. The clock is
Redis's. `tests/simulation/model.py` holds the same rules in Python, and a test checks that the two agree.
"""

from functools import cache
from pathlib import Path

from shared.redis.client import Script

_FOLDER = Path(__file__).parent


def load(file: str, function: str) -> Script:
    """Returns the script that calls `function` of `file`.lua."""
    return Script("\n".join([_text("common"), _text(file), f"return {function}()\n"]))


@cache
def _text(file: str) -> str:
    return (_FOLDER / f"{file}.lua").read_text(encoding="utf-8")


CREATE = load("jobs", "create")
REMOVE = load("jobs", "remove")
CLAIM = load("jobs", "claim")
RENEW = load("jobs", "renew")
RELEASE = load("jobs", "release")
ORPHANS = load("jobs", "orphans")
DROP_OWNERS = load("jobs", "drop_owners")
WANT = load("jobs", "want")
REVIVE = load("jobs", "revive")
RESTORE = load("jobs", "restore")
ADVANCE = load("jobs", "advance")
DESCRIBE = load("jobs", "describe")
METRICS = load("jobs", "set_metrics")
OWNED = load("jobs", "check_owned")
END = load("jobs", "end_job")
NOTE = load("jobs", "note")
PULSE = load("jobs", "pulse")

STAGE = load("rounds", "stage")
OPEN = load("rounds", "open_round")
EXTEND = load("rounds", "extend")
ADMISSION = load("rounds", "admission_of")
ACCEPT = load("rounds", "accept")
REJECT = load("rounds", "reject")
EXCLUDE = load("rounds", "exclude")
CLOSE = load("rounds", "close_round")
COMMIT = load("rounds", "commit_round")
FAIL = load("rounds", "fail_round")
