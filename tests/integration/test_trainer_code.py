"""Code of a job's own on a real trainer: it has a process for itself, and it is what lies on the disk."""

import textwrap
from typing import Any

import psutil
import pytest

from services.trainer.slot import job_process_main
from shared.aggregation import weights
from shared.amqp import topology
from shared.events import TrainingEnd
from shared.job import job_spec
from tests.by_hand import Federation, digits, until

SPOILS = """
    import os, random, signal, sys, warnings
    import numpy as np, torch
    from torch import nn
    from torch.nn import functional

    torch.set_default_dtype(torch.float64)
    os.environ["FEDQ_DATA_DIR"] = "/nowhere"

    def half(model, x, y, *, client, round, seed):
        model.to(torch.bfloat16)
        return {}

    def all_of_it(model, x, y, *, client, round, seed):
        torch.set_grad_enabled(False)
        torch.use_deterministic_algorithms(True)
        torch.set_num_threads(3)
        torch.manual_seed(1); np.random.seed(1); random.seed(1)
        functional.cross_entropy = lambda *_, **__: torch.zeros(())
        nn.Linear.forward = lambda self, x: x.new_zeros(len(x), self.out_features)
        np.seterr(all="raise")
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        warnings.simplefilter("error")
        sys.path.clear()
        os.chdir("/")
        return {}
"""

NET = """
    from torch import nn
    def make(shape, classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, {width}), nn.ReLU(), nn.Linear({width}, classes))
"""


def write(federation: Federation, name: str, text: str) -> None:
    (federation.directory / f"{name}.py").write_text(textwrap.dedent(text))


def another_job(federation: Federation) -> None:
    """From now on it is another job that is asked for."""
    federation.job = job_spec.new_job_id("digits")
    federation.bus.serve(topology.updates(federation.job), federation.updates.put)


def trained_digest(federation: Federation) -> str:
    """Of what a client of a new job, without any code of its own, learns of the digits."""
    another_job(federation)
    base = federation.given(digits())
    update = federation.trained(1, "client-3", base=base, spec=digits())[0]
    assert update.update is not None
    return update.update.digest


def apart_processes(federation: Federation) -> list[psutil.Process]:
    """Those that do the work of jobs with code of their own."""
    below = psutil.Process(federation.processes[0].pid).children(recursive=True)
    return [one for one in below if job_process_main.__name__ in one.cmdline()]


def test_what_a_jobs_code_does_to_its_process_is_no_other_jobs(federation: Federation) -> None:
    """Whatever it changes, of torch, numpy, Python or the system: a later job learns the same, to the bit."""
    federation.start("--pool", "cpu", "--name", "one", FEDQ_ALLOW="spoils.")
    write(federation, "spoils", SPOILS)
    before = trained_digest(federation)
    for step in ("half", "all_of_it"):
        another_job(federation)
        federation.ask(1, "client-1", base=federation.given(digits()), spec=digits(train={"name": f"spoils:{step}"}))
        error = federation.update().error
        assert (error is None) == (step == "all_of_it")

    assert len(apart_processes(federation)) == 1
    assert trained_digest(federation) == before


def test_what_a_step_leaves_of_the_model_is_refused_by_name_and_the_next_client_is_trained(
    federation: Federation,
) -> None:
    """A client whose step narrows the model is told so; the same process trains the next on a new one."""
    federation.start("--pool", "cpu", FEDQ_ALLOW="sometimes.")
    write(
        federation,
        "sometimes",
        """
        import torch
        def step(model, x, y, *, client, round, seed):
            if client == "client-1":
                model.to(torch.bfloat16)
            return {"narrow": next(model.parameters()).dtype == torch.bfloat16}
        """,
    )
    base = federation.initial(digits())
    spec = digits(train={"name": "sometimes:step"})
    federation.ask(1, "client-1", base=base, spec=spec)
    error = federation.update().error or ""
    assert error.startswith("training changed what the model's tensors are: ")
    assert "is bfloat16 [10] now, and was float32 [10]" in error

    process = apart_processes(federation)
    assert federation.trained(2, "client-2", base=base, spec=spec)[0].metrics["narrow"] == 0
    assert apart_processes(federation) == process


