"""What must hold of a job's rounds whatever fails: each promise of `docs/guide/promises.md` as small functions."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from services.aggregator.job_state import ASKS
from shared import names
from shared.aggregation import weights
from shared.events import BlobRef, RoundEnd, RoundStart
from shared.job.job_spec import CLAIMS
from shared.record import parts
from shared.redis.ledger import ENDED, JobRecord, RoundRecord
from tests.simulation import arithmetic, chain
from tests.simulation.arithmetic import Meant
from tests.simulation.chain import Chain, Manifest
from tests.simulation.training import INPUTS, Made

if TYPE_CHECKING:
    from tests.simulation.world import Replica, World

JOB = "sim-abc234"


class Violation(BaseException):
    """A promise is broken; no handler of the code under test may catch this."""


def hold(condition: object, promise: str) -> None:
    if not condition:
        raise Violation(promise)


# --- P1, P2: what counts ------------------------------------------------------------------------


def every_accepted_update_counts(accepted: set[str], manifest: Manifest) -> None:
    listed = {update["client"] for update in manifest["updates"]} | manifest["rejected"].keys()
    missing = sorted((accepted - listed) & set(manifest["cohort"]))  # another cohort, after Redis lost the first
    hold(not missing, f"P1: round {manifest['round']} accepted {missing} and its manifest does not list them")


def those_accepted_were_asked(record: RoundRecord | None, updates: Mapping[str, Any]) -> None:
    cohort = record.cohort if record is not None else ()
    strangers = sorted(updates.keys() - set(cohort))
    hold(not strangers, f"P2: {strangers} were accepted, and nobody asked them")


def each_client_once(manifests: Chain, manifest: Manifest) -> None:
    number, clients = manifest["round"], [update["client"] for update in manifest["updates"]]
    hold(len(clients) == len(set(clients)), f"P2: a client counts twice in round {number}: {clients}")
    strangers = set(clients) - set(manifest["cohort"])
    hold(not strangers, f"P2: {strangers} were not asked in round {number}")
    for update in manifest["updates"]:
        client, digest = update["client"], update["blob"]["digest"]
        asked = chain.asked(manifest, client)
        before = [one for one in range(1, number) if digest in digests(manifests[one])]
        hold(not before, f"P2: an update of {client} counts in round {number}, and in {before}")
        for earlier in range(max(1, asked), number):
            twice = any(update["client"] == client for update in manifests[earlier]["updates"])
            hold(not twice, f"P2: what {client} was asked in round {asked} counts in {earlier} and in {number}")


def digests(manifest: Manifest) -> set[str]:
    return {update["blob"]["digest"] for update in manifest["updates"]}


def batches_count_as_one(made: Mapping[str, Made], manifest: Manifest) -> None:
    """All members of a batch, with their own examples, or none."""
    entries: dict[str, dict[str, int]] = {}
    for update in manifest["updates"]:
        entries.setdefault(update["blob"]["digest"], {})[update["client"]] = update["examples"]
    for digest, counted in entries.items() if manifest["round"] else ():
        parts = {part.client: part.examples for part in made[digest].parts} if digest in made else counted
        hold(counted == parts, f"P2: of the batch {parts}, {counted} counts in round {manifest['round']}")


def those_at_work_are_not_asked_again(
    manifests: Chain, number: int, cohort: tuple[str, ...], carried: Mapping[str, int], max_staleness: int
) -> None:
    """Of a round's first attempt."""
    before = manifests.get(number - 1)
    if before is not None:
        in_flight = chain.at_work(before, max_staleness).items()
        again = [client for client, since in in_flight if client in cohort and carried.get(client) != since]
        hold(not again, f"P2: {again} are at work for an earlier round, and asked again in round {number}")
    late = {client: since for client, since in carried.items() if number - since > max_staleness}
    hold(not late, f"P7: round {number} waits for {late}")


# --- P3: what a round makes of it ---------------------------------------------------------------


def one_model_per_round(before: Manifest | None, manifest: Manifest) -> None:
    if before is not None:
        hold(inputs(before) == inputs(manifest), f"P3: round {manifest['round']} has a second, other manifest")


def inputs(manifest: Manifest) -> tuple[Any, ...]:
    updates = sorted((update["client"], update["blob"]["digest"], update["examples"]) for update in manifest["updates"])
    return manifest["model"]["digest"], updates, (manifest["base"] or {}).get("digest")


