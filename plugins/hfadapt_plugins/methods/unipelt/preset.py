"""UniPELT: LoRA, prefix tuning and a bottleneck adapter, each behind a gate of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hfadapt import MethodConfig, MethodPreset

from ..bottleneck import Bottleneck, LayerNorms
from ..lora import LoRA
from ..prefix import PrefixConfig
from ..shared.parts import read_part

__all__ = ["UNIPELT_PRESET", "unipelt"]


def unipelt(
    prefix: PrefixConfig | Mapping[str, Any] | None = None,
    adapter: Bottleneck | Mapping[str, Any] | None = None,
    lora: LoRA | Mapping[str, Any] | None = None,
    *,
    layers: str | tuple[int, ...] = "all",
    stack: str = "all",
) -> tuple[MethodConfig, ...]:
    """Prefix of 10, Pfeiffer adapter with reduction 16 and LoRA of rank 8, all gated (Mao et al. 2022).

    (arXiv:2110.07577; sizes as in AdapterHub. Gates average over real tokens; those of the published code over
    padding too, which ``gate="mean_padded"`` of LoRA and prefix and ``use_gating="mean_padded"`` of the adapter give.)

    Args:
        prefix: The prefix, or fields of it.
        adapter: The bottleneck adapter, or fields of it.
        lora: The low-rank update, or fields of it.
        layers: See ``MethodConfig``; for parts that are not given as configs.
        stack: See ``MethodConfig``.
    """
    common = {"layers": layers, "stack": stack}
    norms = LayerNorms(original_ln_before=True)
    return (
        read_part(PrefixConfig, prefix, {"num_virtual_tokens": 10, "mlp_size": 512, "gate": "mean", **common}),
        read_part(Bottleneck, adapter, {"reduction_factor": 16, "norms": norms, "use_gating": True, **common}),
        read_part(LoRA, lora, {"r": 8, "lora_alpha": 8, "gate": "mean", **common}),
    )


UNIPELT_PRESET = MethodPreset(
    "unipelt",
    unipelt,
    export="UniPELT",
    paper="Mao et al. 2022, arXiv:2110.07577",
    summary="LoRA, prefix tuning and a bottleneck adapter, each gated by its input",
    family="unified view",
    tests="tests/unit/methods/test_unipelt.py",
)
