"""Settings from the environment and files; what is missing or wrong is said, and what is secret is not."""

import os
import re
from pathlib import Path

import pytest

from shared.errors import BadInput
from shared.process import settings

RIGHT = {
    "FEDQ_AMQP_URL": "amqp://user:s3cret-1@host:5672/fedq",
    "FEDQ_REDIS_URL": "redis://:s3cret-2@host:6379/0",
    "FEDQ_S3_URL": "http://host:9000",
    "FEDQ_S3_ACCESS_KEY": "s3cret-3",
    "FEDQ_S3_SECRET_KEY": "s3cret-4",
}
KINDS = [
    settings.Broker, settings.Record, settings.Store, settings.Console, settings.Aggregator, settings.Trainer,
    settings.Registry, settings.Cli, settings.Code,
]  # fmt: skip


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without files of settings, and an environment without any of ours."""
    for name in [*RIGHT, *(f"FEDQ_{name.upper()}" for kind in KINDS for name in kind.model_fields)]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def set_all(monkeypatch: pytest.MonkeyPatch, **changes: str) -> None:
    for name, value in (RIGHT | changes).items():
        monkeypatch.setenv(name, value)


def write(folder: Path, name: str, **values: str) -> None:
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(f"{key}={value}\n" for key, value in values.items()))


@pytest.mark.parametrize(
    ("kind", "missing"),
    [
        (settings.Broker, {"AMQP_URL"}),
        (settings.Record, {"REDIS_URL"}),
        (settings.Store, {"S3_URL", "S3_ACCESS_KEY", "S3_SECRET_KEY"}),
        (settings.Trainer, {"AMQP_URL", "S3_URL", "S3_ACCESS_KEY", "S3_SECRET_KEY"}),
        (settings.Registry, {"AMQP_URL", "REDIS_URL"}),
        (settings.Aggregator, {"AMQP_URL", "REDIS_URL", "S3_URL", "S3_ACCESS_KEY", "S3_SECRET_KEY"}),
        (settings.Cli, {"AMQP_URL", "REDIS_URL", "S3_URL", "S3_ACCESS_KEY", "S3_SECRET_KEY"}),
    ],
)
def test_everything_missing_is_named_at_once(kind: type[settings.Common], missing: set[str], nowhere: Path) -> None:
    """In one sentence, each by the name a person sets, that says where to do so."""
    with pytest.raises(BadInput) as caught:
        settings.load(kind)

    names, verb, rest = re.split(" (is|are) not set: ", str(caught.value))
    assert set(re.split(", | and ", names)) == {f"FEDQ_{name}" for name in missing}
    assert (verb, rest.split()[1]) == (("is", "it") if len(missing) == 1 else ("are", "them"))
    assert rest.endswith(
        " in the environment (of the container, where this is one) or in .env; "
        f"`make up` starts servers and writes .fedq/env in its folder, "
        f"and there is none in {nowhere} or above, up to {settings.searched()[-1]}"
    )


def test_what_is_set_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is missing is."""
    set_all(monkeypatch)
    monkeypatch.delenv("FEDQ_S3_URL")
    with pytest.raises(BadInput) as caught:
        settings.load(settings.Cli)

    assert str(caught.value).startswith("FEDQ_S3_URL is not set: ")
    assert re.findall(r"FEDQ_\w+", str(caught.value)) == ["FEDQ_S3_URL"]