def layers(federation: Federation, spec: Any) -> list[list[int]]:
    """The shapes of the model that a job begins with."""
    layout = weights.read_layout(federation.blobs.get(federation.initial(spec)))
    return [list(tensor.shape) for tensor in layout.trained if tensor.name.endswith("weight")]


def test_code_that_was_edited_is_what_runs(federation: Federation) -> None:
    """For the next job, and for the next task of the same one; without a restart of the trainer."""
    federation.start("--pool", "cpu", FEDQ_ALLOW="net.")
    spec = digits(model={"name": "net:make"})
    for width in (5, 7, 11):
        write(federation, "net", NET.format(width=width))
        if width == 11:
            another_job(federation)
        assert sorted(layers(federation, spec)) == sorted([[width, 64], [10, width]])


def test_an_update_says_which_code_made_it(federation: Federation) -> None:
    """The same files, the same digest; a job of the catalog has none."""
    federation.start("--pool", "cpu", FEDQ_ALLOW="net.")
    spec = digits(model={"name": "net:make"})
    codes = []
    for number, width in enumerate((5, 5, 7), 1):
        write(federation, "net", NET.format(width=width))
        federation.ask(0, "client-1", base=None, spec=spec, attempt=number)
        codes.append(federation.update().code)
    assert codes[0] == codes[1] != codes[2]
    federation.ask(0, "client-1", base=None, spec=digits(), attempt=9)
    assert federation.update().code is None


def test_who_made_the_initial_model_runs_the_same_code_as_the_others(federation: Federation) -> None:
    """A local step is imported by the first client's training, and counts from then on."""
    federation.start("--pool", "cpu", FEDQ_ALLOW="own_job.")
    spec = digits(train={"name": "own_job:brief", "args": {"signs": str(federation.directory)}})
    federation.ask(0, "client-1", base=None, spec=spec)
    first = federation.update()
    assert (first.error, first.code) == (None, None)
    own = federation.trained(1, "client-1", base=first.update, spec=spec)[0].code
    (process,) = apart_processes(federation)
    process.kill()

    assert federation.trained(2, "client-1", base=first.update, spec=spec)[0].code == own is not None


def test_a_process_of_a_jobs_code_ends_when_its_job_is_seen_to_be_over(federation: Federation) -> None:
    """It holds the job's data and model, and nobody needs them any more."""
    federation.start("--pool", "cpu", FEDQ_ALLOW="own_job.")
    base = federation.initial(digits())
    spec = digits(train={"name": "own_job:brief", "args": {"signs": str(federation.directory)}})
    federation.trained(1, "client-1", base=base, spec=spec)
    (process,) = apart_processes(federation)
    first = federation.job
    another_job(federation)
    federation.trained(1, "client-1", base=federation.given(digits()), spec=digits())
    assert process.is_running()  # the other job may have a second round

    federation.job = first
    federation.end(1)
    federation.end(2)
    another_job(federation)
    base = federation.given(digits())
    number = iter(range(1, 100))

    def ended() -> bool:
        """What ends it is a task that is taken after the notice was."""
        federation.trained(next(number), "client-1", base=base, spec=digits())
        return not process.is_running()

    until(ended, "the end of the process")


def over(federation: Federation) -> None:
    """Says that the job is."""
    federation.bus.publish(TrainingEnd(job=federation.job, outcome="failed", rounds=0))


