"""Low-rank adapters (Hu et al. 2021) around a frozen model, by the library peft; the last layer is trained as well."""

import re

from torch import nn

from shared.errors import BadInput
from shared.job.catalog.models import Lora

try:
    import peft
except ModuleNotFoundError as error:
    if error.name != "peft":
        raise
    raise BadInput("model.adapters: this trainer has no module peft; install fedq[lora] there") from error

_OWN = {"transformer": ("query", "value")}  #: targets of a model, as the paper has them; else every layer that would do
_SHOWN = 12


def adapt(model: nn.Module, spec: Lora, name: str) -> None:
    """Freezes `model` in place but for its last layer, and puts adapters around its targets.

    Targets are linear layers and convolutions below the last layer, by their names or the ends of these. The last one
    is trained in full: it is new for the data's classes. `BadInput` where there is no target, with those that would do.
    """
    layers = _layers(model)
    if not layers:
        raise BadInput(f"model.adapters: {name} has no linear layer and no convolution that lora could adapt")
    *below, last = layers
    wanted = spec.targets or _OWN.get(name)
    found = [layer for layer in below if wanted is None or any(f".{layer}".endswith(f".{end}") for end in wanted)]
    if not found:
        shown = ", ".join(below[:_SHOWN]) + (f" and {len(below) - _SHOWN} more" if len(below) > _SHOWN else "")
        asked = f" called {', '.join(wanted)}" if wanted else ""
        would = f"these would do: {shown}" if below else "it has none below its last layer, which is trained as it is"
        raise BadInput(f"model.adapters.targets: {name} has no layer{asked} that lora can adapt; {would}")
    config = peft.LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,  # type: ignore[arg-type]  # any number: it is divided by the rank
        lora_dropout=spec.dropout,
        target_modules="|".join(map(re.escape, found)),  # one string is a pattern that the whole name must match
    )
    try:
        peft.inject_adapter_in_model(config, model)
    except (ValueError, NotImplementedError) as error:
        raise BadInput(f"model.adapters: peft cannot adapt {name}: {error}") from error
    model.get_submodule(last).requires_grad_(True)


def _layers(model: nn.Module) -> list[str]:
    """The names of the linear layers and convolutions, in order, that are called as modules.

    Not those of torch's own attention, which reads their weights past any adapter, and not grouped convolutions, which
    are small and need a rank that the groups divide.
    """
    apart = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, _FUSED))
    return [
        name
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) or (isinstance(module, _CONVOLUTIONS) and module.groups == 1))
        and not name.startswith(apart)
    ]


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FUSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
