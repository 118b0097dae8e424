"""How good a model is: on the test set, or on what clients hold out for it."""

import structlog

from services.trainer.data import dataset
from services.trainer.data.dataset import Examples
from services.trainer.slot import replies
from services.trainer.slot.context import SlotContext
from services.trainer.training import loop
from shared.errors import Unavailable
from shared.events import EvaluateModel, Member

log = structlog.get_logger()


def on_test_set(context: SlotContext, event: EvaluateModel) -> tuple[int, dict[str, float]]:
    """How many examples the test set has, and the figures on them; (0, {}) where there is none."""
    data = dataset.load(event.spec, event.job)
    test = dataset.of_test(data)
    if test is None:
        return 0, {}
    model = context.model(event.job, event.spec, data)
    model.load(context.patiently(lambda: context.cache.get(event.model)))
    x, y = _on(context, test)
    return len(y), loop.evaluate(model.model, x, y)


def on_clients(context: SlotContext, event: EvaluateModel) -> tuple[Member, ...]:
    """The figures of each client, on its own held-out examples and with what it keeps of the model.

    Left out is who holds out nothing, and who fails; where nobody is left for that, the last one's error is raised.
    """
    data = dataset.load(event.spec, event.job)
    file = context.patiently(lambda: context.cache.get(event.model))
    found: list[Member] = []
    failure: Exception | None = None
    for client, ref in zip(event.clients, event.states or (None,) * len(event.clients), strict=True):
        try:
            held = dataset.held_by(data, event.spec, client)
            if held is None:
                continue
            model = context.model(event.job, event.spec, data)
            model.load(file, context.state(event.job, event.spec, client, ref, model.layout).personal)
            x, y = _on(context, held)
            found.append(Member(client=client, examples=len(y), metrics=loop.evaluate(model.model, x, y)))
        except Unavailable:
            raise
        except Exception as error:
            replies.log_failure(log.bind(job=event.job, round=event.round, client=client), error)
            context.forget_model()
            failure = error
    if failure is not None and not found:
        raise failure
    return tuple(found)


def _on(context: SlotContext, examples: Examples) -> Examples:
    x, y = examples
    return x.to(context.device), y.to(context.device)
