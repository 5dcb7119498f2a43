"""A delta: the parameters of one kind of change at one site, for any number of adapters."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import AttachError

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped

    from ..routing.routing import Rows
    from .config import MethodConfig
    from .site import Site

__all__ = [
    "NAME_RULE",
    "Delta",
    "FusionPart",
    "Weights",
    "check_adapter_name",
    "is_adapter_name",
    "nearest_name",
    "tensors_of",
]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-]{0,127}")
#: Adapters and heads stand in an ``nn.ModuleDict``, which takes no name of its own attributes ("pop", "training").
#: Asked when a name comes, since transformers gives modules further attributes while it is imported.
_EMPTY = nn.ModuleDict()


def is_adapter_name(name: object) -> bool:
    """Say whether ``name`` can name an adapter or a task, and thus a module."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None and not hasattr(_EMPTY, name)


NAME_RULE = (
    "at most 128 letters, digits, '_' and '-', starting with a letter or digit; no attribute of nn.ModuleDict such as "
    "'pop', 'keys' or 'training'"
)


def nearest_name(name: object) -> str:
    """Return a name that is allowed, made of one that is not."""
    return f"my_{re.sub(r'[^A-Za-z0-9_-]+', '_', str(name)).strip('_-')[:100] or 'task'}"


def check_adapter_name(name: str) -> None:
    """Raise ``AttachError`` unless ``name`` can name an adapter, and thus a module."""
    if not is_adapter_name(name):
        raise AttachError(
            "bad adapter or task name",
            where="name",
            got=repr(name),
            allowed=NAME_RULE,
            try_=repr(nearest_name(name)),
        )


