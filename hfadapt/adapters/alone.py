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
            place = path.removesuffix("hfadapt").removesuffix(".")
            kind = type(model.get_submodule(place)).__name__
            raise AttachError(
                "parts of this model are adapted as parts of another, whose adapters would do nothing here",
                where=type(model).__name__,
                got=f"{place or 'the model'}, a {kind}, {'part of an adapted model' if whole else 'with adapters'}",
                allowed="all adapters on one model, the outermost that is called",
                try_="hfadapt.detach of the other model's adapters first, and all on this one; where both are to be "
                "adapted, copy.deepcopy of that whole model, hfadapt.detach of the copy's adapters, then its parts",
            )
