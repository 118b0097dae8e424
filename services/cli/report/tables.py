"""Tables of jobs, of one job's rounds, and of the trainers."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from services.cli.jobs import removing
from services.cli.report import history, participation
from services.cli.report.progress import missing
from services.cli.servers import Servers
from services.cli.ui import output
from shared.redis.ledger import ENDED, JobRecord, RoundRecord
from shared.redis.roster import Member

LINES = 20  #: lines of a job's log on a terminal
MAX_SKEW = 5.0  #: seconds of clock skew beyond which the times in the record mislead


def jobs(servers: Servers, statuses: Sequence[str], most: int | None, as_json: bool) -> None:
    """Prints at most `most` jobs with the given statuses, or of any status, the newest first."""
    removing.check_statuses(statuses)
    found = [record for record in servers.ledger.jobs() if not statuses or record.status in statuses][:most]
    if as_json:
        return output.emit([asdict(record) for record in found])
    now = servers.ledger.now()
    made = output.table("job", "status", "round", "accuracy", "age", "detail", numbers=("round", "accuracy", "age"))
    for record in found:
        made.add_row(
            record.id,
            record.status,
            f"{max(0, record.round)}/{record.rounds}",
            output.figure(record.metrics.get("accuracy", record.metrics.get("local_accuracy"))),
            output.span(now - record.created) if record.created else "",  # unknown once Redis was emptied
            record.detail,
        )
    none = f"no job is {' or '.join(statuses)}" if statuses else "no jobs; `fedq start FILE` starts one"
    return output.Terminal().print(made if found else none)


def nodes(servers: Servers, as_json: bool) -> None:
    """Prints every trainer that is alive, with a warning if its clock is off."""
    found = servers.roster.alive()
    if as_json:
        return output.emit([asdict(member) for member in found])
    numbers = ("slots", "busy", "lease", "clock")
    made = output.table("trainer", "trains", "host", "device", *numbers, numbers=numbers)
    for member in found:
        made.add_row(
            member.trainer,
            f"pool {member.pool}" if member.pool else f"client {member.client}",
            member.host,
            member.device,
            str(member.slots),
            str(member.busy),
            f"{member.alive_for:.1f} s",
            Text(f"{member.skew:+.1f} s", "red" if abs(member.skew) > MAX_SKEW else ""),
        )
    terminal = output.Terminal()
    terminal.print(made if found else "no trainer is alive; start one with `python -m services.trainer`")
    for member in found:
        if abs(member.skew) > MAX_SKEW:
            output.note(f"warning: {skewed(member)}")
    return None


def skewed(member: Member) -> str:
    """Describes the skew of a trainer's clock in a sentence with its remedy."""
    way = "ahead of" if member.skew > 0 else "behind"
    return f"the clock of {member.host} ({member.trainer}) is {abs(member.skew):.1f} s {way} Redis's; synchronise it"


def show(servers: Servers, job: str, as_json: bool) -> None:
    """Prints a job's record and settings, and the participants of each round."""
    record = servers.ledger.required(job)
    spec = history.spec(servers.blobs, job)
    committed = history.rounds(servers.blobs, job)
    rounds = [_committed(past) for past in committed]
    parts = participation.of_job(committed)
    open_round = servers.ledger.round(job, record.round + 1)
    if open_round is not None and open_round.number == len(rounds):
        rounds.append(_open(open_round))
    log = servers.ledger.log(job)
    end = history.end(servers.blobs, job)
    if as_json:
        return output.emit(
            {
                **asdict(record),
                "spec": spec,
                "by_round": rounds,
                "participation": participation.document(parts),
                "missing": end.missing.model_dump(mode="json") if end else None,
                "log": log,
            }
        )
    terminal = output.Terminal()
    terminal.print(Text(job, "bold"), record.status)
    facts = {**_facts(record), "missing": missing(end.missing) if end else None}
    for name, value in {**facts, **(spec or {})}.items():
        if told := in_short(value):
            terminal.print(f"  {name:<12} {told}", soft_wrap=not terminal.is_terminal)
    terminal.print()
    made = output.table(
        *("round", "state", "asked", "updates", "clients", "rejected"),
        numbers=("round", "asked", "updates"),
        long=("clients",),
    )
    for row in rounds:
        rejected = [f"{client}: {reason}" for client, reason in row["rejected"].items()]
        made.add_row(
            str(row["round"]),
            row["state"],
            str(len(row["cohort"])),
            str(len(row["accepted"])),
            output.shortened(row["accepted"], 4),
            Text(output.shortened(rejected, 2), "red"),
        )
    terminal.print(made if rounds else "no round has begun")
    if parts and spec:
        terminal.print()
        participation.show(parts, len(spec["silos"] or ()) or spec["data"]["clients"])
    if log:
        terminal.print()
        terminal.print(_log(log, servers.ledger.now()))
        if len(log) > LINES:
            terminal.print(f"the last {LINES} of {len(log)} lines of its log; --json has all of them")
    return None


def _log(log: list[dict[str, Any]], now: float) -> Table:
    made = output.table("ago", "fault", "round", "detail", numbers=("ago", "round"))
    for line in log[-LINES:]:
        number = str(line["round"]) if line["round"] >= 0 else ""
        made.add_row(output.span(now - line["at"]), line["fault"], number, line["detail"])
    return made


def in_short(value: Any) -> str:
    """A section of the job file on one line: its name, then its settings; empty if nothing is set."""
    if value is None:
        return ""
    if isinstance(value, Mapping):
        parts = [str(value["name"])] if "name" in value else []
        for key, inner in value.items():
            if key != "name" and (told := in_short(inner)):
                parts.append(f"{key} ({told})" if isinstance(inner, Mapping | list | tuple) else f"{key} {told}")
        return ", ".join(parts)
    if isinstance(value, list | tuple):
        return output.shortened([str(inner) for inner in value])
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _facts(record: JobRecord) -> dict[str, str | None]:
    return {
        "round": f"{max(0, record.round)} of {record.rounds}",
        "detail": record.detail or None,
        "wanted": f"{record.wanted.status}: {record.wanted.reason}" if _is_unmet(record) else None,
        "owner": record.owner or None,
        "took": output.span(record.ended - record.started) if record.started and record.ended else None,
        "metrics": in_short(record.metrics) or None,
    }


def _is_unmet(record: JobRecord) -> bool:
    return record.status not in (*ENDED, "paused") and record.wanted.status != "running"


def _committed(past: history.PastRound) -> dict[str, Any]:
    accepted: list[str] = []
    rejected: dict[str, str] = {}
    cohort: list[str] = []
    for piece in past.committed.lists():
        accepted += piece.clients
        rejected |= piece.rejected
        cohort += piece.cohort or ()
    return {
        "round": past.number,
        "state": "committed",
        "attempt": past.manifest.attempt,
        "cohort": cohort or sorted({*accepted, *rejected}),
        "accepted": accepted,
        "rejected": rejected,
        "metrics": past.figures,
        "seconds": past.manifest.seconds,
    }


def _open(record: RoundRecord) -> dict[str, Any]:
    return {
        "round": record.number,
        "state": record.state,
        "attempt": record.attempt,
        "cohort": list(record.cohort),
        "accepted": list(record.accepted),
        "rejected": record.rejected,
        "metrics": {},
        "seconds": None,
    }
