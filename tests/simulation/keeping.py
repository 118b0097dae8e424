"""What must hold of all that a job keeps beside its models: server states, clients' states, memories, evaluations."""

import json
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from services.aggregator import client_history
from services.aggregator.selection import policies
from shared import names
from shared.events import EvaluateModel, RoundStart
from shared.job.job_spec import JobSpec
from shared.record import parts
from tests.simulation import chain
from tests.simulation.chain import Chain, Manifest
from tests.simulation.invariants import JOB, hold, one_model_per_round
from tests.simulation.training import TESTED, Made, has_tests, held_out

if TYPE_CHECKING:
    from tests.simulation.world import World

BESIDE = ("model", "server", "delta", "memory")


def what_is_named_is_there(world: "World", manifest: Manifest) -> None:
    for name in BESIDE:
        ref = manifest[name]
        there = ref is None or ref["key"] in world.blobs.held
        hold(there, f"P3: round {manifest['round']} names {ref}, its {name}, and it is not in the store")


def states_follow_what_counted(made: Mapping[str, Made], manifests: Chain, manifest: Manifest) -> None:
    """An update was trained with the state of the last one that counted, and brings its own."""
    number = manifest["round"]
    before = chain.states(manifests, number - 1) if number else {}
    for update in manifest["updates"] if number else ():
        client, found = update["client"], made[update["blob"]["digest"]]
        own = before.get(client, {}).get("digest", "")
        hold(found.before == own, f"P3: {client}'s update in round {number} was trained with another state than it has")
        named = update.get("state", {}).get("digest", "")
        hold(named == found.state, f"P3: round {number} has another state of {client} than its update brought")


def memory_follows_the_rounds(world: "World", manifests: Chain, manifest: Manifest) -> None:
    """What is kept of the clients is what the manifests say of them."""
    number, needed = manifest["round"], policies.is_needed(world.spec)
    if not (world.spec.is_stateful or needed):
        hold(manifest["memory"] is None, f"P3: round {number} keeps a memory of clients that have none")
        return
    document = remembered(world, manifest)
    states = {client: [ref["size"], ref["digest"]] for client, ref in chain.states(manifests, number).items()}
    hold(document["states"] == states, f"P3: the memory of round {number} has other states than counted")
    if needed:
        # One that was only ever evaluated has a row too.
        rows = {client: row[:6] for client, row in document["clients"].items() if any(row[:2])}
        hold(rows == chain.known(manifests, number), f"P3: the memory of round {number} is not of its rounds: {rows}")


def remembered(world: "World", manifest: Manifest) -> dict[str, Any]:
    """What a round keeps of the clients, flat."""
    found = json.loads(world.blobs.held[manifest["memory"]["key"]][0])
    if "parts" not in found:
        return client_history.flat(found)
    return parts.joined(world.blobs, names.histories(JOB, manifest["round"]), found)  # type: ignore[arg-type]


def evaluations_are_remembered(world: "World", manifest: Manifest) -> None:
    """Where clients evaluated the model before, selection goes by what they found, whoever had asked them."""
    if manifest["memory"] is None or not policies.is_needed(world.spec):
        return
    record = parts.whole(world.blobs, names.evaluation_blob(JOB, manifest["round"] - 1))  # type: ignore[arg-type]
    rows = remembered(world, manifest)["clients"]
    for client, figures in record.get("clients", {}).items():
        known = rows.get(client, [None] * 7)[6]
        hold(known == figures["accuracy"], f"P3: round {manifest['round']} has forgotten how {client} evaluated")


def asks_with_what_is_kept(world: "World", manifests: Chain, event: RoundStart, *, owned: bool) -> None:
    """A round begins with its base, each client's last state that counted, and the server's; all are there."""
    number, spec = event.round, world.spec
    if number == 0:
        return
    base = manifests[number - 1]["model"]["digest"]
    hold(event.base is not None and event.base.digest == base, f"P4: round {number} is asked on another base")
    last = max(manifests)
    # Where rounds do not wait for each other, one is asked for again while a later one is open.
    among = [last] if owned else range(number - 1, last + 1) if spec.max_staleness else [number - 1]
    if owned and number > last + 1:
        among = []
    named = {client: ref.model_dump() for client, ref in zip(event.cohort, event.states, strict=False) if ref}
    all_states = [chain.states(manifests, committed) for committed in among]
    expected = [{client: found[client] for client in event.cohort if client in found} for found in all_states]
    hold(named in expected, f"P3: round {number} is asked with other states than counted: {named}")
    if spec.strategy.name == "scaffold":
        servers = [(manifests[committed]["server"] or {}).get("digest") for committed in among]
        hold((event.server.digest if event.server else None) in servers, f"P3: round {number} has another server state")
    if owned:
        _is_there(world, [names.state_blob(JOB, client, ref["digest"]) for client, ref in named.items()], number)
    follows_from_the_one_before(manifests, event)


def follows_from_the_one_before(manifests: Chain, event: RoundStart) -> None:
    """Whoever has the model before may make the base of it, where a compressed difference is named."""
    before = manifests[event.round - 1]
    previous, delta = (before["base"] or {}).get("digest"), (before["delta"] or {}).get("digest")
    if event.delta is not None:
        same = (event.previous, event.delta.digest) == (previous, delta)
        hold(same, f"P3: the difference that round {event.round} names does not lead to its base")
    elif delta is not None:
        hold(event.round <= max(manifests), f"P3: round {event.round} does not name the difference to its base")


def asks_about_the_model(manifests: Chain, event: EvaluateModel) -> None:
    model = manifests[event.round]["model"]["digest"]
    hold(event.model.digest == model, f"P3: another model of round {event.round} is evaluated than is recorded")
    states = chain.states(manifests, event.round)
    for client, ref in zip(event.clients, event.states, strict=False):
        named = ref.digest if ref else None
        hold(named == states.get(client, {}).get("digest"), f"P3: {client} evaluates with another state than it has")


def evaluation_is_whole(
    spec: JobSpec, record: Mapping[str, Any], asked: Collection[str], testers: Collection[str]
) -> None:
    """All who were asked, each once, have their part in an evaluation; of a test set, one who has it."""
    number, clients = record["round"], record.get("clients", {})
    if spec.evaluate.where != "server":
        hold(clients.keys() == set(asked), f"P2: {sorted(asked)} evaluate round {number}, and it has {sorted(clients)}")
    tested = spec.evaluate.where == "server" or any(has_tests(spec, group) for group in testers)
    server = TESTED if tested and spec.evaluate.where != "clients" else 0
    examples = server + sum(held_out(client) for client in clients)
    hold(record["examples"] == examples, f"P2: round {number} is evaluated on {record['examples']} of {examples}")


def nothing_needed_is_gone(world: "World", manifests: Chain) -> None:
    """After something was removed: what the next round begins with is there."""
    if not manifests:
        return
    last = max(manifests)
    what_is_named_is_there(world, manifests[last])
    one_model_per_round(manifests[last], parts.whole(world.blobs, names.manifest_blob(JOB, last)))  # type: ignore[arg-type]
    if manifests[last]["memory"] is not None:
        remembered(world, manifests[last])
    if world.spec.pool is not None:
        found = chain.states(manifests, last)
        _is_there(world, [names.state_blob(JOB, client, ref["digest"]) for client, ref in found.items()], last)


def _is_there(world: "World", keys: Collection[str], number: int) -> None:
    gone = [key for key in keys if key not in world.blobs.held] if world.spec.pool is not None else []
    hold(not gone, f"P3: round {number} needs {gone}, and it is not in the store")