def is_made_of_its_updates(world: "World", manifests: Chain, manifest: Manifest) -> None:
    """Against arithmetic of what the clients meant, or against the strategy once more."""
    number, made = manifest["round"], world.trainers.training.made
    if number == 0:
        (only,) = manifest["updates"]
        hold(only["blob"]["digest"] == manifest["model"]["digest"], "P3: the initial model is not the one that came")
        hold(manifest.get("inputs") == INPUTS.model_dump(mode="json"), "P3: what the data look like is not recorded")
        return
    total = sum(update["examples"] for update in manifest["updates"])
    hold(manifest["weight"] == total, f"P3: the weight of round {number} is not its updates'")
    if arithmetic.is_a_sum(manifest):
        updates = [
            Meant(update["examples"], update.get("staleness", 0), part.values, part.buffers)
            for update in manifest["updates"]
            for part in made[update["blob"]["digest"]].parts
            if part.client == update["client"]
        ]
        before = vectors(world, manifests[number - 1]["server"])
        expected = arithmetic.stepped(manifest, parameters(world, manifest["base"]), before, updates)
        is_close(parameters(world, manifest["model"]), expected.model, f"the model of round {number}")
        server = vectors(world, manifest["server"])
        kept = server.keys() == expected.server.keys()
        hold(kept, f"P3: round {number} keeps {sorted(server)} instead of {sorted(expected.server)}")
        for name, vector in expected.server.items():
            is_close(server[name], vector, f"the {name} of round {number}")
    elif all(update["blob"]["key"] in world.blobs.held for update in manifest["updates"]):  # the store may lose one
        found = tuple((manifest[name] or {}).get("digest") for name in ("model", "server", "delta"))
        again = arithmetic.again(world.blobs, manifest, manifests[number - 1])
        hold(found == again, f"P3: round {number} is not what its strategy makes of its updates, to the bit")


def is_close(found: Any, expected: Any, what: str) -> None:
    hold(np.allclose(found, expected, rtol=1e-6, atol=1e-6), f"P3: {what} is not what its updates make it")


def vectors(world: "World", ref: Mapping[str, Any] | None) -> dict[str, Any]:
    """The float32 vectors of a file by name; none of no file."""
    if ref is None:
        return {}
    file = world.blobs.get(BlobRef.model_validate(ref))
    return {name: vector.astype(np.float64) for name, vector in weights.read_layout(file).views(file).items()}


def parameters(world: "World", ref: Mapping[str, Any]) -> Any:
    file = world.blobs.get(BlobRef.model_validate(ref))
    return weights.read_layout(file).flat(file).astype(np.float64)


def told_of_what_is_recorded(manifest: Manifest | None, event: RoundEnd) -> None:
    hold(manifest is not None, f"P3: the end of round {event.round} is told and not recorded")
    assert manifest is not None
    digest = event.model.digest if event.model else None
    hold(digest == manifest["model"]["digest"], f"P3: another model of round {event.round} is told than is recorded")


# --- P4 to P6: rounds go on, and end ------------------------------------------------------------


def rounds_move_forward(before: int, record: JobRecord) -> None:
    hold(record.round >= before, f"P4: Redis went from round {before} to round {record.round}")


def base_is_the_model_before(manifests: dict[int, Manifest], manifest: Manifest) -> None:
    number, base = manifest["round"], manifest["base"]
    if number == 0:
        hold(base is None, "P4: round 0 has a base")
        return
    hold(number - 1 in manifests, f"P4: round {number} is committed before round {number - 1}")
    hold(base["digest"] == manifests[number - 1]["model"]["digest"], f"P4: round {number} has another base")


def asks_are_bounded(world: "World", event: RoundStart, count: int) -> None:
    groups = 1 if world.spec.pool else 1 + ASKS  # to each silo its own
    most = (1 + ASKS) * max(groups, len(world.spec.clients)) * (1 + world.spec.max_staleness)
    hold(count <= most, f"P6: round {event.round} was rung {count} times")
    silos = len(world.spec.silos or ()) if event.round == 0 else 1  # each of which may begin the job
    granted = max(silos, world.spec.rounds.attempts)
    hold(event.attempt <= granted, f"P6: attempt {event.attempt} at round {event.round}")


