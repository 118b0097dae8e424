"""Command line `fedq`: every command with its arguments and its output."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.ops.orchestrators import On
from services.cli.ui.failing import Commands

# Each command imports its own dependencies, so that the other commands start without delay.
if TYPE_CHECKING:
    from services.cli.servers import Servers
    from shared.events import TrainingEnd

app = typer.Typer(
    cls=Commands,
    help="Federated learning over a message queue. Servers come from FEDQ_* (see `fedq doctor`).",
    epilog="Exit codes: 0 done, 1 the job failed, 2 a mistake in what was given, 3 a server is away or refuses.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

File = Annotated[Path, typer.Argument(metavar="FILE", help="The job file, YAML.")]
Job = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, or last; `fedq jobs` lists them.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Overrides a key: rounds.count=3.")]
Reason = Annotated[str, typer.Option(help="Why; the record keeps it.")]
Json = Annotated[bool, typer.Option("--json", help="Prints JSON.")]
Begin = Annotated[
    Path | None, typer.Argument(metavar="FILE", help="The job file, YAML; with --resume, instead of the job's own.")
]
Id = Annotated[str | None, typer.Option("--id", metavar="JOB", help="The job's id, instead of a new one.")]
Resumed = Annotated[
    str | None, typer.Option("--resume", metavar="JOB", help="Continues a job (or last) that has ended or is paused.")
]
Follow = Annotated[bool, typer.Option("--watch", help="Follows the job to its end.")]
Orchestrator = Annotated[On | None, typer.Option("--on", help="Where fedq runs, if it runs in several ways here.")]
Status = Annotated[list[str] | None, typer.Option(metavar="STATUS", help="Those alone: queued, running, failed, ….")]
Yes = Annotated[bool, typer.Option("--yes", help="Does not ask before it removes.")]
Namespace = Annotated[
    str | None,
    typer.Option("--namespace", "-n", metavar="NAME", help="In Kubernetes; if left out, the context's."),
]


@app.command()
def validate(file: File, assignments: Set = None, as_json: Json = False) -> None:
    """Checks a job file without asking any server; --json prints it with all defaults."""
    from services.cli.jobs import jobfile
    from services.cli.ui import output

    spec = jobfile.load(file, assignments or ())
    jobfile.start_file(spec, file.parent)
    if as_json:
        output.emit(spec.model_dump(mode="json"))
    else:
        print(f"{file}: fine, {spec.population} clients, {spec.rounds.count} rounds of {spec.cohort_size}")


@app.command()
def schema() -> None:
    """Prints the JSON Schema of job files, for editors."""
    from services.cli.ui import output
    from shared.job.job_spec import JobSpec

    output.emit(JobSpec.model_json_schema())


@app.command()
def catalog(
    family: Annotated[
        str | None, typer.Argument(metavar="FAMILY", help="One section alone: model, train.optimizer, partition.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Lists every name that a job file may give, with its parameters, their bounds and their defaults."""
    from services.cli.report import catalog as found

    found.catalog(family, as_json)


@app.command()
def data(
    file: File,
    assignments: Set = None,
    plot: Annotated[Path | None, typer.Option(metavar="PATH", help="Draws each client's share, a PNG file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrites this file.")] = False,
    as_json: Json = False,
) -> None:
    """Shows each client's share of the data, or describes a silo's own file; needs an installed trainer."""
    from services.cli.jobs import data_shares

    data_shares.data(file, assignments or (), plot=plot, force=force, as_json=as_json)


@app.command()
def start(
    file: Begin = None,
    assignments: Set = None,
    job_id: Id = None,
    resumed: Resumed = None,
    watch: Follow = False,
    as_json: Json = False,
) -> None:
    """Starts a job, or continues one from its last committed round, and prints its id."""
    _start(file, assignments, job_id, resumed, watch, as_json)


@app.command()
def submit(
    file: Begin = None,
    assignments: Set = None,
    job_id: Id = None,
    resumed: Resumed = None,
    watch: Follow = False,
    namespace: Namespace = None,
    as_json: Json = False,
) -> None:
    """Starts a job in a Kubernetes cluster: `start`, with the servers of kubectl's context."""
    from services.cli.jobs import jobfile
    from services.cli.ops.cluster import connected
    from services.cli.ops.orchestrators import kubernetes

    if file is not None:
        jobfile.load(file, assignments or ())  # a mistake in the file is reported before any port is opened
    with connected(kubernetes.at(namespace)):
        _start(file, assignments, job_id, resumed, watch, as_json)


@app.command()
def watch(job: Job, as_json: Json = False) -> None:
    """Follows a job to its end."""
    from services.cli.report import screen
    from services.cli.report.watching import Watch

    with _servers() as servers:
        with screen.view(as_json) as view:
            end = Watch(servers, servers.named(job), view).follow()
        _conclude(end, as_json)


