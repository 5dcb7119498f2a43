"""From a reparametrised prefix to the keys and values it stands for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from hfadapt import attachment
from hfadapt.errors import AttachError
from hfadapt.runtime import deltas_of, shared_modules

from .config import PrefixConfig
from .delta import PrefixDelta
from .tables import PrefixTables

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["flatten_prefix"]


def flatten_prefix(model: PreTrainedModel, name: str) -> int:
    """Replace an adapter's reparametrisation networks by the prefixes that they make; outputs stay as they are.

    The networks only help training (Li and Liang 2021, section 4.3); BART-large with a prefix of 30 keeps 2.2 of its
    61.6 million parameters.

    Args:
        model: An adapted model.
        name: An adapter with a reparametrised prefix.

    Returns:
        How many parameters the adapter's prefixes have now.

    Raises:
        AttachError: there is no such adapter, or it has no reparametrised prefix.
    """
    state = attachment(model)
    adapter = state.require(name)
    wanted = [c for c in adapter.configs if isinstance(c, PrefixConfig) and c.reparametrization == "mlp"]
    if not wanted:
        raise AttachError(
            "no reparametrised prefix to flatten",
            where=f"adapter {name!r}",
            got=" + ".join(map(str, adapter.configs)) or "whole modules alone",
            allowed="PrefixConfig(reparametrization='mlp')",
            try_="leave flatten_prefix out: what is not reparametrised is saved and run as it is",
        )
    config = wanted[0]
    flat = replace(config, reparametrization="flat")
    shared = shared_modules(model, name)
    tables = shared[config.method]
    assert isinstance(tables, PrefixTables)
    with torch.no_grad():
        prepared = {(name, config.method): tables.prepare()}
        count = 0
        for path, delta in list(deltas_of(model, name)):
            if f".{config.method}__" not in path:
                continue
            assert isinstance(delta, PrefixDelta)
            pair = delta.prefixes(name, prepared)
            weights = delta.own(name)
            weights.config = flat
            for key, tensor in zip(("prefix_key", "prefix_value"), pair, strict=True):
                trains = next(tables.parameters()).requires_grad
                setattr(weights, key, torch.nn.Parameter(tensor.clone(), requires_grad=trains))
                count += tensor.numel()
            delta._shared.pop(name, None)
    del shared[config.method]
    if not shared and state.shared is not None:
        del state.shared[name]
    state.adapters[name] = replace(adapter, configs=tuple(flat if c is config else c for c in adapter.configs))
    return count