def test_what_is_empty_is_not_set(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As compose hands on a variable that nobody set: a default holds, .env counts, and what is needed is missing."""
    set_all(monkeypatch, FEDQ_S3_URL="", FEDQ_S3_SECRET_KEY="", FEDQ_LEASE_S="", FEDQ_S3_BUCKET="")
    write(nowhere, ".env", FEDQ_S3_URL="http://host:9000", FEDQ_S3_BUCKET="")
    with pytest.raises(BadInput, match=r"^FEDQ_S3_SECRET_KEY is not set: "):
        settings.load(settings.Aggregator)

    monkeypatch.setenv("FEDQ_S3_SECRET_KEY", "s3cret-4")
    found = settings.load(settings.Aggregator)
    assert (found.lease_s, found.s3_bucket, found.s3_url.get_secret_value()) == (15, "fedq", "http://host:9000")


def test_a_file_that_is_another_users_is_passed_by(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that sees the folder of whoever started it; what root may read is asked of nobody here."""
    set_all(monkeypatch)
    write(nowhere, ".fedq/env", FEDQ_S3_BUCKET="theirs")
    monkeypatch.setattr("os.access", lambda path, _: not str(path).endswith(".fedq/env"))

    assert settings.load(settings.Store).s3_bucket == "fedq"


def test_what_a_file_ends_with_belongs_to_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Secret of Kubernetes that is made of a file ends in a line feed."""
    set_all(monkeypatch, **{name: f"{value}\n" for name, value in RIGHT.items()})
    found = settings.load(settings.Cli)

    secrets = (found.amqp_url, found.redis_url, found.s3_url, found.s3_access_key, found.s3_secret_key)
    assert [secret.get_secret_value() for secret in secrets] == list(RIGHT.values())


def test_a_name_that_nobody_reads_is_told_with_the_nearest(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the environment and from files; not what is read elsewhere, nor what Kubernetes sets for a Service."""
    set_all(monkeypatch, FEDQ_LAESE_S="5", FEDQ_FAILPOINT="", FEDQ_QWERTZ="x", FEDQ_REDIS_SERVICE_HOST="10.0.0.1")
    write(nowhere, ".env", FEDQ_S3_BUCKETS="b", REDIS_PASSWORD="x")

    assert settings.unknown() == {
        "FEDQ_LAESE_S": "FEDQ_LEASE_S",
        "FEDQ_QWERTZ": None,
        "FEDQ_S3_BUCKETS": "FEDQ_S3_BUCKET",
    }


def test_what_is_missing_for_a_typo_is_told_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that nobody looks for long."""
    set_all(monkeypatch, FEDQ_AMQP_ULR=RIGHT["FEDQ_AMQP_URL"])
    monkeypatch.delenv("FEDQ_AMQP_URL")
    with pytest.raises(BadInput, match=r"^FEDQ_AMQP_URL is not set \(but FEDQ_AMQP_ULR is\): set it in ") as caught:
        settings.load(settings.Registry)

    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_service_needs_its_part_alone(monkeypatch: pytest.MonkeyPatch, kind: type[settings.Common]) -> None:
    """All of them load from the same environment, and variables for others do no harm."""
    set_all(monkeypatch, FEDQ_SOMETHING_ELSE="1")

    assert settings.load(kind).log == "auto"


def test_a_trainer_holds_no_redis_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs none, and where there is one it does not keep it."""
    set_all(monkeypatch)
    assert not hasattr(settings.load(settings.Trainer), "redis_url")

    monkeypatch.delenv("FEDQ_REDIS_URL")
    assert "redis" not in repr(settings.load(settings.Trainer))


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("FEDQ_AMQP_URL", "s3cret-9", "FEDQ_AMQP_URL: must be a URL such as amqp://user:password@host:5672/vhost"),
        ("FEDQ_AMQP_URL", "http://user:s3cret-9@host", "FEDQ_AMQP_URL: must be a URL such as amqp://"),
        ("FEDQ_AMQP_URL", "amqp://", "FEDQ_AMQP_URL: must be a URL such as amqp://"),
        ("FEDQ_AMQP_URL", "amqp://user:12/s3cret-9@host/fedq", "FEDQ_AMQP_URL: must be a URL such as amqp://"),
        ("FEDQ_REDIS_URL", "redis:s3cret-9", "FEDQ_REDIS_URL: must be a URL such as redis://:password@host:6379/0"),
        ("FEDQ_REDIS_URL", "redis://:s3cret-9@host/fedq", "FEDQ_REDIS_URL: must be a URL such as redis://"),
        ("FEDQ_S3_URL", "host:9000", "FEDQ_S3_URL: must be a URL such as http://host:9000"),
        ("FEDQ_S3_URL", "http://key:s3cret-9@host", "FEDQ_S3_URL: must be a URL such as http://host:9000, without a "),
        ("FEDQ_S3_URL", "http://host:9000/fedq", "FEDQ_S3_URL: must be a URL such as http://host:9000, and nothing "),
        ("FEDQ_S3_BUCKET", "x", "FEDQ_S3_BUCKET: must be the name of a bucket: 3 to 63 of a-z, 0-9, - and ."),
        ("FEDQ_S3_BUCKET", "My_Bucket", "FEDQ_S3_BUCKET: must be the name of a bucket"),
        ("FEDQ_S3_BUCKET", "my..bucket", "FEDQ_S3_BUCKET: must be the name of a bucket"),
        ("FEDQ_S3_BUCKET", "192.168.0.1", "FEDQ_S3_BUCKET: must be the name of a bucket"),
        ("FEDQ_S3_REGION", "here and there", "FEDQ_S3_REGION: must be a region such as us-east-1"),
        ("FEDQ_LEASE_S", "soon", "FEDQ_LEASE_S: Input should be a valid number"),
        ("FEDQ_LEASE_S", "0", "FEDQ_LEASE_S: Input should be greater than 0.5"),
        ("FEDQ_MAX_JOBS", "0", "FEDQ_MAX_JOBS: Input should be greater than or equal to 1"),
        ("FEDQ_LOG", "loud", "FEDQ_LOG: Input should be 'auto', 'json' or 'console'"),
        ("FEDQ_RABBITMQ_URL", "s3cret-9", "FEDQ_RABBITMQ_URL: must be a URL such as http://host:15672"),
        (
            "FEDQ_RABBITMQ_URL",
            "http://u:s3cret-9@h",
            "FEDQ_RABBITMQ_URL: must be a URL such as http://host:15672, w",
        ),
    ],
)
def test_what_is_wrong_is_explained_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, sentence: str
) -> None:
    """The sentence says what is allowed; neither it nor its cause has a secret in it."""
    set_all(monkeypatch, **{name: value})
    with pytest.raises(BadInput) as caught:
        settings.load(settings.Aggregator)

    assert str(caught.value).startswith(sentence)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FEDQ_AMQP_URL", "amqp://user:s3cret/9@host:5672/fedq"),
        ("FEDQ_AMQP_URL", "amqp://user:s3cret#9@host:5672/fedq"),
        ("FEDQ_AMQP_URL", "amqp://user:s3cret-9@host:port/fedq"),
        ("FEDQ_AMQP_URL", "amqp://user:s3cret-9@host:70000/fedq"),
        ("FEDQ_AMQP_URL", "amqp://user:s3cret[9@host:5672/fedq"),
        ("FEDQ_AMQP_URL", "amqp://user:s3cret\u2100@host:5672/fedq"),  # urlsplit's own error shows all of it
        ("FEDQ_REDIS_URL", "redis://:s3cret?9@host:6379/0"),
        ("FEDQ_S3_URL", "http://host:http"),
    ],
)
def test_a_url_without_a_port_that_is_one_is_explained(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """A / or # in a password that is not written as %2F or %23 is found here, before a traceback shows half of it."""
    set_all(monkeypatch, **{name: value})
    with pytest.raises(BadInput, match=name) as caught:
        settings.load(settings.Aggregator)

    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_secrets_are_in_no_representation(monkeypatch: pytest.MonkeyPatch, kind: type[settings.Common]) -> None:
    """A log line with the settings gives nothing away."""
    set_all(monkeypatch)
    found = settings.load(kind)

    assert "s3cret" not in f"{found!r} {found} {found.model_dump()} {found.model_dump_json()}"


def test_the_environment_stands_above_env_above_what_make_up_wrote(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is used where the one before it says nothing."""
    set_all(monkeypatch)
    write(nowhere, ".fedq/env", FEDQ_S3_BUCKET="from-up", FEDQ_S3_REGION="from-up", FEDQ_LOG_LEVEL="debug")
    assert settings.load(settings.Store).s3_bucket == "from-up"

    write(nowhere, ".env", FEDQ_S3_BUCKET="from-env", FEDQ_S3_REGION="from-env")
    assert settings.load(settings.Store).s3_bucket == "from-env"

    monkeypatch.setenv("FEDQ_S3_BUCKET", "from-environment")
    found = settings.load(settings.Store)
    assert (found.s3_bucket, found.s3_region, found.log_level) == ("from-environment", "from-env", "debug")


def test_files_alone_are_enough(nowhere: Path) -> None:
    """`make up` writes all that a service needs; what others keep in .env is not ours."""
    write(nowhere, ".fedq/env", **RIGHT)
    write(nowhere, ".env", POSTGRES_PASSWORD="x", FEDQ_UNKNOWN="y")
    found = settings.load(settings.Cli)

    assert found.amqp_url.get_secret_value() == RIGHT["FEDQ_AMQP_URL"]
    assert found.s3_bucket == "fedq"


def test_what_make_up_wrote_is_found_from_below(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearest file; `.env` is the working folder's alone."""
    deep = nowhere / "jobs/mine"
    deep.mkdir(parents=True)
    write(nowhere, ".fedq/env", **RIGHT, FEDQ_S3_BUCKET="above")
    write(nowhere, ".env", FEDQ_S3_BUCKET="not-mine")
    monkeypatch.chdir(deep)
    assert settings.load(settings.Cli).s3_bucket == "above"

    write(nowhere / "jobs", ".fedq/env", **RIGHT, FEDQ_S3_BUCKET="nearer")
    assert settings.load(settings.Cli).s3_bucket == "nearer"


@pytest.mark.parametrize("border", ["home", "writable", "another's"])
def test_no_file_is_taken_from_where_others_write_or_from_above_the_home(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, border: str
) -> None:
    """It would lead us to servers of theirs; the message says how far was looked."""
    middle = nowhere / "middle"
    below = middle / "below"
    below.mkdir(parents=True)
    write(nowhere, ".fedq/env", **RIGHT)
    monkeypatch.chdir(below)
    if border == "home":
        monkeypatch.setenv("HOME", str(middle))
    elif border == "writable":
        nowhere.chmod(0o777)
    else:
        whole = Path.stat
        theirs = os.stat_result((0o40755, 0, 0, 0, os.geteuid() + 1, 0, 0, 0, 0, 0))
        monkeypatch.setattr(Path, "stat", lambda path, **how: theirs if path == nowhere else whole(path, **how))

    with pytest.raises(BadInput, match=rf"and there is none in {below} or above, up to {middle}$"):
        settings.load(settings.Cli)


def test_a_user_without_a_home_and_a_folder_that_is_gone_are_no_trouble(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container whose user is a number; the environment is enough there."""
    set_all(monkeypatch)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda _: {}[0])
    assert settings.load(settings.Store).s3_bucket == "fedq"

    gone = nowhere / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert settings.load(settings.Store).s3_bucket == "fedq"


def test_a_file_that_leaves_something_out_is_named(nowhere: Path) -> None:
    """It is found, and that is not the trouble."""
    write(nowhere, ".fedq/env", **{name: value for name, value in RIGHT.items() if name != "FEDQ_REDIS_URL"})
    with pytest.raises(BadInput, match=rf"FEDQ_REDIS_URL is not set: .*, and {nowhere}/\.fedq/env does not have it$"):
        settings.load(settings.Registry)


def test_settings_are_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read once: nothing changes them while a service runs."""
    set_all(monkeypatch)
    found = settings.load(settings.Store)
    with pytest.raises(ValueError, match="frozen"):
        found.s3_bucket = "other"


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("", ()),
        ("mypkg.", ("mypkg.",)),
        (" mypkg.nets:make , a.b., ,_c:d", ("mypkg.nets:make", "a.b.", "_c:d")),
    ],
)
def test_an_allow_list_is_written_with_commas(
    text: str, entries: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is empty where nobody says anything."""
    monkeypatch.setenv("FEDQ_ALLOW", text)

    assert settings.load(settings.Code).allow == entries


@pytest.mark.parametrize("entry", ["*", ".", "mypkg", "mypkg.nets", "a:", ":b", "a:b.", "a:b.c", "a..", "a b.", "a.:b"])
def test_an_entry_that_would_allow_nothing_is_refused(entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what an entry is: who thinks that it allows something learns it at the start."""
    monkeypatch.setenv("FEDQ_ALLOW", f"fine.,{entry}")
    with pytest.raises(BadInput) as caught:
        settings.load(settings.Code)

    assert str(caught.value) == (
        f"FEDQ_ALLOW: {entry!r} is neither an attribute, such as mypkg.nets:make, nor a module with all below it, "
        "which ends in a dot, such as mypkg."
    )


def test_a_slot_has_one_thread_on_any_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several trainers on one machine do not take each other's cores, and machines do not differ in their bits."""
    set_all(monkeypatch)

    assert settings.load(settings.Trainer).threads == 1
