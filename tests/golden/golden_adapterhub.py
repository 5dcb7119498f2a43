"""Reads the goldens of AdapterHub's ``adapters``: base weights into a stock model, adapters ``a`` and ``b`` into ours.

An ``adapter_config`` maps as follows. ``mh_adapter``, ``cross_adapter`` and ``output_adapter`` choose the sub-layers;
``reduction_factor``, ``non_linearity``, ``scaling``, ``is_parallel``, ``use_gating`` and the norm options keep their
names; ``init_weights`` is of no interest, all weights are given; ``leave_out`` becomes ``layers``.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, safe_open
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedModel, RobertaConfig, RobertaModel, T5Config, T5Model

import hfadapt
from hfadapt_plugins.methods.bottleneck import Bottleneck, LayerNorms

DATA = Path(__file__).parent / "data" / "adapterhub"
NAMES = ("a", "b")
LAYERS, HIDDEN = 3, 24


@dataclass
class Golden:
    """One file and its architecture."""

    arch: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def tags(self) -> list[str]:
        """The runs it holds: base, a, b, a.drop1, parallel, ..."""
        found = {k.removeprefix("output.").rsplit(".", 2)[0] for k in self.tensors if k.startswith("output.")}
        return sorted(found)

    def hidden(self, tag: str, part: str = "hidden") -> list[Tensor]:
        """Return the hidden states of a run; ``part`` is ``hidden`` or ``dec_hidden``."""
        prefix = f"output.{tag}.{part}."
        keys = sorted((k for k in self.tensors if k.startswith(prefix)), key=lambda k: int(k.removeprefix(prefix)))
        return [self.tensors[k] for k in keys]

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Arguments of the model."""
        return {k.removeprefix("input."): v for k, v in self.tensors.items() if k.startswith("input.")}


def read(name: str) -> Golden:
    """Read ``name``.safetensors; floating-point tensors become float64."""
    path = DATA / f"{name}.safetensors"
    tensors = {k: v.double() if v.is_floating_point() else v for k, v in load_file(str(path)).items()}
    with safe_open(str(path), "pt") as file:
        config = json.loads(file.metadata()["config"])
    return Golden(name.split("_")[0], config, tensors)


def available() -> list[str]:
    """Bottleneck goldens that are here."""
    kinds = ("seq_bn_pfeiffer", "double_seq_bn_houlsby", "par_bn_scaled")
    return sorted(p.stem for p in DATA.glob("*.safetensors") if p.stem.split("_", 1)[1] in kinds)


def bottleneck(config: dict[str, Any]) -> Bottleneck:
    """Return our config for AdapterHub's."""
    places = {"attention": "mh_adapter", "cross": "cross_adapter", "ffn": "output_adapter"}
    norms = {f: config[f] for f in LayerNorms.__dataclass_fields__}
    out = set(config.get("leave_out") or ())
    return hfadapt.Bottleneck(
        reduction_factor=config["reduction_factor"],
        non_linearity=config["non_linearity"],
        on=tuple(ours for ours, theirs in places.items() if config.get(theirs)),
        is_parallel=config["is_parallel"],
        scaling=config["scaling"],
        norms=LayerNorms() if config["is_parallel"] else LayerNorms(**norms),
        use_gating=config["use_gating"],
        layers="all" if not out else tuple(i for i in range(LAYERS) if i not in out),
    )


def base(arch: str, **more: Any) -> PreTrainedModel:
    """Return a stock model in float64 and evaluation mode with the base weights."""
    weights = load_file(str(DATA / f"{arch}_base_weights.safetensors"))
    weights = {k.removeprefix("base."): v for k, v in weights.items()}
    if arch == "t5":
        heads = _heads(weights["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"])
        inner = weights["encoder.block.0.layer.0.SelfAttention.q.weight"].shape[0]
        config = T5Config(
            vocab_size=weights["shared.weight"].shape[0],
            d_model=HIDDEN,
            d_kv=inner // heads,
            d_ff=weights["encoder.block.0.layer.1.DenseReluDense.wi.weight"].shape[0],
            num_layers=LAYERS,
            num_heads=heads,
            relative_attention_num_buckets=weights[
                "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
            ].shape[0],
            relative_attention_max_distance=16,
            **more,
        )
        model: PreTrainedModel = T5Model(config)
    else:
        kind, cls = (BertConfig, BertModel) if arch == "bert" else (RobertaConfig, RobertaModel)
        config = kind(
            vocab_size=weights["embeddings.word_embeddings.weight"].shape[0],
            hidden_size=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            intermediate_size=weights["encoder.layer.0.intermediate.dense.weight"].shape[0],
            max_position_embeddings=weights["embeddings.position_embeddings.weight"].shape[0],
            type_vocab_size=weights["embeddings.token_type_embeddings.weight"].shape[0],
            **more,
        )
        model = cls(config, add_pooling_layer=False)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and all("embed_tokens" in m or "position_ids" in m for m in missing), (missing, unexpected)
    return model.double().eval()


