"""Runs of AdapterHub's goldens: the base, its adapters ``a`` and ``b``, and what each tag of a file stands for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import golden_adapterhub as hub
import torch
from golden_files import DATA as ALL_DATA
from golden_files import error, metadata_of, starting_with, tensors_of
from torch import Tensor, nn
from transformers import BertConfig, BertModel, PreTrainedModel, RobertaConfig, RobertaModel, T5Config, T5Model

import hfadapt

DATA = ALL_DATA / "adapterhub"
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
        """The runs it holds: base, a, b, a.drop1, parallel, fuse, ..."""
        return sorted({k.removeprefix("output.").rsplit(".", 2)[0] for k in self.tensors if k.startswith("output.")})

    def hidden(self, tag: str, part: str = "hidden") -> list[Tensor]:
        """Return the hidden states of a run; ``part`` is ``hidden`` or ``dec_hidden``."""
        found = starting_with(self.tensors, f"output.{tag}.{part}.")
        return [found[k] for k in sorted(found, key=int)]


def read(name: str, folder: Path = DATA) -> Golden:
    """Read ``name``.safetensors."""
    path = folder / f"{name}.safetensors"
    return Golden(name.partition("_")[0], metadata_of(path, "config"), tensors_of(path))


def available(folder: Path = DATA) -> list[str]:
    """Goldens that are here."""
    return sorted(p.stem for p in folder.glob("*.safetensors") if not p.stem.endswith("_base_weights"))


def base(arch: str, folder: Path = DATA, **more: Any) -> PreTrainedModel:
    """Return a stock model in float64 and evaluation mode with the base weights."""
    weights = starting_with(tensors_of(folder / f"{arch}_base_weights.safetensors"), "base.")
    make = {"t5": _t5, "bert": _bert, "roberta": _bert}[arch]
    model = make(arch, weights, more).double().eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and all("embed_tokens" in m or "position_ids" in m for m in missing), (missing, unexpected)
    return model


def _bert(arch: str, weights: dict[str, Tensor], more: dict[str, Any]) -> PreTrainedModel:
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
    return cls(config, add_pooling_layer=False)


def _t5(arch: str, weights: dict[str, Tensor], more: dict[str, Any]) -> PreTrainedModel:
    attention = "encoder.block.0.layer.0.SelfAttention"
    buckets, heads = weights[f"{attention}.relative_attention_bias.weight"].shape
    config = T5Config(
        vocab_size=weights["shared.weight"].shape[0],
        d_model=HIDDEN,
        d_kv=weights[f"{attention}.q.weight"].shape[0] // heads,
        d_ff=weights["encoder.block.0.layer.1.DenseReluDense.wi.weight"].shape[0],
        num_layers=LAYERS,
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        relative_attention_max_distance=16,
        **more,
    )
    return T5Model(config)


def adapted(golden: Golden, folder: Path = DATA, **more: Any) -> PreTrainedModel:
    """Return the base with the adapters ``a`` and ``b``; every weight of the golden is used."""
    model = base(golden.arch, folder, **more)
    hfadapt.attach(model, hub.configs(golden.config, LAYERS), names=NAMES)
    used = set()
    for name in NAMES:
        filler = hub.fill(model, name, golden.tensors, prefix="new.")
        used |= filler.used
    filler.used = used
    filler.check("new.")
    return model


def add_fusion(model: PreTrainedModel, golden: Golden) -> None:
    """Add the golden's fusion layer over ``a`` and ``b``; every weight of it is used."""
    hfadapt.add_fusion(model, NAMES)
    hub.fill_fusion(model, NAMES, golden.tensors, prefix="fusion.").check("fusion.")


def run(model: nn.Module, golden: Golden, tag: str) -> dict[str, tuple[Tensor, ...]]:
    """Hidden states of one run, ``a.drop2`` or ``parallel``, by stack."""
    match = re.fullmatch(r"(\w+?)(?:\.drop(\d+))?", tag)
    assert match
    who, drop = match[1], int(match[2] or 0)
    choice = {"base": None, "parallel": hfadapt.Parallel(*NAMES), "fuse": hfadapt.Fuse(*NAMES)}.get(who, who)
    # AdapterHub numbers the layers of an encoder first, so its skipped layers are the encoder's only.
    hfadapt.set_adapter_drop(model, {"encoder": drop} if drop else None)
    with hfadapt.active(model, choice), torch.no_grad():
        out = model(**starting_with(golden.tensors, "input."), output_hidden_states=True)
    hfadapt.set_adapter_drop(model, None)
    if golden.arch == "t5":
        return {"hidden": out.encoder_hidden_states, "dec_hidden": out.decoder_hidden_states}
    return {"hidden": out.hidden_states}


def errors(model: nn.Module, golden: Golden, tag: str) -> list[float]:
    """Error of every hidden state of one run."""
    found = []
    for part, states in run(model, golden, tag).items():
        for layer, (got, want) in enumerate(zip(states, golden.hidden(tag, part), strict=True)):
            if layer == 0:
                # What transformers records first is the input of layer 0, where a parallel batch has grown already.
                want = want.repeat(got.shape[0] // want.shape[0], 1, 1)
            found.append(error(got, want))
    return found


def softmax_in_float32(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor]:
    """The attention of T5 in the transformers that the goldens were made with: products in float64, softmax not."""
    scores = query @ key.transpose(2, 3) * options["scaling"]
    for added in (options.get("position_bias"), mask):
        scores = scores if added is None else scores + added
    weights = torch.softmax(scores.float(), dim=-1).type_as(scores)
    return (weights @ value).transpose(1, 2).contiguous(), weights


__all__ = ["DATA", "LAYERS", "NAMES", "Golden", "adapted", "add_fusion", "available", "base", "errors", "read", "run",
           "softmax_in_float32"]  # fmt: skip
