"""AdapterHub's MTL-LoRA: read as one of a group, which adapters with the same shared matrices have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...methods.lora import LoRA
from ...methods.mtl_lora import MTLLoRA
from .folder import Tensors, refused
from .lora import is_fused, lora_configs, updated_linears

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hfadapt import MethodConfig

__all__ = ["mtl_lora_configs", "mtl_lora_fields", "mtl_lora_keys", "mtl_lora_weights"]

_KEYS = {"lora_a": "lora_A", "lora_b": "lora_B", "mix": "weights", "matrix": "task_specific.values"}
_SHARED = ("lora_A", "lora_B")


def mtl_lora_configs(config: Mapping[str, Any], tensors: Tensors, model: PreTrainedModel) -> tuple[MethodConfig, ...]:
    """Return our config of AdapterHub's.

    The library's sharing is lost in its folders: each holds A and B. Adapters whose A and B are the same to the bit are
    those that shared them, so that the group is named after a digest of these.

    Args:
        config: Its fields, checked.
        tensors: Of the file.
        model: The base.

    Raises:
        CheckpointError: a gate, a matrix that is no diagonal, a fused linear, or tensors of other sizes than the config
            says.
    """
    kind = config.get("task_specific_matrix_type", "singular_values")
    if config.get("use_gating") or kind != "singular_values":
        got = f"use_gating={config.get('use_gating')!r}, task_specific_matrix_type={kind!r}"
        what = "an MTL-LoRA with a gate, or with matrices of tasks that adapters 1.3.0 cannot make"
        raise refused(what, tensors.folder, got, "", "use_gating=False, task_specific_matrix_type='singular_values'")
    made = list(lora_configs(config, tensors, model, False))
    plain = made[0]
    assert isinstance(plain, LoRA)
    if len(made) > 1 or any(is_fused(tensors, leaf) for leaf in plain.target_modules):
        what = "an MTL-LoRA of linears that make queries, keys and values at once"
        raise refused(what, tensors.folder, plain, "a LoRA of each task (hfadapt.LoRA), trained anew")
    more = {"dropout": plain.dropout, "group": _group(tensors), "task_matrix": "diagonal"}
    heat = float(config.get("weights_sharpness", 0.05))
    count = config.get("n_up_projection", 1)
    return (MTLLoRA(plain.r, count, plain.lora_alpha, heat, plain.target_modules, **more),)


def _group(tensors: Tensors) -> str:
    """Return a name that adapters have in common whose shared matrices are the same numbers at the same places."""
    digest = hashlib.sha256()
    for owner in sorted(tensors.owners("loras")):
        for end in _SHARED:
            tensor = tensors.take(f"{owner}.loras.{tensors.name}.{end}")
            digest.update(f"{owner}.{end}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().double().contiguous().numpy().tobytes())
    return f"adapterhub-{digest.hexdigest()[:16]}"


def mtl_lora_weights(model: PreTrainedModel, name: str, tensors: Tensors) -> dict[str, Tensor]:
    """Return the tensors of our parameters of an adapter, by the model's names for them."""
    found: dict[str, Tensor] = {}
    for path, _, owner in updated_linears(model, name, tensors, "mtl_lora"):
        for ours, theirs in _KEYS.items():
            found[f"{path}.adapters.{name}.{ours}"] = tensors.take(f"{owner}.loras.{tensors.name}.{theirs}")
    return found


def mtl_lora_fields(config: MTLLoRA) -> dict[str, Any]:
    """Return the fields of AdapterHub's config that a LoRA's has not."""
    return {
        "architecture": "mtl_lora",
        "n_up_projection": config.n_up,
        "task_specific_matrix_type": "singular_values",
        "weights_sharpness": config.temperature,
    }


def mtl_lora_keys(leaf: str, name: str, inside: Any) -> dict[str, Tensor]:
    """Return an adapter's tensors at one linear by AdapterHub's names."""
    return {f"{leaf}.loras.{name}.{theirs}": getattr(inside, ours) for ours, theirs in _KEYS.items()}