def _heads(bias: Tensor) -> int:
    return bias.shape[1]


def reference_name(path: str, name: str) -> str:
    """Return AdapterHub's name of one of our parameters; ``path`` is as ``hfadapt.parameters_of`` names it."""
    site, _, rest = path.partition(".hfadapt.")
    parameter = rest.rpartition(".")[2]
    parts = site.split(".")
    if "block" in parts:  # T5: encoder.block.L.layer.K
        owner = ".".join(parts[:5])
    else:
        owner = ".".join(parts[:3]) + (".attention.output" if "attention" in site else ".output")
    names = {
        "down": "adapter_down.0.weight",
        "down_bias": "adapter_down.0.bias",
        "up": "adapter_up.weight",
        "up_bias": "adapter_up.bias",
        "scale": "scaling",
        "gate_weight": "gate.weight",
        "gate_bias": "gate.bias",
    }
    return f"{owner}.adapters.{name}.{names[parameter]}"


def adapted(golden: Golden, **more: Any) -> PreTrainedModel:
    """Return the base with the adapters ``a`` and ``b``; every weight of the golden is used."""
    model = base(golden.arch, **more)
    hfadapt.attach(model, bottleneck(golden.config), names=NAMES)
    used = set()
    for name in NAMES:
        for path, parameter in hfadapt.parameters_of(model, name).items():
            key = f"new.{reference_name(path, name)}"
            parameter.data.copy_(golden.tensors[key].view(parameter.shape))
            used.add(key)
    unused = [k for k in golden.tensors if k.startswith("new.") and k not in used]
    assert not unused, unused
    return model


def attach_saved(model: PreTrainedModel, folder: Path, name: str, layers: int) -> None:
    """Attach the bottleneck adapter that ``save_adapter`` wrote to ``folder`` as ``name``, invertible part included."""
    data = json.loads((folder / "adapter_config.json").read_text())
    config, theirs = data["config"], data["name"]
    weights = load_file(str(folder / "adapter.safetensors"))
    out = set(config.get("leave_out") or ())
    chosen = tuple(i for i in range(layers) if i not in out) if out else "all"
    methods: list[Any] = [dataclasses.replace(bottleneck({**config, "leave_out": []}), layers=chosen)]
    if config.get("inv_adapter"):
        factor = config["inv_adapter_reduction_factor"]
        methods.append(hfadapt.Invertible(config["inv_adapter"], factor, config["non_linearity"]))
    hfadapt.attach(model, tuple(methods), name)
    for path, parameter in hfadapt.parameters_of(model, name).items():
        key = _saved_name(path, theirs, config["ln_before"])
        parameter.data.copy_(weights[key].view(parameter.shape))


def _saved_name(path: str, name: str, ln_before: bool) -> str:
    if path.startswith("hfadapt_shared"):
        function, part, kind = path.split(".")[-3:]
        return f"invertible_adapters.{name}.{function}.{ {'inner': 0, 'outer': 2}[part] }.{kind}"
    leaf = path.rpartition(".")[2]
    if leaf.startswith("norm_"):
        owner = reference_name(path.removesuffix(leaf) + "up", name).removesuffix("adapter_up.weight")
        _, where, kind = leaf.split("_")
        return f"{owner}adapter_norm_{where}.{kind}"
    found = reference_name(path, name)
    return found.replace("adapter_down.0", "adapter_down.1") if ln_before else found
