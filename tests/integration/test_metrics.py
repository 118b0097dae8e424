"""What Prometheus and Grafana are given, against a real Prometheus that scrapes a real registry and a real RabbitMQ.

One job is trained for the whole module, and its aggregator dies in the worst moments of two rounds. The figures must be
its manifests', and every expression of the dashboard and of the rules is asked as Grafana would ask it.
"""

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.native import prometheus
from deploy.native.prometheus import OBSERVE, Prometheus
from deploy.native.stack import Stack
from shared import names
from shared.redis.ledger import Totals
from tests.conftest import Servers
from tests.harness import SECONDS, Services, until

DASHBOARD = json.loads((OBSERVE / "grafana/dashboards/fedq.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = {
    f"{panel['title']} {target['refId']}": target["expr"] for panel in PANELS for target in panel["targets"]
} | {note["name"]: note["expr"] for note in DASHBOARD["annotations"]["list"] if "expr" in note}
FIRING = "Alerts"  #: the one that is right to have nothing to say

#: The owner dies with a manifest in the store that the ledger does not know; the next with one that it does.
DEATHS = ("aggregator.recorded=kill@3", "aggregator.committed=kill")
JOB = """
name: digits
seed: 7
model:    {name: softmax}
data:     {name: digits, clients: 6}
train:    {epochs: 1, batch_size: 32, optimizer: {name: sgd, lr: 0.1}}
rounds:   {count: 9999, deadline: 60s}
strategy: {name: fedavg}
evaluate: {every: 1}
pool:     cpu
"""


@dataclass
class Observed:
    """A federation at work, and the Prometheus that looks at it."""

    servers: Servers
    services: Services
    prometheus: Prometheus
    job: str

    def metrics(self) -> dict[str, float]:
        """The registry's series as it says them now."""
        text = httpx.get(f"{self.servers.environment()['FEDQ_REGISTRY_URL']}/metrics", timeout=60).text
        lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {series: float(value) for series, _, value in lines}

    def manifests(self) -> list[dict[str, Any]]:
        blobs = self.servers.blobs()
        keys = [key for key in blobs.list(names.rounds_prefix(self.job)) if key.endswith("/manifest.json")]
        return [blobs.get_json(key) for key in keys]

    def values(self, variable: dict[str, Any]) -> list[str]:
        """What a person may choose from, as Grafana finds it."""
        selector, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"]).groups()  # type: ignore[union-attr]
        found = self.prometheus.ask(f"label/{label}/values", **{"match[]": selector})
        pattern = re.compile(variable["regex"].strip("/") or "(.*)")
        return [match[1] for match in map(pattern.search, found) if match]

    def asked(self, expression: str) -> list[float]:
        """The values of an instant query that are numbers."""
        found = self.prometheus.ask("query", query=expression)["result"]
        return [float(one["value"][1]) for one in found if one["value"][1] != "NaN"]


@pytest.fixture(scope="module")
def observed(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    servers = Servers(stack, vhost="observed", database=0, buses=[])  # the tests' own databases begin at 1
    servers.redis().flushdb()
    stack.add_vhost(servers.vhost)
    folder = tmp_path_factory.mktemp("observed")
    services = Services(servers, folder / "logs", settings={"FEDQ_LEASE_S": "2"})
    ports = stack.state.ports
    watching = Prometheus(
        folder / "prometheus",
        {
            "registry:8080": f"127.0.0.1:{ports['registry']}",
            "rabbitmq:15692": f"127.0.0.1:{ports['prometheus']}",
            "vhost: [fedq]": f"vhost: [{servers.vhost}]",
            "scrape_interval: 5s": "scrape_interval: 250ms",
            "evaluation_interval: 5s": "evaluation_interval: 250ms",
        },
    )
    try:
        watching.start()
        services.start("registry")
        owner = services.start("aggregator", FEDQ_FAILPOINT=DEATHS[0])
        services.trainers(1)
        (folder / "job.yaml").write_text(JOB)
        services.fedq("start", str(folder / "job.yaml"), "--id", "digits-abc234")
        for death in (DEATHS[1], ""):
            until(lambda owner=owner: not owner.alive(), SECONDS, "the owner's death", detail=services.tails)  # type: ignore[misc]
            owner = services.start("aggregator", FEDQ_FAILPOINT=death)
        found = Observed(servers, services, watching, "digits-abc234")
        until(lambda: len(found.manifests()) > 5, SECONDS, "a few rounds under the last owner", detail=services.tails)
        until(lambda: found.asked("fedq_tasks"), SECONDS, "RabbitMQ to tell of its queues, as every five seconds")
        yield found
    finally:
        services.stop(grace=1)
        watching.kill()
        for bus in servers.buses:
            bus.close()
        stack.remove_vhost(servers.vhost)
        servers.blobs().delete("jobs/")


def substituted(expression: str, chosen: dict[str, list[str] | str]) -> str:
    """An expression as Grafana sends it: of several values a regular expression, of All what stands for it."""

    def value(match: re.Match[str]) -> str:
        found = chosen[match[1]]
        if isinstance(found, str):
            return found
        escaped = [re.sub(r"[$^*{}\[\]'+?.()|\\]", r"\\\\\g<0>", one) for one in found]
        return escaped[0] if len(escaped) == 1 else f"({'|'.join(escaped)})"

    return re.sub(r"\$\{?(\w+)\}?", value, expression)


def choices(observed: Observed) -> dict[str, dict[str, list[str] | str]]:
    """What a person may have chosen: everything, one of each, or several."""
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    values = {name: observed.values(variable) for name, variable in variables.items()}
    every: dict[str, list[str] | str] = {name: variable["allValue"] for name, variable in variables.items()}
    some: dict[str, list[str] | str] = {name: [*found, "no-such.one"] for name, found in values.items()}
    assert values == {"job": [observed.job], "pool": ["cpu"]}
    return {
        name: chosen | {"__rate_interval": "20s"}
        for name, chosen in (("all", every), ("one", values), ("several", some))
    }  # type: ignore[operator]


def test_every_panel_answers_and_has_something_to_say(observed: Observed) -> None:
    """Whatever is chosen in the variables; RabbitMQ tells of its queues every five seconds."""
    for chosen in choices(observed).values():
        questions = {name: substituted(expression, chosen) for name, expression in EXPRESSIONS.items()}
        assert not [question for question in questions.values() if "$" in question.replace("$1", "")]

        def silent(questions: dict[str, str] = questions) -> list[str]:
            return [name for name, question in questions.items() if not observed.asked(question) and name != FIRING]

        until(lambda: not silent(), 30, "data for every panel", detail=lambda: str(silent()))
    assert observed.asked(EXPRESSIONS[FIRING]) == []


def test_every_metric_that_is_named_exists(observed: Observed) -> None:
    """In the dashboard and in the rules: one that does not is an empty panel, or an alert that never fires."""
    rules = (OBSERVE / "rules.yml").read_text()
    expressions = " ".join([*EXPRESSIONS.values(), *re.findall(r"expr: (?:>-\n)?((?:.*\n)(?: {10}.*\n)*)", rules)])
    named = set(re.findall(r"\b(?:fedq|rabbitmq)_\w+", expressions))
    exported = set(observed.prometheus.ask("label/__name__/values"))

    assert len(named) > 20
    assert named - exported == set()


def test_every_rule_is_healthy(observed: Observed) -> None:
    """Prometheus has evaluated each without an error, and a federation that works gives no alarm."""

    def rules() -> list[dict[str, Any]]:
        return [rule for group in observed.prometheus.ask("rules")["groups"] for rule in group["rules"]]

    until(lambda: all(rule["health"] != "unknown" for rule in rules()), SECONDS, "every rule to be evaluated")
    assert {rule["name"]: rule.get("lastError", "") for rule in rules() if rule["health"] != "ok"} == {}
    assert {rule["name"] for rule in rules() if rule.get("state") == "firing"} == set()
    assert observed.prometheus.ask("query", query="fedq_tasks")["result"][0]["metric"]["pool"] == "cpu"


def test_an_open_round_is_seen(observed: Observed) -> None:
    """Its updates never pass its target, and a scrape finds it on its way."""
    in_so_far, target = (f'fedq_job_{name}{{job="{observed.job}"}}' for name in ("updates", "target"))

    def found() -> bool:
        series = observed.metrics()
        assert series.get(in_so_far, 0) <= series.get(target, 6) <= 6
        return 0 < series.get(in_so_far, 0) < 6

    until(found, SECONDS, "a scrape between two updates")


def test_the_totals_are_those_of_the_manifests(observed: Observed) -> None:
    """To the microsecond, though two owners died between a manifest and its being known; a stop is counted as such."""
    observed.services.fedq("stop", observed.job)
    observed.services.ended(observed.job)
    manifests, series = observed.manifests(), observed.metrics()
    updates = [update for manifest in manifests for update in manifest["updates"]]

    def total(name: str, **label: str) -> float:
        ((key, value),) = label.items()
        return series[f'fedq_{name}_total{{{key}="{value}"}}']

    assert total("faults", fault="takeover") >= len(DEATHS)
    assert len({manifest["fence"] for manifest in manifests}) == len(DEATHS) + 1
    assert total("rounds", outcome="committed") == len(manifests)
    assert total("rounds", outcome="stopped") <= 1, "a job may be between two rounds"
    assert total("rounds", outcome="failed") == 0
    assert total("round_seconds", outcome="committed") == pytest.approx(sum(one["seconds"] for one in manifests))
    assert total("updates", outcome="accepted") == len(updates)
    assert total("updates", outcome="rejected") == sum(len(one["rejected"]) for one in manifests)
    for part, timing in (("download", "fetch"), ("train", "train"), ("upload", "upload"), ("wait", "wait")):
        spent = [update["timings"][timing] for update in updates if timing in update["timings"]]
        assert total("parts", part=part) == len(spent) > 0
        assert total("part_seconds", part=part) == pytest.approx(sum(spent))
    for part, times in (("fold", len(updates)), ("step", len(manifests))):
        assert total("parts", part=part) == times
        spent = [manifest["timings"][part] for manifest in manifests]
        assert total("part_seconds", part=part) == pytest.approx(sum(spent))
        assert min(spent) > 0


def test_a_redis_that_is_emptied_begins_to_count_anew(observed: Observed) -> None:
    """Which Prometheus takes for what it is, a reset; the series are there from the first scrape on."""
    assert observed.servers.ledger().totals() != Totals()
    before = observed.metrics()
    observed.servers.redis().flushdb()
    until(lambda: observed.metrics()['fedq_rounds_total{outcome="committed"}'] == 0, SECONDS, "a registry that sees it")

    after = observed.metrics()
    assert {name for name in before if name.startswith(("fedq_round", "fedq_part", "fedq_update"))} <= after.keys()


def test_promtool_finds_nothing_wrong() -> None:
    """Neither in the configuration, nor in when the alerts fire."""
    tool, alerts = prometheus.find().promtool, Path(__file__).with_name("alerts.yml")
    for command in (["check", "config", OBSERVE / "prometheus.yml"], ["test", "rules", alerts]):
        done = subprocess.run([tool, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
