"""Adding fusion layers to a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hfadapt import Fuse, activate, attachment, freeze
from hfadapt.adapters.formats import add_copies
from hfadapt.errors import CompositionError
from hfadapt.errors.inside import require_itself
from hfadapt.method import Site, Tap, sites
from hfadapt.runtime import Fusion, TapInput, adapted_model, add_hook, deltas_of, fusion_key, refuse_sharded

from .config import FusionConfig, read_config
from .layer import FusionLayer, deltas_with

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hfadapt import ArchitectureMap
    from hfadapt.runtime import Attachment

__all__ = ["add_fusion", "fusion_layers", "make_layers"]

_SUMS = ("ffn_sum", "attention_sum", "cross_sum", "layer_sum")


@torch.inference_mode(False)  # as attach
def add_fusion(
    model: PreTrainedModel,
    node: Fuse | str | tuple[str, ...] | list[str],
    config: str | FusionConfig | Mapping[str, Any] = "dynamic",
    *,
    train_adapters: bool = False,
    activate_it: bool = True,
    mixed_widths: bool = False,
) -> int:
    """Add AdapterFusion over adapters that are attached, and train it alone.

    Where the adapters have heads of their own, the fusion gets one too, equal to the base's at the start.

    Args:
        model: An adapted model.
        node: The adapters: ``Fuse("a", "b")`` or their names.
        config: ``"dynamic"``, ``"static"``, a config or its fields.
        train_adapters: Leave the adapters trainable; by default they are frozen, as in the paper's second stage.
        activate_it: Use the fusion in calls without ``task_ids``.
        mixed_widths: Allow bottlenecks of different widths, which more often than not are an oversight.

    Returns:
        How many parameters the fusion layers have.

    Raises:
        CompositionError: an adapter is not attached, cannot be fused, is not at the same places as the others or of
            another width, or the fusion exists.
    """
    model = adapted_model(model)
    refuse_sharded(
        model,
        where="add_fusion",
        why="parameters that are added now would be trained on every process apart",
        try_="add the fusion first, then fully_shard",
        error=CompositionError,
    )
    state = attachment(model)
    if not isinstance(node, Fuse | str | tuple | list):
        allowed = "Fuse('a', 'b'), or two or more names"
        cure = (
            f"hfadapt.add_fusion(model, {list(state.names[:2])})"
            if len(state.names) > 1
            else "hfadapt.attach(model, ...) of two adapters first"
        )
        raise CompositionError("no adapters to fuse", where="add_fusion", got=repr(node), allowed=allowed, try_=cure)
    fuse = node if isinstance(node, Fuse) else Fuse(*(node,) if isinstance(node, str) else node)
    chosen = read_config(config)
    if not mixed_widths and fuse not in state.fusions:
        state.check_attached(fuse)
        _check_widths(model, tuple(str(c) for c in fuse.children))
    layers = make_layers(model, fuse, chosen)
    if not train_adapters:
        freeze(model, [str(c) for c in fuse.children])
    if activate_it:
        activate(model, fuse)
    state.changed()
    return sum(p.numel() for layer in layers.values() for p in layer.parameters())


def make_layers(model: PreTrainedModel, node: Fuse, config: FusionConfig) -> dict[str, FusionLayer]:
    """Create the fusion layers of ``node``; return them by the path of their leaf and side.

    Raises:
        CompositionError: see `add_fusion`.
    """
    state = attachment(model)
    names = tuple(str(c) for c in node.children)
    for name in names:
        if name not in state.adapters:
            state.check(node)
    if node in state.fusions:
        raise CompositionError(
            "the fusion exists",
            where=type(model).__name__,
            got=repr(node),
            allowed=f"adapters of another set than {', '.join(map(repr, state.fusions))}",
            try_=f"hfadapt.activate(model, {node!r})",
        )
    wanted = _places(model, names)
    plan = [_check(model, state, names, key, sites_) for key, sites_ in wanted.items()]
    made: dict[str, FusionLayer] = {}
    for site in plan:
        leaf = model.get_submodule(site.leaf)
        residual = _residual(state.arch, site)
        key = fusion_key(node.key, site)
        path = f"{site.leaf}.{key}"
        layer = FusionLayer(config, names, site.width, site.side, residual, path)
        like = next(p for d in leaf.hfadapt.side(site.side) for p in d.parameters())  # type: ignore[union-attr]
        layer.to(device=like.device, dtype=like.dtype).train(leaf.training)
        leaf.hfadapt.fusions[key] = layer  # type: ignore[union-attr]
        if residual is not None:
            add_hook(model.get_submodule(residual.leaf), TapInput(residual.key))
        made[path] = layer
    heads = tuple(dict.fromkeys(path for name in names for path in state.adapters[name].heads))
    add_copies(model, state, node.key, heads)
    state.fusions[node] = Fusion(config, heads)
    return made


def fusion_layers(model: nn.Module, node: Fuse | None = None) -> dict[str, FusionLayer]:
    """Return the fusion layers of a model by path; those of one node when it is given.

    Raises:
        CompositionError: the node is none.
    """
    if not isinstance(node, Fuse | None):
        raise CompositionError(
            "no fusion", where="node", got=repr(node), allowed="Fuse('a', 'b')", try_="node=None for all of them"
        )
    require_itself(model, where="fusion layers")
    model = adapted_model(model)
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, FusionLayer) and (node is None or set(module.names) == {str(c) for c in node.children})
    }


def _places(model: PreTrainedModel, names: tuple[str, ...]) -> dict[tuple[str, str, int], dict[str, Site]]:
    """Every place of the adapters: (leaf, side, depth of a shared layer) to the site of each adapter there."""
    found: dict[tuple[str, str, int], dict[str, Site]] = {}
    for name in names:
        for path, delta in deltas_of(model, name):
            site = delta.site
            why = delta.cannot_fuse(name)
            if why:
                raise CompositionError(
                    f"adapter {name!r} cannot be fused",
                    where=path.partition(".hfadapt.")[0],
                    got=f"{delta.config(name).method}: {why}",
                    allowed="bottleneck and parallel adapters, low rank, LoRA",
                    try_="hfadapt.Average of the adapters",
                )
            depth = site.layer if site.shared_layer else -1
            found.setdefault((site.leaf, site.side, depth), {})[name] = site
    return found


def _check(
    model: PreTrainedModel,
    state: Attachment,
    names: tuple[str, ...],
    key: tuple[str, str, int],
    found: dict[str, Site],
) -> Site:
    leaf, side, depth = key
    missing = [n for n in names if n not in found]
    if missing:
        raise CompositionError(
            "the adapters to fuse are not at the same places",
            where=leaf,
            got=f"{', '.join(found)} there, {', '.join(missing)} not",
            allowed=f"all of {', '.join(names)} there, or none",
            try_="adapters of one method with the same layers and sub-layers",
        )
    module = model.get_submodule(leaf)
    double = [n for n in names if len(deltas_with(module, side, n, depth)) > 1]
    if double:
        raise CompositionError(
            "an adapter to fuse has two deltas at one place",
            where=leaf,
            got=", ".join(double),
            allowed="one delta of an adapter at each place",
            try_=f"hfadapt.Average of {', '.join(names)}, which asks for no places in common",
        )
    return found[names[-1]]


def _check_widths(model: PreTrainedModel, names: tuple[str, ...]) -> None:
    """Raise ``CompositionError`` unless the bottlenecks of every place have one width."""
    found: dict[tuple[str, str, int], dict[str, int]] = {}
    for name in names:
        for _, delta in deltas_of(model, name):
            if not delta.cannot_fuse(name):
                site = delta.site
                found.setdefault((site.leaf, site.slot, site.layer), {})[name] = delta.fused_width(name)
    for (leaf, _, _), widths in found.items():
        if len(set(widths.values())) > 1:
            raise CompositionError(
                "the adapters to fuse have different widths",
                where=leaf,
                got=", ".join(f"{name}: {width}" for name, width in widths.items()),
                allowed="one width at each place",
                try_="adapters of one size, or add_fusion(..., mixed_widths=True) if it is meant",
            )


def _residual(arch: ArchitectureMap, site: Site) -> Tap | None:
    """Where a place changes the sum f + a, the tensor a."""
    if site.slot not in _SUMS or site.side != "input":
        return None
    stack = next(s for s in arch.stacks if s.path == site.stack)
    layer = stack.layer(site.layer)
    if site.slot in ("ffn_sum", "layer_sum"):
        return sites.ffn_input(layer)
    return sites.attention_input(layer, cross=True) if site.slot == "cross_sum" else sites.layer_input(layer)