class Weights(nn.Module):
    """The parameters of one adapter in one delta, with the config they were made from."""

    # Another object whenever any adapter is given a config: what deltas keep of configs holds until then. No copy and
    # no pickle has the same one.
    configs_now: object = object()

    def __init__(self, config: MethodConfig) -> None:
        super().__init__()
        self.config = config

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a config is told to what is kept of configs."""
        if name == "config":
            Weights.configs_now = object()
        super().__setattr__(name, value)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """A parameter that ``Delta.init_weights`` created."""


def tensors_of(modules: Sequence[Any], attribute: str) -> list[Tensor]:
    """Return one parameter of each module, in one call however many there are."""
    found = []
    for module in modules:
        tensor = module._parameters.get(attribute)
        # Parametrised ones, and those of the copies of nn.DataParallel, are found as attributes only.
        found.append(getattr(module, attribute) if tensor is None else tensor)
    return found


@dataclass
class FusionPart:
    """One adapter's share in AdapterFusion: ``u = scale (up hidden + bias)``, kept apart so that u need not be formed.

    Args:
        query: ``[B, T, D]``, what the adapter reads, or where that has another width, what it changes.
        hidden: ``[B, T, R]``.
        up: ``[D, R]``.
        bias: ``[D]`` or None.
        scale: A number or a tensor of one element.
    """

    query: Tensor
    hidden: Tensor
    up: Tensor
    bias: Tensor | None
    scale: float | Tensor


class Delta(nn.Module):
    """Base of every delta. A subclass writes ``init_weights`` and ``forward``.

    Parameters of each adapter are separate ``nn.Parameter`` objects, so that adapters are trained, frozen, saved and
    removed on their own, and an adapter without a row in a batch has no gradient. Ops take them as lists.

    Args:
        site: Where the delta sits, with the sizes of what it reads and changes.
    """

    # Its op can finish with the norm that follows: ``forward`` then takes norm, norm_weight, norm_bias and eps as well.
    fuses_norm: bool = False
    # Its adapters may hold parameters of one another. Loading one then compares them with those of all that are here.
    ties_adapters: bool = False
    # Which one it is in its model, the same in every process; set where it is made.
    place: str = ""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.site = site
        self.adapters = nn.ModuleDict()
        # Parameters shared by the layers of one adapter live once at the model's root; registering them here as well
        # would save them once a layer and breaks safetensors, so they are only referred to.
        self._shared: dict[str, Any] = {}
        self._names: tuple[str, ...] = ()

    # Of the adapters that were asked for last: which configs there were, the names, and the scales.
    _scales: tuple[object, tuple[str, ...], list[float]] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters that have parameters here."""
        return self._names

    def has(self, name: str) -> bool:
        """Say whether the adapter ``name`` has parameters here, at one cost however many there are."""
        return name in self.adapters

    def add(self, name: str, config: MethodConfig, shared: nn.Module | None, device: Any, dtype: torch.dtype) -> None:
        """Create the parameters of the adapter ``name``."""
        weights = Weights(config)
        self.init_weights(weights, config, shared)
        self.adapters[name] = weights.to(device=device, dtype=dtype)
        if shared is not None:
            self._shared[name] = shared
        self._names = tuple(self.adapters)

    def remove(self, name: str) -> None:
        """Forget the adapter ``name``."""
        del self.adapters[name]
        self._shared.pop(name, None)
        self._names = tuple(self.adapters)

    def shared(self, name: str) -> Any:
        """Return the module that the layers of the adapter ``name`` share, as ``Method.shared`` made it."""
        return self._shared[name]

    def own(self, name: str) -> Weights:
        """Return the parameters of the adapter ``name`` here."""
        return self.each((name,))[0]

    def each(self, names: Sequence[str]) -> list[Any]:
        """Return ``own`` of several adapters."""
        # From the dictionaries: an attribute or an item of a module takes a call of Python's, and every slot asks.
        adapters: Any = self._modules["adapters"]
        return list(map(adapters._modules.__getitem__, names))

    def config(self, name: str) -> Any:
        """Return the config of the adapter ``name``."""
        return self.own(name).config

    def scale_of(self, weights: Weights) -> float:
        """Return the factor of an adapter's update, as its config gives it."""
        config: Any = weights.config
        return config.scale

    def scales(self, names: tuple[str, ...]) -> list[float]:
        """Return `scale_of` of several adapters, in a list that is not to be changed.

        Kept from the last call with the same names and configs: with a task for each row, every slot would look at as
        many configs.
        """
        # Before what is kept is looked at: a compiled graph would hang on it.
        kept = None if torch.compiler.is_compiling() else self._scales
        if kept is not None and kept[0] is Weights.configs_now and kept[1] == names:
            return kept[2]
        scales = [self.scale_of(one) for one in self.each(names)]
        if not torch.compiler.is_compiling():
            # past nn.Module's own, which looks through all it has
            self.__dict__["_scales"] = (Weights.configs_now, names, scales)
        return scales

    def dtype(self, name: str) -> torch.dtype | None:
        """Return the dtype in which the adapter ``name`` computes here; None where it has no parameters at all."""
        own: Any = self.own(name)
        for parameter in own._parameters.values():
            if parameter is not None:
                return parameter.dtype
        for module in (own, self._shared.get(name)):
            for parameter in () if module is None else module.parameters():
                return parameter.dtype
        return None

    def weights(self, attribute: str, names: Sequence[str]) -> list[Tensor]:
        """Return one parameter of each of the adapters ``names``, as ops take them."""
        return tensors_of(self.each(names), attribute)

    def optional_weights(self, attribute: str, names: Sequence[str]) -> list[Tensor] | None:
        """Return ``weights``, or None when the adapters do not have that parameter."""
        # a delta's variant keeps the two kinds apart: all of its adapters have the parameter, or none has
        found = [getattr(self.adapters[name], attribute, None) for name in names]
        return [tensor for tensor in found if tensor is not None] or None

    def init_weights(self, weights: Weights, config: Any, shared: nn.Module | None) -> None:
        """Create the parameters of one adapter as attributes of ``weights``."""
        raise NotImplementedError

    def forward(
        self, value: Float[Tensor, "B *T D"], source: Shaped[Tensor, "B *_ Ds"], rows: Rows
    ) -> Float[Tensor, "B *T D"]:
        """Return the changed tensor.

        Args:
            value: ``[B, T, D]`` (or ``[B, D]``), the tensor that the site changes.
            source: The tensor that the site reads; ``value`` itself for serial deltas.
            rows: Which adapter each row uses; rows without one keep ``value`` bit for bit.
        """
        raise NotImplementedError

    def cannot_fuse(self, name: str) -> str:
        """Say why AdapterFusion cannot attend over the adapter ``name`` here; "" when it can."""
        return "its change is not a projection of a bottleneck"

    def fused_width(self, name: str) -> int:
        """Return the width of the bottleneck of the adapter ``name``; asked only where ``cannot_fuse`` says ""."""
        raise NotImplementedError

    def fusion_part(self, name: str, value: Tensor, source: Tensor, rows: Rows) -> FusionPart:
        """Return what AdapterFusion needs of the adapter ``name``, asked under the same condition.

        Arguments are those of ``forward``.
        """
        raise NotImplementedError

    def cannot_route(self, name: str) -> str:
        """Say why tokens cannot choose the adapter ``name`` here by its prototype (``Arrow``); "" when they can."""
        return "its change is not a low-rank update of a linear"

    def prototype(self, name: str) -> Tensor:
        """Return the direction ``[Ds]`` of what is read that the adapter ``name`` changes most, of length 1.

        Asked only where ``cannot_route`` says "". Where the adapter changes nothing it is 0.
        """
        raise NotImplementedError

    def merge(self, name: str, leaf: nn.Module) -> None:
        """Fold the adapter ``name`` into the weights of ``leaf``; only for methods that are mergeable."""
        raise AttachError(
            f"{type(self).__name__} cannot be merged into the base's weights",
            where=f"{self.site.leaf} ({self.site.slot})",
            got=name,
            allowed="deltas of a method whose capabilities say mergeable=True",
            try_=f"hfadapt.activate(model, {name!r}), which runs it beside the base",
        )

    def parameter(self, shape: Sequence[int], init: Callable[[Tensor], Any] | None = None) -> nn.Parameter:
        """Return a new float32 parameter, zero or initialised in place by ``init``."""
        tensor = torch.zeros(tuple(shape), dtype=torch.float32)
        if init is not None:
            init(tensor)
        return nn.Parameter(tensor)
