"""Setup of the servers: creates what fedq needs in RabbitMQ and the object store, and sets passwords and policies.

Every step is idempotent and may be repeated at any time, even while a federation runs. Setup also sets the rights of
the operator and the trainers.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import services
from services.cli.ui import output
from shared import names
from shared.amqp import management, topology
from shared.errors import BadInput, Denied, Unavailable
from shared.process.settings import Setup
from shared.redis.client import Redis
from shared.redis.ledger import Ledger
from shared.s3.store import Blobs, NoKeys

PATIENCE = 60.0  #: seconds that all servers together may take to start
TRY = 5.0  #: seconds of `PATIENCE` for one call of the object store
RETRY = 0.25  #: seconds between two tries of a server that does not answer yet

TRAINER = "trainer"  #: name of the trainers' user in RabbitMQ
DEFINITIONS = Path(services.__file__).parents[1] / "deploy/definitions.json"


def provision(config: Setup) -> None:
    """Waits for the three servers and creates what is missing, with a line on standard error for each item.

    Raises `Denied` if a server refuses the operator, and `BadInput` if the trainers' key cannot be created and does
    not work.
    """
    deadline = time.monotonic() + PATIENCE
    # RabbitMQ starts most slowly, so it comes last: a mistake in the other settings is reported sooner.
    for step in (_store, _record, _broker):
        _when_it_answers(step, config, deadline)


def _when_it_answers(step: Callable[[Setup], None], config: Setup, deadline: float) -> None:
    told = False
    while True:
        try:
            return step(config)
        except Denied:
            raise
        except Unavailable as error:
            if time.monotonic() + RETRY > deadline:
                raise
            if not told:
                output.note(f"waiting: {error}")
            told = True
        time.sleep(RETRY)


def _store(config: Setup) -> None:
    store = Blobs(config, patience=TRY)
    _tell(f"bucket {config.s3_bucket}", made=store.make_bucket())
    key, secret = config.trainer_s3_access_key.get_secret_value(), config.trainer_s3_secret_key.get_secret_value()
    if key == config.s3_access_key.get_secret_value():
        if secret != config.s3_secret_key.get_secret_value():
            raise BadInput("FEDQ_TRAINER_S3_SECRET_KEY: is not FEDQ_S3_SECRET_KEY, though the access keys are the same")
        output.note(f"key {key} of the object store: the trainers' is the operator's, so they may write anything")
        return
    try:
        made = store.make_key(key, secret, names.TRAINER_WRITES)
        _use(config)
    except NoKeys as reason:
        made = False
        try:
            _use(config)
        except Denied:
            raise BadInput(
                f"{reason}, and refuses FEDQ_TRAINER_S3_ACCESS_KEY {key}: make that key there, to read the bucket "
                f"{config.s3_bucket} and to write {' and '.join(names.TRAINER_WRITES)}, or give the trainers the "
                "operator's with FEDQ_TRAINER_S3_ACCESS_KEY and FEDQ_TRAINER_S3_SECRET_KEY"
            ) from reason
    _tell(f"key {key} of the object store", made=made)


def _use(config: Setup) -> None:
    """Tests the trainers' key with the operations that trainers perform."""
    theirs = {"s3_access_key": config.trainer_s3_access_key, "s3_secret_key": config.trainer_s3_secret_key}
    store, key = Blobs(config.model_copy(update=theirs), patience=TRY), names.trial_blob(TRAINER)
    store.list(key)
    store.get(store.put(key, b"fedq"))
    store.remove([key])


def _record(config: Setup) -> None:
    """Checks that Redis answers, for the services that start later; it needs no setup."""
    Ledger(Redis(config)).now()
    output.note("Redis: answers")


def _broker(config: Setup) -> None:
    url = urlsplit(config.amqp_url.get_secret_value())
    vhost, operator = unquote(url.path[1:]) or "/", unquote(url.username or "guest")
    _tell(f"vhost {vhost} of RabbitMQ", made=management.make_vhost(config, vhost))
    made = management.make_user(config, TRAINER, config.trainer_amqp_password.get_secret_value())
    for user, role in ((operator, "operator"), (TRAINER, "trainer")):
        management.permit(config, vhost, user, topology.PERMISSIONS[role])
    _tell(f"user {TRAINER} of RabbitMQ", made=made)
    missing = management.missing_policies(config, vhost)
    management.load(config, vhost, json.loads(DEFINITIONS.read_text()))
    if left := management.missing_policies(config, vhost):
        raise BadInput(
            f"RabbitMQ's vhost {vhost} has policies in the way of fedq's: {', '.join(left)}; lower their priority"
        )
    for policy in topology.POLICIES:
        _tell(f"policy {policy}", made=any(reason.split()[0] == policy for reason in missing))


def _tell(thing: str, *, made: bool) -> None:
    output.note(f"{thing}: {'made' if made else 'found'}")
