"""Which method fits which architecture, found by placing each on a tiny model without weights."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from ..recipes.report.table import to_markdown
from ..testing.tiny import ALL_TINY_TYPES

__all__ = ["CLAIMED_TYPES", "claims", "markdown_capabilities", "markdown_claims"]

# The whole CLIP model is two towers, which are listed on their own.
CLAIMED_TYPES = tuple(name for name in ALL_TINY_TYPES if name != "clip")
_YES = "yes"
_CAPABILITIES = {
    "mixed_batch": "mixed batch",
    "mergeable": "merges",
    "cacheable": "cached decoding",
    "shares_trunk": "shared trunk",
    "fusable": "fusable",
}


@lru_cache(maxsize=1)
def claims() -> dict[str, dict[str, str]]:
    """For each method, by architecture: "" where it fits, else why it is refused."""
    import torch
    from transformers import AutoModel

    from .. import plugins
    from ..architecture import resolve
    from ..testing.tiny import tiny_config
    from .method_table import default_configs

    found: dict[str, dict[str, str]] = {}
    models = {}
    for model_type in CLAIMED_TYPES:
        with torch.device("meta"):
            model = AutoModel.from_config(tiny_config(model_type))
        models[model_type] = (model, resolve(model))
    for name, entry in plugins.methods().items():
        configs = default_configs(entry)
        if configs is None or name == "fusion":  # is added to adapters wherever they are
            continue
        found[name] = {model_type: _refusal(configs, *pair) for model_type, pair in models.items()}
    return found


def _refusal(configs: tuple[Any, ...], model: Any, arch: Any) -> str:
    """Why one of the configs does not fit a model, without the names of both; "" when all fit."""
    from .. import plugins
    from ..errors import AttachError

    for config in configs:
        method: Any = plugins.methods()[config.method]
        try:
            if not list(method.place(config, arch, model)):
                return "it would change nothing"
            method.shared(config, arch, model)
        except AttachError as error:
            what = str(error).partition("; ")[0]
            return what.partition(f"{arch.model_type}: ")[2] or what
    return ""


def markdown_claims() -> str:
    """Methods across, architectures down; refusals are numbered, and their reasons listed below."""
    table = claims()
    reasons: list[str] = []
    rows = []
    names = sorted(table)
    for model_type in CLAIMED_TYPES:
        row = [f"`{model_type}`"]
        for name in names:
            reason = table[name][model_type]
            if reason and reason not in reasons:
                reasons.append(reason)
            row.append(_YES if not reason else f"no ({reasons.index(reason) + 1})")
        rows.append(row)
    lines = [to_markdown(["", *(f"`{name}`" for name in names)], rows), ""]
    return "\n".join([*lines, *(f"{number}. {reason}" for number, reason in enumerate(reasons, 1))])


def markdown_capabilities() -> str:
    """What each method can do, with the reason where it cannot; presets have what all their parts have."""
    from .. import plugins

    rows = []
    for name, method in sorted(plugins.methods().items()):
        if not hasattr(method, "capabilities"):
            continue
        can = method.capabilities
        words = []
        for field in _CAPABILITIES:
            reason = can.reasons.get(field, "")
            words.append(_YES if getattr(can, field) else f"no: {reason}" if reason else "no")
        rows.append([f"`{name}`", *words])
    return to_markdown(["method", *_CAPABILITIES.values()], rows)
