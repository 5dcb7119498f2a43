"""A module belongs to one adapted model: a model around it, inside it or beside it is not adapted too."""

from __future__ import annotations

from torch import nn

from ..errors import AttachError
from ..runtime.slot import Slot

__all__ = ["refuse_adapted_parts"]


def refuse_adapted_parts(model: nn.Module) -> None:
    """Raise where modules of a model that is not adapted itself carry the adapters of another.

    Each adapted model chooses adapters for all that runs inside of its call, and knows its own alone: those of the
    other model would do nothing there, without a word.

    Raises:
        AttachError: they do.
    """
    for path, module in model.named_modules():
        whole = "_hfadapt_of" in module.__dict__
        if whole or isinstance(module, Slot):
            place = path.removesuffix(".hfadapt") or "the model"
            raise AttachError(
                "parts of this model are adapted as parts of another, whose adapters would do nothing here",
                where=type(model).__name__,
                got=f"adapters at {place}, a {type(module if whole else model.get_submodule(place)).__name__}",
                allowed="all adapters on one model, the outermost that is called",
                try_="hfadapt.detach of the other first, and all on this model; or copy.deepcopy of what both share",
            )
