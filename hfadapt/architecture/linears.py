"""What counts as a linear leaf, as a table of vectors or as a convolution, and their sizes."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

#: torch's convolutions, of any number of axes.
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@runtime_checkable
class _Sized(Protocol):
    in_features: int
    out_features: int


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear map over the last axis: Linear, Conv1D, a quantised form or a subclass of them."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() > 2:
        return False
    name = type(module).__name__.lower()
    if "grouped" in name:  # one weight for each of several parts of the input
        return False
    return name.endswith(("linear", "conv1d", "linear4bit", "linear8bitlt")) or isinstance(module, nn.Linear)


def is_table(module: nn.Module) -> bool:
    """Whether a module looks vectors up by ids, and does no more with them than to multiply all by one number."""
    return isinstance(module, nn.Embedding) and not why_no_table(module)


def why_no_table(module: nn.Embedding) -> str:
    """Say what an ``nn.Embedding`` does that no update of low rank in its place can follow; "" where it is a table."""
    if module.max_norm is not None:
        return f"max_norm={module.max_norm:g}: a look-up shortens the base's own vectors in place"
    if module.scale_grad_by_freq:
        return "scale_grad_by_freq=True: a row's gradient hangs on the ids of all other rows"
    if type(module).forward is nn.Embedding.forward or hasattr(module, "embed_scale"):
        return ""
    return f"a forward of its own in {type(module).__name__}"


def is_convolution(module: nn.Module) -> bool:
    """Whether a module is a convolution of torch's that mixes all its channels, with its weight as it is.

    One with groups is none: an update of low rank reads all channels, and its product with B is no weight of theirs.
    """
    if not isinstance(module, CONVOLUTIONS) or module.groups != 1:
        return False
    return convolves_at_once(module) or _convolves_inside(type(module))


def convolves_at_once(module: nn.Module) -> bool:
    """Whether a convolution's forward is torch's own, so that it reads and makes what the module does."""
    kind = type(module)
    return any(_is(kind, one) and kind.forward is one.forward for one in CONVOLUTIONS)


def _convolves_inside(kind: type[Any]) -> bool:
    """Whether the forward of a class pads or turns round what it reads and hands it to torch's: told by its names."""
    code = getattr(kind.forward, "__code__", None)
    names = () if code is None else code.co_names
    handed_on = "_conv_forward" in names or {"super", "forward"} <= set(names)
    return handed_on and any(_is(kind, one) for one in CONVOLUTIONS)


def _is(kind: type[Any], one: type[Any]) -> bool:
    return issubclass(kind, one) and kind._conv_forward is one._conv_forward


def linear_sizes(module: nn.Module) -> tuple[int, int]:
    """Input and output features; transformers' Conv1D keeps its weight as [in, out], as a table of vectors does."""
    if isinstance(module, CONVOLUTIONS):
        return module.in_channels, module.out_channels
    if isinstance(module, nn.Embedding):  # whose weight may be made of other parameters at every call
        return module.num_embeddings, module.embedding_dim
    if isinstance(module, _Sized):
        return module.in_features, module.out_features
    rows, columns = module.get_parameter("weight").shape
    return rows, columns