@app.command()
def track(
    job: Job,
    tensorboard: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Writes event files into DIR/JOB, for TensorBoard.")
    ] = None,
    mlflow: Annotated[
        str | None, typer.Option(metavar="URI", envvar="MLFLOW_TRACKING_URI", help="Logs a run there, with MLflow.")
    ] = None,
    clients: Annotated[int, typer.Option(min=0, help="How many clients get series of their own.")] = 50,
    as_json: Json = False,
) -> None:
    """Follows a job to its end and writes each round's figures for TensorBoard and MLflow."""
    from services.cli.report import screen, tracking

    places = tracking.Places(tensorboard, mlflow)
    with _servers() as servers:
        with screen.view(as_json) as view:
            end = tracking.track(servers, servers.named(job), view, places, clients)
        _conclude(end, as_json)


@app.command()
def stop(job: Job, reason: Reason = "stopped by an operator") -> None:
    """Stops a job without finishing its open round."""
    from services.cli.jobs import control

    with _servers() as servers:
        print(control.stop(servers, servers.named(job), reason))


@app.command()
def pause(job: Job, reason: Reason = "paused by an operator") -> None:
    """Finishes the open round of a job and opens no further one."""
    from services.cli.jobs import control

    with _servers() as servers:
        print(control.pause(servers, servers.named(job), reason))


@app.command()
def resume(job: Job) -> None:
    """Continues a job that is paused, or is about to be."""
    from services.cli.jobs import control
    from services.cli.ui import output

    with _servers() as servers:
        print(control.resume(servers, servers.named(job)))
        if not servers.aggregators():
            output.note(servers.why_queued())


@app.command()
def jobs(
    status: Status = None,
    last: Annotated[int | None, typer.Option(min=1, metavar="N", help="The newest N.")] = None,
    as_json: Json = False,
) -> None:
    """Lists the jobs, the newest first."""
    from services.cli.report import tables

    with _servers() as servers:
        tables.jobs(servers, status or (), last, as_json)


@app.command()
def rm(
    jobs: Annotated[list[str] | None, typer.Argument(metavar="[JOB]...", help="Their ids, or last.")] = None,
    status: Status = None,
    yes: Yes = False,
) -> None:
    """Removes jobs that have ended: their record, models and kept updates."""
    from services.cli.jobs import removing

    with _servers() as servers:
        removing.remove(servers, [servers.named(job) for job in jobs or ()], status or (), yes=yes)


@app.command()
def show(job: Job, as_json: Json = False) -> None:
    """Shows a job's settings and the participants of each round."""
    from services.cli.report import tables

    with _servers() as servers:
        tables.show(servers, servers.named(job), as_json)


