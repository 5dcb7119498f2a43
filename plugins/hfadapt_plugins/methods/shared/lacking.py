"""What a method says of layers that lack a part of those that it was asked for."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from hfadapt import ArchitectureMap, Method
from hfadapt.architecture import LayerMap

logger = logging.getLogger(__name__)

__all__ = ["parts_in", "require_parts", "stands_alone"]

_WORDS = {"attention": "attention", "cross": "cross-attention", "ffn": "feed-forward part"}


def stands_alone(layer: LayerMap) -> bool:
    """Whether a layer is one block that mixes tokens (a state space), which stands for a feed-forward part as well.

    A layer of attention by itself does not: its feed-forward part is another layer, or hidden in a fused module.
    """
    return not layer.has("ffn") and layer.has("attention") and layer.attention.is_block


def parts_in(layer: LayerMap, parts: Iterable[str]) -> list[str]:
    """Return which of some parts a layer has; one that `stands_alone` has a feed-forward part in what it is."""
    stand_in = {"ffn": "attention"} if stands_alone(layer) else {}
    found = dict.fromkeys(stand_in.get(part, part) for part in parts)
    return [part for part in found if layer.has(part)]


def require_parts(method: Method, parts: Iterable[str], layers: Sequence[LayerMap], arch: ArchitectureMap) -> None:
    """Say once which chosen layers lack a part, where others have it.

    Cross-attention is not spoken of: an encoder has none, and its decoder has.

    Args:
        method: Names itself.
        parts: Of "attention", "cross" and "ffn".
        layers: The chosen ones.
        arch: The model's map.

    Raises:
        AttachError: No chosen layer has one of the parts that was asked for, as "cross", or none has any.
    """
    wanted = tuple(dict.fromkeys(parts))
    have = {part: [layer for layer in layers if parts_in(layer, (part,))] for part in wanted}
    if wanted and (not any(have.values()) or ("cross" in have and not have["cross"])):
        lacking = "cross" if "cross" in have else wanted[0]
        raise method.refuse(
            f"no chosen layer has {'a ' if lacking == 'ffn' else ''}{_WORDS[lacking]}",
            arch,
            got=wanted,
            allowed=tuple(part for part in _WORDS if any(layer.has(part) for layer in layers)),
            try_="layers='all', or one of the parts that there are",
        )
    for part, found in have.items():
        without = [layer.path for layer in layers if layer not in found]
        if without and part != "cross":
            logger.warning("%s finds no %s in %s, and adds none there", method.name, _WORDS[part], ", ".join(without))
