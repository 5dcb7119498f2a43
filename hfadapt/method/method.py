"""What an adaptation method is: a frozen config, and a function that says which deltas go to which slots."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import AttachError, CompositionError, ConfigError
from .config import MethodConfig

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from ..architecture import ArchitectureMap, LayerMap, StackMap
    from ..routing.composition import Composition
    from .combination import Combination, Combined
    from .delta import Delta
    from .site import Site

logger = logging.getLogger(__name__)

__all__ = ["Capabilities", "CompositionMethod", "Method", "MethodPreset", "Place", "expand", "select_layers"]


@dataclass(frozen=True)
class Capabilities:
    """What a method can do; drives dispatch, the documentation's table and the tests.

    Args:
        mixed_batch: Rows of one batch may use different adapters.
        mergeable: A single adapter can be folded into the base's weights.
        cacheable: Generation with a key-value cache gives what generation without one gives.
        shares_trunk: Layers below the first delta can be run once for many adapters.
        fusable: AdapterFusion can attend over its deltas.
        ops: Names of the kernels it calls.
        reasons: For what it cannot do, why.
    """

    mixed_batch: bool = True
    mergeable: bool = False
    cacheable: bool = True
    shares_trunk: bool = True
    fusable: bool = False
    ops: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """One delta at one site.

    Args:
        site: Where it reads and writes.
        delta: The class of the delta; one instance holds the parameters of every adapter that uses this place.
        variant: What rows must have in common to share the instance (say, the activation); part of its key.
    """

    site: Site
    delta: type[Delta]
    variant: str = ""


class Method:
    """Base of a method. A subclass sets the class attributes and writes ``place``."""

    name: ClassVar[str]
    config_class: ClassVar[type[MethodConfig]]
    capabilities: ClassVar[Capabilities] = Capabilities()
    family: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    tests: ClassVar[str] = ""
    """Path of its tests from the root of its repository, for the method table."""
    by_name: ClassVar[bool] = False
    """``place`` can do with a map that has no stacks: it chooses modules by name, or says which names there are."""
    exports: ClassVar[Mapping[str, Any]] = {}
    """Functions of the method that ``hfadapt`` offers by name, e.g. ``hfadapt.flatten_prefix``."""
    foreign: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """By a format and a kind of adapter in it, how that is read: ``{"peft": {"LORA": read_lora}}``. The format's page
    says what such a function takes."""

    def place(self, config: Any, arch: ArchitectureMap, model: PreTrainedModel) -> Iterable[Place]:
        """Say which delta goes to which slot.

        Args:
            config: An instance of ``config_class``.
            arch: The model's map.
            model: The model itself, for sizes of leaf modules; not to be changed.

        Raises:
            AttachError: the method does not fit this model; the message says why and what would.
        """
        raise NotImplementedError

    def shared(self, config: Any, arch: ArchitectureMap, model: PreTrainedModel) -> nn.Module | None:
        """Return the parameters that the deltas of one adapter share across layers, or None."""
        return None

    def kept(self, config: Any) -> Any:
        """Return the config of what is left once what only helps training is taken out (a prefix's network)."""
        return config

    def needs_map(self, config: Any) -> bool:
        """Say whether ``place`` reads the stacks of the map; a method that chooses modules by name needs none."""
        return True

    def starts_as_base(self, config: Any) -> bool:
        """Say whether a fresh adapter leaves the base's outputs as they are (LoRA does, PALs do not)."""
        return False

    def combine(self, model: PreTrainedModel, weights: Mapping[str, float], how: Combination) -> Combined:
        """Return one adapter made of several of this method, each of which has one config of it.

        Args:
            model: With the adapters; not to be changed.
            weights: By adapter.
            how: What the caller said.

        Raises:
            CompositionError: adapters of this method cannot be combined so.
        """
        raise CompositionError(
            f"adapters of the method {self.name!r} cannot be combined into one",
            where=f"hfadapt.combine, {type(model).__name__}",
            got=f"method={how.method!r} of {', '.join(weights)}",
            allowed="LoRA; bottleneck and parallel adapters by averaging",
            try_="hfadapt.Average of the adapters, which runs them beside one another",
        )

    def refuse(
        self, what: str, arch: ArchitectureMap, *, got: object = None, allowed: object = None, try_: str = ""
    ) -> AttachError:
        """Return the error of a method that does not fit a model."""
        return AttachError(what, where=f"{self.name} on {arch.model_type}", got=got, allowed=allowed, try_=try_)


class CompositionMethod(Method):
    """Base of a method that joins adapters (AdapterFusion): it is added to them and has no place of its own.

    A subclass sets the class attributes and writes ``restore``.
    """

    added_by: ClassVar[str] = ""
    """How a user adds it, for the error of ``attach``."""

    def place(self, config: Any, arch: ArchitectureMap, model: PreTrainedModel) -> Iterable[Place]:
        """Refuse: what joins adapters is not attached.

        Raises:
            AttachError: always.
        """
        try_ = f"attach the adapters, then {self.added_by}"
        raise self.refuse(f"a {self.name} is added to adapters, not attached", arch, try_=try_)

    def restore(
        self, model: PreTrainedModel, node: Composition, fields: Mapping[str, Any], kept: Mapping[str, list[str]]
    ) -> None:
        """Make the layers of a composition that was saved, with fresh weights that are read into them afterwards.

        Args:
            model: With the adapters that it joins.
            node: The composition.
            fields: Of its config, as JSON data.
            kept: For each pruned layer (by path), the adapters that are left.

        Raises:
            ConfigError: a field is not allowed.
            AttachError: an adapter is missing, or cannot be joined.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class MethodPreset:
    """A name for ready configs.

    Args:
        name: The registered name.
        build: Returns one config or a tuple of them (MAM is prefix tuning plus a parallel adapter).
        export: The Python name under which ``hfadapt`` offers ``build``, e.g. ``"MAM"``; "" for none.
        paper: Where it comes from.
        summary: What it adds, in a few words.
        family: The group it is listed in.
        tests: Path of its tests from the root of its repository, for the method table.
        exports: Functions that ``hfadapt`` offers by name, as of `Method`.
    """

    name: str
    build: Callable[..., MethodConfig | tuple[MethodConfig, ...]]
    export: str = ""
    paper: str = ""
    summary: str = ""
    family: str = ""
    tests: str = ""
    exports: Mapping[str, Any] = field(default_factory=dict)


def expand(method: str | MethodConfig | Iterable[Any] | Mapping[str, Any]) -> tuple[MethodConfig, ...]:
    """Turn what a user may write for a method into configs.

    Args:
        method: A registered name, a config, a map with a key ``method``, or a tuple or list of these.

    Raises:
        RegistryError: no method has that name.
        ConfigError: a field is unknown or holds a value that is not allowed.
    """
    from .. import plugins

    if isinstance(method, MethodConfig):
        return (method,)
    if isinstance(method, str):
        method = {"method": method}
    if isinstance(method, Mapping):
        if "method" not in method:
            raise ConfigError(
                "a method needs a name",
                where="method",
                got=dict(method),
                allowed="a map with the key 'method'",
                try_="{'method': 'lora', ...}",
            )
        entry = plugins.methods()[method["method"]]
        if isinstance(entry, MethodPreset):
            fields = {k: tuple(v) if isinstance(v, list) else v for k, v in method.items() if k != "method"}
            try:
                built = entry.build(**fields)
            except TypeError as error:
                raise ConfigError(
                    str(error),
                    where=f"method {entry.name!r}",
                    got=fields,
                    allowed="what its preset takes",
                    try_=f"hfadapt methods {entry.name}",
                ) from None
            return built if isinstance(built, tuple) else (built,)
        return (entry.config_class.from_dict(method),)
    if isinstance(method, (tuple, list)) and method:
        return tuple(config for part in method for config in expand(part))
    allowed = "a registered name, a method config, or a tuple of them"
    if callable(method):
        name = getattr(method, "__name__", repr(method))
        raise ConfigError(
            "a class or function, not a config",
            where="method",
            got=name,
            allowed=allowed,
            try_=f"{name}()",
        )
    got, try_ = repr(method), "'lora', or hfadapt.LoRA(r=8)"
    if type(method).__module__.partition(".")[0] == "peft":
        got = type(method).__name__
        try_ = "hfadapt's own config (hfadapt.LoRA(r=8)); hfadapt.load_peft reads a folder that peft saved"
    raise ConfigError(
        "not a method",
        where="method",
        got=got,
        allowed=allowed,
        try_=try_,
    )


def select_layers(config: MethodConfig, arch: ArchitectureMap) -> list[LayerMap]:
    """Return the layers that ``config.layers`` and ``config.stack`` choose, stack by stack.

    Raises:
        AttachError: a layer number is out of range, or the model has no such stack.
    """
    stacks: list[StackMap] = list(arch.stacks)
    if config.stack != "all":
        stacks = [s for s in stacks if (s.kind == "decoder") == (config.stack == "decoder")]
        if not stacks:
            raise AttachError(
                "no such stack",
                where=f"{config.method} on {arch.model_type}",
                got=config.stack,
                allowed=", ".join(sorted({s.kind for s in arch.stacks})),
                try_="stack='all'",
            )
    chosen: list[LayerMap] = []
    for stack in stacks:
        n = stack.num_layers
        if config.layers == "all":
            indices: Iterable[int] = range(n)
        elif config.layers == "first_half":
            indices = range(n // 2)
        elif config.layers == "final_half":
            indices = range(n - n // 2, n)
        else:
            assert not isinstance(config.layers, str)  # __post_init__ lets no other word pass
            bad = [i for i in config.layers if not -n <= i < n]
            if bad:
                raise AttachError(
                    "layer out of range",
                    where=f"{config.method} on {arch.model_type} ({stack.path})",
                    got=bad,
                    allowed=f"0 to {n - 1}, or -{n} to -1",
                    try_=f"layers=({n - 1},), or 'final_half'",
                )
            indices = sorted({i % n for i in config.layers})
        indices = list(indices)
        chosen.extend(arch.layer(stack, i) for i in indices if i not in stack.left_out)
        without = [i for i in indices if i in stack.left_out]
        if without:
            why = stack.left_out[without[0]]
            shown = ", ".join(map(str, without))
            logger.warning("%s leaves out layers %s of %s: %s", config.method, shown, stack.path, why)
    if not chosen:
        raise AttachError(
            "no chosen layer has slots",
            where=f"{config.method} on {arch.model_type}",
            got=f"layers={config.layers}",
            allowed="layers that have slots",
            try_="layers='all'",
        )
    return chosen
