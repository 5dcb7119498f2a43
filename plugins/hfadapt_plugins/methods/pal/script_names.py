"""What the PALs paper's script calls the weights that have other names here.

``encoder.layer.L.multi_layers.T`` is the task function of task T beside layer L: ``aug_dense`` is V_E,
``aug_dense2`` V_D, ``attn.{query,key,value}`` the attention between them. ``encoder.mult_aug_dense.T`` and
``mult_aug_dense2.T`` are V_E and V_D that all layers of task T share, which ``state_dict`` names at every layer once
more. ``multi_lhuc.T.lhuc`` is LHUC. ``attention.output.multi_layers.T`` and ``output.multi_layers.T`` are the places of
the Houlsby-like model. ``encoder.mult_dense.T``, ``multi_layers.T.N`` and ``mult_dense2.T`` are projected attention on
top, or ``multi_layers.T`` a whole BERT layer.
"""

from __future__ import annotations

__all__ = ["base_name", "parameter_name"]

_IN_TOP_LAYER = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "attention.norm": "attention.output.LayerNorm",
    "ffn.linears.0": "intermediate.dense",
    "ffn.linears.1": "output.dense",
    "ffn.norm": "output.LayerNorm",
}
_IN_TOP_ATTENTION = {"output": "output.dense", "norm": "output.LayerNorm"}
_IN_LAYER = {"down": "aug_dense", "up": "aug_dense2", "encoder": "aug_dense", "decoder": "aug_dense2"}


def base_name(name: str) -> str:
    """Return the script's name of a weight of transformers' BERT."""
    return _gamma_beta(*f"bert.{name}".rpartition(".")[::2])


def parameter_name(path: str, task: int) -> str:
    """Return the script's name of a parameter of a task's adapter.

    Args:
        path: As ``hfadapt.parameters_of`` names it.
        task: Its number.
    """
    suffix = "bias" if path.endswith("_bias") else "weight"
    leaf = path.rpartition(".")[2].removesuffix("_bias")
    if "top_" in path:
        return _top_name(path, task)
    if path.startswith("hfadapt_shared"):
        return f"bert.encoder.mult_{_IN_LAYER[leaf]}.{task}.{suffix}"
    site, _, rest = path.partition(".hfadapt.")
    owner = f"bert.encoder.layer.{site.split('.')[2]}"
    if leaf in ("lhuc", "contribution"):
        return f"{owner}.multi_lhuc.{task}.lhuc"
    if "bottleneck" in rest:
        owner += ".attention.output" if "attention" in site else ".output"
    elif "__ffn_sum__" in rest:
        owner += ".output"
    return f"{owner}.multi_layers.{task}.{_IN_LAYER.get(leaf, f'attn.{leaf}')}.{suffix}"


def _top_name(path: str, task: int) -> str:
    owner = f"bert.encoder.multi_layers.{task}"
    if "top_layer" in path:
        part, _, kind = path.partition("encoder_layer.")[2].rpartition(".")
        return _gamma_beta(f"{owner}.{_IN_TOP_LAYER[part]}", kind)
    part, _, kind = path.partition(".adapters.")[2].partition(".")[2].rpartition(".")
    if part in ("encoder", "decoder"):
        return f"bert.encoder.mult_dense{'' if part == 'encoder' else '2'}.{task}.{kind}"
    _, number, name = part.split(".")
    return _gamma_beta(f"{owner}.{number}.{_IN_TOP_ATTENTION.get(name, f'self.{name}')}", kind)


def _gamma_beta(module: str, kind: str) -> str:
    """Return the name of a weight, which norms call otherwise."""
    return f"{module}.{ {'weight': 'gamma', 'bias': 'beta'}[kind] if module.endswith('LayerNorm') else kind }"