def claims_are_bounded(record: JobRecord) -> None:
    hold(record.claims <= CLAIMS + 2 or record.status in ENDED, f"P6: {record.claims} owners and no commit")


def the_end_is_recorded(world: "World", record: JobRecord, manifests: dict[int, Manifest]) -> None:
    last = max(manifests, default=-1)
    hold(sorted(manifests) == list(range(last + 1)), f"P4: the manifests are {sorted(manifests)}")
    if record.status not in ENDED:
        return
    hold(world.blobs.exists(names.result_blob(record.id)), f"P5: the job is {record.status} and has no result")
    result = json.loads(world.blobs.held[names.result_blob(record.id)][0])
    hold(result["outcome"] == record.status, f"P5: Redis says {record.status}, the store {result['outcome']}")
    hold(result["rounds"] == max(0, last), f"P4: {last} rounds are committed, the result says {result['rounds']}")
    if manifests:
        hold(result["model"]["digest"] == manifests[last]["model"]["digest"], "P3: the result is not the last model")
    if record.status == "finished" and last < world.spec.rounds.count:
        hold(is_enough(world, last), f"P5: finished after {last} of {world.spec.rounds.count} rounds")


def is_enough(world: "World", last: int) -> bool:
    """Whether the evaluations that are recorded, up to round `last`, say that a job needs no further round."""
    stop, held = world.spec.evaluate.stop, world.blobs.held
    if stop is None:
        return False
    keys = {number: names.evaluation_blob(JOB, number) for number in range(last + 1)}
    figures = {number: json.loads(held[key][0])["metrics"] for number, key in keys.items() if key in held}
    named = {number: found[stop.metric] for number, found in figures.items() if stop.metric in found}
    return chain.verdict(stop.model_dump(), named)


# --- the totals ----------------------------------------------------------------------------------


def totals_are_the_manifests(world: "World", uncounted: int) -> None:
    """Each round that was committed since Redis began to count, from `uncounted` on, and nothing twice."""
    record, totals = world.job(), world.ledger.totals()
    if record is None:
        return
    keys = [names.manifest_blob(JOB, number) for number in range(uncounted, record.round + 1)]
    manifests = [parts.whole(world.blobs, key) for key in keys]  # type: ignore[arg-type]
    committed = totals.rounds["committed"].times if "committed" in totals.rounds else 0
    hold(committed == len(manifests), f"totals: {committed} rounds are counted, {len(manifests)} are committed")
    files = sum(len({update["blob"]["key"] for update in manifest["updates"]}) for manifest in manifests)
    folded = totals.parts["fold"].times if totals.parts else 0
    hold(folded == files, f"totals: {folded} files are counted as folded, {files} were")
    accepted = sum(len(manifest["updates"]) for manifest in manifests)
    hold(totals.updates.get("accepted", 0) == accepted, f"totals: {totals.updates}, and {accepted} are in models")


# --- P7: nothing that must not be ---------------------------------------------------------------


def holds_no_garbage(made: Mapping[str, Made], manifests: Chain, manifest: Manifest, max_staleness: int) -> None:
    """Each update is a good one, of the round in which its client was asked, trained on that round's base."""
    number = manifest["round"]
    for update in manifest["updates"]:
        client, found = update["client"], made.get(update["blob"]["digest"])
        asked = chain.asked(manifest, client)
        base = manifests[asked - 1]["model"]["digest"] if asked else ""
        about = (found.round, found.base, client in found.clients or not asked) if found else None
        hold(about == (asked, base, True), f"P7: round {number} holds {client}'s update that is {about}")
        staleness = update.get("staleness", 0)
        hold(staleness == number - asked, f"P7: round {number} takes {client}'s update for {staleness} rounds old")
        hold(staleness <= max_staleness, f"P7: round {number} holds {client}'s update of {staleness} rounds ago")


def only_the_owner_commits(record: JobRecord | None, replica: "Replica", key: str) -> None:
    """Whoever Redis says owns the job; where Redis has lost that, whoever did last."""
    owner = any(record is None or running.runner.fence == record.fence for running in replica.running.values())
    hold(owner, f"P7: {replica.name} does not own the job, and writes {key}")