def test_it_ends_with_its_job_though_nothing_else_is_to_be_done(federation: Federation) -> None:
    """A slot learns so at once; what the user's code has started in that process ends too."""
    federation.start("--pool", "cpu", FEDQ_ALLOW="starts.")
    write(
        federation,
        "starts",
        """
        import subprocess
        def step(model, x, y, *, client, round, seed):
            return {"pid": subprocess.Popen(["sleep", "600"]).pid}
        """,
    )
    spec = digits(train={"name": "starts:step"})
    update = federation.trained(1, "client-1", base=federation.initial(digits()), spec=spec)[0]
    command = psutil.Process(int(update.metrics["pid"]))
    (process,) = apart_processes(federation)
    over(federation)

    until(lambda: not process.is_running() and not command.is_running(), "the end of both")


def test_a_step_that_hangs_holds_its_slot_no_longer_than_its_job(federation: Federation) -> None:
    """It asks nobody whether it is to stop; the next job is trained, and nothing is tried again."""
    federation.start("--pool", "cpu", FEDQ_ALLOW="hangs.")
    write(
        federation,
        "hangs",
        """
        import time
        from pathlib import Path
        def step(model, x, y, *, client, round, seed):
            Path("began").touch()
            time.sleep(600)
        """,
    )
    base = federation.initial(digits())
    federation.ask(1, "client-1", base=base, spec=digits(train={"name": "hangs:step"}))
    until((federation.directory / "began").exists, "the step has begun")
    over(federation)

    another_job(federation)
    federation.trained(1, "client-1", base=federation.given(digits()), spec=digits())
    assert not apart_processes(federation)
    assert "requeued" not in federation.log()


def test_it_ends_with_its_trainer(federation: Federation) -> None:
    """Though that is killed in the middle of a step."""
    trainer = federation.start("--pool", "cpu", FEDQ_ALLOW="own_job.")
    spec = digits(train={"name": "own_job:patient", "args": {"signs": str(federation.directory), "seconds": 60}})
    federation.ask(1, "client-2", base=federation.initial(digits()), spec=spec)
    until((federation.directory / "client-2-1-began").exists, "the step has begun")
    (process,) = apart_processes(federation)
    trainer.kill()
    until(lambda: not process.is_running(), "the end of the process")


def test_an_error_of_ours_that_the_users_code_raises_is_its_clients_failure(federation: Federation) -> None:
    """Taken for ours, it would leave the client without an answer, or have it asked for again and again."""
    federation.start("--pool", "cpu", FEDQ_ALLOW="raises.")
    write(
        federation,
        "raises",
        """
        from torch import nn
        from services.trainer.slot.simulated_client import Absent
        from services.trainer.train_task import HandedBack
        from shared.errors import Stale, Unavailable
        ERRORS = {"client-1": Stale, "client-2": Absent, "client-3": HandedBack, "client-4": Unavailable}

        def step(model, x, y, *, client, round, seed):
            raise ERRORS[client]("it is away")

        class Away(nn.Sequential):
            def forward(self, x):
                raise HandedBack("it is away")

        def make(shape, classes):
            return Away(nn.Flatten(), nn.Linear(64, classes))

        def none(shape, classes):
            raise Unavailable("it is away")
        """,
    )
    base = federation.initial(digits())
    for number, name in enumerate(("Stale", "Absent", "HandedBack", "Unavailable"), 1):
        federation.ask(1, f"client-{number}", base=base, spec=digits(train={"name": "raises:step"}))
        assert str(federation.update().error).startswith(f"the job's own code raised {name}: it is away (raises.py:")

    federation.ask(0, "client-1", base=None, spec=digits(model={"name": "raises:none"}))
    assert str(federation.update().error).startswith("the job's own code raised Unavailable: it is away")
    another_job(federation)
    spec = digits(model={"name": "raises:make"})
    federation.ask(1, "client-1", base=federation.initial(spec), spec=spec)
    assert str(federation.update().error).startswith("the job's own code raised HandedBack: it is away")


