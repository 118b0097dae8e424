"""The Grafana dashboard as a file: what Grafana would trip over, without a Grafana."""

import itertools
import json
import re
from collections import Counter
from typing import Any

import pytest
import yaml

from deploy.native.prometheus import OBSERVE

FILE = OBSERVE / "grafana/dashboards/fedq.json"
DASHBOARD: dict[str, Any] = json.loads(FILE.read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
DRAWN = [panel for panel in PANELS if panel["type"] != "row"]
COLUMNS = 24
BUILT_IN = {"__rate_interval"}

#: What the plugins of these types call their own; a misspelt option is silently nothing.
OPTIONS = {
    "stat": {"colorMode", "graphMode", "reduceOptions"},
    "bargauge": {"displayMode", "valueMode", "orientation", "showUnfilled", "reduceOptions"},
    "timeseries": {"legend", "tooltip"},
}


def test_it_is_the_one_that_is_provisioned() -> None:
    """Grafana finds it in the folder that compose mounts, under one uid, in a schema that 11 and 12 read."""
    (provider,) = provisioned("dashboards/fedq.yml")["providers"]
    compose = (OBSERVE.parent / "compose.yaml").read_text()

    assert f"./observe/grafana/dashboards:{provider['options']['path']}:ro" in compose
    assert (DASHBOARD["uid"], DASHBOARD["title"]) == ("fedq", "fedq")
    assert DASHBOARD["schemaVersion"] == 39, "Grafana 11's; 12 migrates it, and 10 would not know a later one"
    assert "id" not in DASHBOARD, "that is a database's"


def test_every_query_goes_to_the_provisioned_prometheus() -> None:
    (source,) = provisioned("datasources/prometheus.yml")["datasources"]
    wanted = {"type": source["type"], "uid": source["uid"]}
    variables, (_, alerts) = DASHBOARD["templating"]["list"], DASHBOARD["annotations"]["list"]
    asked = [*DRAWN, *itertools.chain.from_iterable(panel["targets"] for panel in DRAWN), *variables, alerts]

    assert all(one["datasource"] == wanted for one in asked)
    scraped = yaml.safe_load((OBSERVE / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scraped, "or the shortest rate is over too few samples"


def test_panels_have_an_id_a_title_and_a_place_of_their_own() -> None:
    assert max(Counter(panel["id"] for panel in PANELS).values()) == 1
    assert max(Counter(panel["title"] for panel in DRAWN).values()) == 1, "people say which one they mean"
    assert all(panel["description"].endswith(".") for panel in DRAWN)
    taken: dict[tuple[int, int], str] = {}
    for panel in PANELS:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= COLUMNS
        for x, y in itertools.product(
            range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        ):
            assert (x, y) not in taken, f"{panel['title']} lies over {taken[x, y]}"
            taken[x, y] = panel["title"]
    rows = {y for _, y in taken}
    assert rows == set(range(len(rows))), "a hole that Grafana would close otherwise on every screen"


@pytest.mark.parametrize("panel", DRAWN, ids=lambda panel: panel["title"])
def test_a_panel_says_only_what_its_type_knows(panel: dict[str, Any]) -> None:
    """Queries with names of their own, known options, thresholds that begin at the bottom, and known units."""
    assert panel["options"].keys() == OPTIONS[panel["type"]]
    letters = [target["refId"] for target in panel["targets"]]
    assert letters == [chr(ord("A") + number) for number in range(len(letters))]
    defaults = panel["fieldConfig"]["defaults"]
    assert defaults["unit"] in {"short", "s", "bytes", "percentunit"}
    steps = defaults.get("thresholds", {}).get("steps", [])
    values = [step["value"] for step in steps]
    assert not values or (values[0] is None and values[1:] == sorted(values[1:]))


def test_variables_are_declared_used_and_allow_all() -> None:
    declared = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    words = [panel["title"] for panel in PANELS] + [target["expr"] for panel in DRAWN for target in panel["targets"]]
    used = set(re.findall(r"\$\{?(\w+)", " ".join(words)))

    assert used - BUILT_IN == declared.keys() == {"job", "pool"}
    for variable in declared.values():
        assert variable["definition"] == variable["query"]["query"]
        assert (variable["multi"], variable["includeAll"], variable["allValue"]) == (True, True, ".+")
    for expression in (word for word in words if re.search(r"\$(job|pool)", word) and "{" in word):
        assert not re.search(r'[^~]"[^"]*\$(job|pool)', expression), f"several values need a regex: {expression}"


def provisioned(path: str) -> Any:
    return yaml.safe_load((OBSERVE / "grafana/provisioning" / path).read_text())