@app.command()
def nodes(
    forget: Annotated[
        str | None, typer.Option(metavar="NAME", help="Removes the queues of a silo or pool that does not come back.")
    ] = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Lists the trainers that are alive."""
    from services.cli.jobs import removing
    from services.cli.report import tables

    with _servers() as servers:
        if forget is not None:
            removing.forget(servers, forget, yes=yes)
        else:
            tables.nodes(servers, as_json)


@app.command()
def results(
    job: Job,
    export: Annotated[Path | None, typer.Option(metavar="PATH", help="Saves the model, a safetensors file.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="PATH", help="Draws the learning curve, a PNG file.")] = None,
    table: Annotated[
        Path | None, typer.Option("--csv", metavar="PATH", help="Saves a row for each round and client, a CSV file.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrites these files.")] = False,
    as_json: Json = False,
) -> None:
    """Shows the model's metrics, round by round."""
    from services.cli.report import results as found

    with _servers() as servers:
        found.results(servers, servers.named(job), export=export, plot=plot, table=table, force=force, as_json=as_json)


@app.command()
def replay(
    job: Job,
    number: Annotated[int, typer.Argument(metavar="ROUND", min=0, help="A committed round.")],
    as_json: Json = False,
) -> None:
    """Folds a round's updates again and compares the model, bit by bit, with the one that was committed."""
    from services.cli.ui import output
    from services.cli.verify.replaying import replay

    with _servers() as servers:
        verdict = replay(servers, servers.named(job), number)
    if as_json:
        output.emit(verdict.document())
    else:
        output.say(str(verdict))
    if not verdict.agrees:
        raise typer.Exit(1)


@app.command()
def verify(job: Job, as_json: Json = False) -> None:
    """Checks every promise on a job's record: bucket, Redis and dead letters; changes nothing."""
    from services.cli.verify import verifying

    with _servers() as servers:
        raise typer.Exit(verifying.verify(servers, servers.named(job), as_json))


@app.command()
def connect(namespace: Namespace = None) -> None:
    """Connects the other commands to a Kubernetes cluster's servers, through local ports, until Ctrl-C."""
    from services.cli.ops import cluster

    cluster.connect(namespace)


@app.command()
def scale(
    trainers: Annotated[int, typer.Argument(metavar="N", min=0, help="How many trainers the pool shall have.")],
    pool: Annotated[str, typer.Option(help="Whose trainers.")] = "cpu",
    on: Orchestrator = None,
    namespace: Namespace = None,
    wait: Annotated[
        float, typer.Option(min=0, max=86400, metavar="SECONDS", help="How long to wait for them; 0: not.")
    ] = 60,
    as_json: Json = False,
) -> None:
    """Scales a pool's trainers, in Docker Compose or Kubernetes, and waits until they are in the roster."""
    from services.cli.ops import scaling

    scaling.scale(trainers, pool, on, namespace, wait=wait, as_json=as_json)


@app.command()
def logs(
    job: Job,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Goes on until Ctrl-C.")] = False,
    on: Orchestrator = None,
    namespace: Namespace = None,
    as_json: Json = False,
) -> None:
    """Shows the log lines of all services about a job, sorted by time."""
    from services.cli.ops import service_logs
    from services.cli.servers import LAST

    if job == LAST:  # an explicit id needs no server
        with _servers() as servers:
            job = servers.named(job)
    service_logs.logs(job, on, namespace, follow=follow, as_json=as_json)


@app.command()
def compose(
    trainers: Annotated[int, typer.Option(min=1, help="How many clients, each a trainer of its own.")] = 4,
    slow: Annotated[int, typer.Option(min=0, help="How many have half a processor.")] = 0,
    medium: Annotated[int, typer.Option(min=0, help="How many have 0.75 of one; the others have 1.25.")] = 0,
) -> None:
    """Prints a compose file: the stack with named clients, some slower than others, instead of its pool."""
    from services.cli.ops import composing

    print(composing.generate(trainers, slow, medium), end="")


@app.command()
def setup() -> None:
    """Creates what fedq needs in RabbitMQ and the object store, and resets passwords, rights and policies."""
    from services.cli.ops import setup as provisioning
    from shared.process import settings

    provisioning.provision(settings.load(settings.Setup))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Checks every server and service, and suggests a remedy for each problem."""
    from services.cli.ops.doctor import examine

    with _servers() as servers:
        raise typer.Exit(examine(servers, as_json))


def _start(
    file: Path | None,
    assignments: list[str] | None,
    job_id: str | None,
    resumed: str | None,
    watch: bool,
    as_json: bool,
) -> None:
    from services.cli.jobs import jobfile, starting
    from services.cli.report import screen
    from services.cli.report.watching import Watch
    from services.cli.ui import output
    from shared.errors import BadInput
    from shared.job.job_spec import new_job_id

    if resumed is not None and job_id is not None:
        raise BadInput("--id names a new job and --resume an earlier one: give one of them")
    if resumed is None and file is None:
        raise BadInput("there is no job to start: give its FILE, or --resume JOB to continue an earlier one")
    spec = jobfile.load(file, assignments or ()) if file else None
    with _servers() as servers:
        if resumed is not None:
            job = servers.named(resumed)
            going_on = starting.plan(servers, job, spec, assignments or ())
            begin = partial(starting.resume, servers, going_on)
        elif spec is not None:
            job = starting.check_id(job_id) if job_id else new_job_id(spec.name)
            begin = partial(starting.start, servers, job, spec, folder=file.parent if file else Path())
        if not watch:
            begin()
            _announce(job, as_json)
            if not servers.aggregators():
                output.note(servers.why_queued())
            return
        with screen.view(as_json) as view:
            watching = Watch(servers, job, view)
            begin(watching)
            _announce(job, as_json)
            try:
                end = watching.follow()
            except KeyboardInterrupt:  # without a note, the user might think that the job has ended
                output.note(f"job {job} goes on: `fedq watch {job}` follows it, `fedq stop {job}` ends it")
                raise
        _conclude(end, as_json)


def _servers() -> "Servers":
    from services.cli.servers import Servers

    return Servers()


def _announce(job: str, as_json: bool) -> None:
    from services.cli.ui import output

    if as_json:
        output.emit({"job": job}, line=True)
    else:
        print(job, flush=True)


def _conclude(end: "TrainingEnd", as_json: bool) -> None:
    """The last line of a job that finished; raises an error for one that did not."""
    from services.cli.report.progress import last_line, missing
    from services.cli.ui import output
    from shared.errors import JobFailed

    if end.outcome != "finished":
        reason = "; ".join(part for part in (end.reason or "no reason given", missing(end.missing)) if part)
        raise JobFailed(f"job {end.job} {end.outcome}: {reason}")
    if not as_json:
        output.say(last_line(end))


def main() -> None:
    app(prog_name="fedq")


if __name__ == "__main__":
    main()
