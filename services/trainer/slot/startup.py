"""Makes a process a slot: imports, threads and connections first, so that no task pays for them."""

import multiprocessing
from pathlib import Path

import structlog
import torch

from services.trainer.models import catalog
from services.trainer.signals import Signals
from services.trainer.slot.client_state import InStore, Keeper, OnDisk
from services.trainer.slot.context import PATIENCE, SlotContext
from services.trainer.slot.model_cache import Cache
from services.trainer.slot.slot import Slot
from services.trainer.training import loop
from shared.amqp.bus import Bus
from shared.errors import BadInput, Unavailable
from shared.job import user_code
from shared.job.catalog.training import TrainSpec
from shared.process import logs, settings
from shared.s3.store import Blobs

log = structlog.get_logger()

GLANCE = 10.0  #: of a slot's patience in one call of the store: between two, it looks whether somebody still waits


def start(trainer: str, directory: str, index: int, *, silo: bool) -> Slot:
    """The slot that this process is from now on."""
    configuration = settings.load(settings.Trainer)
    logs.configure(configuration, "trainer")
    structlog.contextvars.bind_contextvars(trainer=trainer)
    user_code.permit(configuration.allow, f"the trainer {trainer}")
    # Python lets no daemon have children, and Celery's processes are daemons; the workers of a DataLoader are children.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    device = _device(configuration.device, index)
    torch.set_num_threads(configuration.threads)
    signals = Signals(Path(directory))
    blobs = Blobs(configuration, patience=GLANCE)
    cache = Cache(configuration.cache_dir, configuration.cache_mb << 20, blobs)
    keeper: Keeper = OnDisk(configuration.state_dir.expanduser()) if silo else InStore(blobs)
    bus = Bus(configuration, trainer, patience=PATIENCE)
    _rehearse(device)
    try:
        bus.declare()  # connects
    except Unavailable as error:
        log.warning("not connected yet", reason=str(error))
    signals.tell(f"warm {device if device.type == 'cpu' else torch.cuda.get_device_name(device)}")
    return Slot(SlotContext(trainer, signals, blobs, cache, keeper, device), bus)


def _device(name: str, index: int) -> torch.device:
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", index % torch.cuda.device_count())  # each slot its own, where there are enough
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise BadInput(f"FEDQ_DEVICE: {name} cannot be used here: {error}") from error
    return device


def _rehearse(device: torch.device) -> None:
    """Trains for one step on nothing: torch loads half of itself when it is first used."""
    model = catalog.lenet((1, 8, 8), 2).to(device)
    x, y = torch.zeros(4, 1, 8, 8, device=device), torch.zeros(4, dtype=torch.int64, device=device)
    loop.train(model, x, y, TrainSpec(), seed=0, client="nobody", number=0)
    loop.evaluate(model, x, y)
