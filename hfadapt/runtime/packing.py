"""The frozen linears of a model, packed once for this machine's fastest matrix product.

A packed linear keeps its class, its parameters and their names; only its instance ``forward`` is another callable.
Hooks on it (LoRA) go on working, and training adapters through it does too: the gradient runs through the packed
transpose.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hfadapt_kernels import PackedLinear, frozen_linear
from hfadapt_kernels.frozen_linear.int8_dynamic import DYNAMIC, MOST_INPUTS

from ..errors import ConfigError, did_you_mean
from ..errors.arguments import require_switches
from ..errors.inside import require_itself
from .attachment import Prepared, uncompiled
from .fastest import fastest, slowdown
from .own_forward import RoutedForward
from .parts import parts_of
from .shards import refuse_sharded

__all__ = ["PackedForward", "is_packed", "pack", "pack_served", "packed_as", "packed_in", "packed_weights", "unpack"]

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)
_DTYPES = ("float32", "bfloat16", "int8", DYNAMIC, "fastest")
#: A product that takes so many times longer than float32's is worth a word.
_SLOW = 1.3


class PackedForward:
    """The ``forward`` of one packed linear; a picklable object, so that copies of the model are packed too.

    Args:
        leaf: An ``nn.Linear`` or transformers' ``Conv1D`` (whose weight is stored transposed).
        dtype: What the product multiplies with.
        keep_outliers: As `pack` has it.
        keeps: Whether what is packed is kept, beside the weight; else every call packs anew.
    """

    source: Tensor | None = None  # what older pickles lack is found anew
    keep_outliers = keeps = True

    def __init__(self, leaf: nn.Module, dtype: str, keep_outliers: bool = True, keeps: bool = True) -> None:
        self.leaf = leaf
        self.keep_outliers = keep_outliers
        self.keeps = keeps
        self._take(dtype)

    def _take(self, dtype: str) -> None:
        self.source = self.leaf.get_parameter("weight")
        self.packed = PackedLinear.pack(_weight(self.leaf), dtype, keep_outliers=self.keep_outliers)
        if not self.keeps:
            self.packed.forget()

    @property
    def asked(self) -> tuple[str, bool]:
        """What it was packed as, and whether outliers are kept."""
        return self.packed.dtype, self.keep_outliers

    def __call__(self, input: Tensor) -> Tensor:
        if self.leaf._parameters["weight"] is not self.source:
            self._take(self.packed.dtype)
        packed = self.packed if self.keeps else PackedLinear.pack(_weight(self.leaf), self.packed.dtype)
        return frozen_linear(input, packed, getattr(self.leaf, "bias", None))


def _weight(leaf: nn.Module) -> Tensor:
    weight = leaf.get_parameter("weight")
    return weight.t() if isinstance(leaf, Conv1D) else weight


def _can_pack(leaf: nn.Module) -> bool:
    if type(leaf) not in (nn.Linear, Conv1D) or "forward" in leaf.__dict__:
        return False
    weight = leaf.get_parameter("weight")
    return not weight.requires_grad and weight.is_floating_point() and not weight.is_meta


def is_packed(leaf: nn.Module) -> bool:
    """Say whether ``leaf`` runs from packed weights."""
    return isinstance(leaf.__dict__.get("forward"), PackedForward)


def pack(model: Model, dtype: str = "float32", *, keep_outliers: bool = True) -> Model:
    """Pack every frozen linear of ``model``, in place; one that is packed with another dtype is packed again.

    Where bfloat16 is much slower than float32, as on processors without instructions for it, a warning in the log says
    by how much.

    Args:
        model: Usually an adapted model; linears whose weights train are left as they are.
        dtype: ``"float32"`` (the same sums as before, up to their order); ``"bfloat16"`` or ``"int8"`` weights, which
            are less exact and on some machines faster; ``"int8_dynamic"``: int8 weights, and each row that a linear
            reads is rounded to int8 by a scale of its own, which is faster still and less exact again;
            ``"fastest"``: what a measurement of a moment finds, float32 unless another takes less than 0.9 of its time.
            The log says what was chosen, and the times.
        keep_outliers: Of ``"int8_dynamic"``: whether columns of a weight that are far larger than the rest, and would
            cost it its accuracy, stay in float32 (root mean square more than 4 times the median column's; of 32
            columns one at most).

    Returns:
        ``model``.

    Raises:
        ConfigError: the dtype is unknown, or has no outliers to keep or not; no linear of the model is frozen; the
            model is sharded; or a linear has more inputs than ``"int8_dynamic"`` can sum.
    """
    _check_dtype(dtype)
    return _pack(model, dtype, keep_outliers)


def pack_served(model: nn.Module, base: nn.Module, dtype: str) -> None:
    """Pack a model that answers for many tasks, each of which takes no more memory than its parameters.

    Kept is what the base is packed into. Linears of tasks that read rows (heads, for one) are packed in each call, in
    float32, so that their bits hang on no other row; those that read none (what makes a prefix) are torch's.

    Args:
        model: With the tasks; nothing of it trains.
        base: Of it.
        dtype: As of `pack`.

    Raises:
        ConfigError: as of `pack`.
    """
    _check_dtype(dtype)
    own: list[nn.Module] = [*_without_adapters(base)]
    _pack(model, dtype, True, own)
    of_the_base = {id(module) for module in own}
    prepared = {id(part) for module in model.modules() if isinstance(module, Prepared) for part in module.modules()}
    for leaf in model.modules():
        if id(leaf) not in of_the_base and id(leaf) not in prepared and _can_pack(leaf):
            leaf.__dict__["forward"] = PackedForward(leaf, "float32", keeps=False)


def _without_adapters(module: nn.Module) -> Iterator[nn.Module]:
    yield module
    for name, child in module.named_children():
        if not name.startswith("hfadapt"):
            yield from _without_adapters(child)


def _pack(model: Model, dtype: str, keep_outliers: bool, modules: list[nn.Module] | None = None) -> Model:
    """Pack the linears among some modules, of a model; all of its own by default."""
    require_switches(where="hfadapt.pack", keep_outliers=keep_outliers)
    if not keep_outliers and dtype not in (DYNAMIC, "fastest"):
        raise ConfigError(
            f"{dtype} keeps no outliers",
            where="hfadapt.pack",
            got="keep_outliers=False",
            allowed=f"with dtype={DYNAMIC!r}, whose columns can stay in float32",
            try_=f"leave keep_outliers out, or dtype={DYNAMIC!r}",
        )
    require_itself(model, where="hfadapt.pack")
    refuse_sharded(
        uncompiled(model),
        where="hfadapt.pack",
        why="a packed weight is a whole one",
        try_="pack a model that is not sharded; fully_shard is for training, and gathers weights itself",
        error=ConfigError,
    )
    modules = list(uncompiled(model).modules()) if modules is None else modules
    leaves = [m for m in modules if _can_pack(m) or is_packed(m)]
    if not leaves:
        raise ConfigError(
            "no frozen linear to pack",
            where="hfadapt.pack",
            got=type(model).__name__,
            allowed="linears whose weight has requires_grad=False",
            try_="hfadapt.attach(model, ...), which freezes the base, or model.requires_grad_(False)",
        )
    measured = dtype == "fastest"
    if measured:
        dtype, why = fastest(map(_weight, leaves))
        logger.warning("hfadapt.pack: %s is the choice for %d linears (a pass: %s)", dtype, len(leaves), why)
    wanted = (dtype, keep_outliers or dtype != DYNAMIC)
    changed = [leaf for leaf in leaves if not is_packed(leaf) or leaf.__dict__["forward"].asked != wanted]
    if dtype == DYNAMIC:
        _refuse_long_sums(model, changed)
    _warn_if_slow([_weight(leaf) for leaf in changed], "" if measured else dtype)
    for leaf in changed:
        leaf.__dict__["forward"] = PackedForward(leaf, *wanted)
    logger.info("packed %d linears as %s", len(changed), dtype)
    return model


def _check_dtype(dtype: str) -> None:
    if dtype not in _DTYPES:
        raise ConfigError(
            "bad dtype",
            where="hfadapt.pack",
            got=repr(dtype),
            allowed=", ".join(_DTYPES),
            try_=did_you_mean(dtype, _DTYPES) or "dtype='float32', the same sums as before",
        )


def packed_in(model: nn.Module) -> Iterator[PackedLinear]:
    """Yield what each packed linear runs from."""
    for module in parts_of(model):
        own = module.__dict__.get("forward")
        own = own.stock if isinstance(own, RoutedForward) else own
        if isinstance(own, PackedForward):
            yield own.packed


def packed_weights(model: nn.Module) -> Iterator[Tensor]:
    """Yield what each packed linear was packed from."""
    for packed in packed_in(model):
        yield packed.weight


def packed_as(model: nn.Module) -> str | None:
    """Return the dtype with which ``model`` was packed last; None where no linear is."""
    packed = [m.__dict__["forward"].packed.dtype for m in uncompiled(model).modules() if is_packed(m)]
    return packed[0] if packed else None


def _refuse_long_sums(model: nn.Module, leaves: list[nn.Module]) -> None:
    """Refuse, before anything is packed, what int32 cannot sum."""
    names = {id(module): name for name, module in uncompiled(model).named_modules()}
    for leaf in leaves:
        if (inputs := _weight(leaf).shape[1]) > MOST_INPUTS:
            raise ConfigError(
                "a linear has too many inputs for int8_dynamic",
                where="hfadapt.pack",
                got=f"{names[id(leaf)] or type(leaf).__name__} with {inputs} inputs",
                allowed=f"at most {MOST_INPUTS}, so that int32 holds every sum",
                try_="dtype='int8', which sums in float32",
            )


def _warn_if_slow(weights: list[Tensor], dtype: str) -> None:
    """Measure what bfloat16 costs, where somebody chose it: as ``dtype`` or as that of the weights."""
    low = [weight for weight in weights if dtype == "bfloat16" or weight.dtype == torch.bfloat16]
    if low and (times := slowdown(low)) > _SLOW:
        logger.warning(
            "hfadapt.pack: bfloat16 products take %.1f times those of float32 on this processor, which has no "
            "instructions for them; float32 weights (model.float()) and dtype='float32' or 'fastest' avoid it",
            times,
        )


def unpack(model: Model) -> Model:
    """Undo ``pack``, bit for bit: the parameters were never changed.

    Returns:
        ``model``.
    """
    require_itself(model, where="hfadapt.unpack")
    for module in uncompiled(model).modules():
        if is_packed(module):
            del module.__dict__["forward"]
        elif isinstance(own := module.__dict__.get("forward"), RoutedForward) and isinstance(own.stock, PackedForward):
            own.stock = None
    return model