def test_a_step_that_hangs_holds_its_slot_a_deadline_longer_than_its_round(federation: Federation) -> None:
    """Though it stopped its own process: the round went on without it, and the next task is done."""
    federation.start("--pool", "cpu", FEDQ_ALLOW="hangs.")
    write(
        federation,
        "hangs",
        """
        import os, signal
        from pathlib import Path
        def step(model, x, y, *, client, round, seed):
            if round == 1:
                Path("began").touch()
                os.kill(os.getpid(), signal.SIGSTOP)
            return {}
        """,
    )
    base = federation.initial(digits())
    spec = digits(train={"name": "hangs:step"}, rounds={"count": 3, "deadline": "2s"})
    federation.ask(1, "client-1", base=base, spec=spec)
    until((federation.directory / "began").exists, "the step has begun")
    federation.end(1)

    assert federation.trained(2, "client-1", base=base, spec=spec)[0].error is None
    assert "requeued" not in federation.log()


def test_a_step_that_is_slow_may_outlast_its_round(federation: Federation) -> None:
    """Its process stays, with the data that it loaded, for the next round."""
    federation.start("--pool", "cpu", FEDQ_ALLOW="slow.")
    write(
        federation,
        "slow",
        """
        import time
        from pathlib import Path
        def step(model, x, y, *, client, round, seed):
            if round == 1:
                Path("began").touch()
                time.sleep(6)
            return {}
        """,
    )
    base, spec = federation.initial(digits()), digits(train={"name": "slow:step"})
    federation.ask(1, "client-1", base=base, spec=spec)
    until((federation.directory / "began").exists, "the step has begun")
    processes = apart_processes(federation)
    federation.end(1)

    assert federation.trained(2, "client-1", base=base, spec=spec)[0].error is None
    assert apart_processes(federation) == processes


def test_a_step_may_close_what_it_writes_to(federation: Federation) -> None:
    """Its clients are trained, each by one try, and what is logged of them is still written."""
    federation.start("--pool", "cpu", FEDQ_ALLOW="closes.")
    write(
        federation,
        "closes",
        """
        import sys
        def step(model, x, y, *, client, round, seed):
            sys.stdout.close()
            sys.stderr.close()
            return {}
        """,
    )
    base, spec = federation.initial(digits()), digits(train={"name": "closes:step"})
    assert federation.trained(1, "client-1", base=base, spec=spec)[0].tries == 1
    processes = apart_processes(federation)
    assert federation.trained(2, "client-1", base=base, spec=spec)[0].tries == 1
    assert apart_processes(federation) == processes
    until(lambda: federation.log().count('"event": "trained"') == 3, "each is logged, the initial model among them")


@pytest.mark.parametrize(
    ("does", "why"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "was killed (SIGSEGV)"),
        ("os.kill(os.getpid(), 40)", "was killed (signal 40)"),
        ("os.closerange(3, 1000); time.sleep(600)", "closed the socket that it answers on"),
        (
            "[os.write(int(fd), b'hello\\n') for fd in os.listdir('/proc/self/fd') if is_socketpair(int(fd))]",
            "said what is no answer: 'hello",
        ),
    ],
)
def test_a_process_that_ends_says_how(federation: Federation, does: str, why: str) -> None:
    """Each way in words that lead to its cause; the client is given up, not the slot."""
    federation.start("--pool", "cpu", FEDQ_ALLOW="ends.")
    write(
        federation,
        "ends",
        f"""
        import os, signal, socket, time

        def is_socketpair(fd):
            try:
                return os.readlink(f"/proc/self/fd/{{fd}}").startswith("socket") and (
                    socket.socket(fileno=os.dup(fd)).family == socket.AF_UNIX
                )
            except OSError:
                return False

        def step(model, x, y, *, client, round, seed):
            if client == "client-1":
                {does}
            return {{}}
        """,
    )
    base, spec = federation.initial(digits()), digits(train={"name": "ends:step"})
    federation.ask(1, "client-1", base=base, spec=spec)
    until(lambda: why in federation.log(), "it says how")
    federation.end(1)
    assert federation.trained(2, "client-2", base=base, spec=spec)[0].error is None
