"""The published code of the unified view (He et al. 2022) in terms of hfadapt.

Read a golden with `read`, build the base with `golden_unify_base.base_model`, and adapt it with `adapt`, which turns
the fork's options into our configs (`configs_of`) and copies its weights into our parameters (`parameter_map`). Every
option of the fork is mapped, also for combinations whose file is not here: prefixes as ``concat``,
``cross_attn_noln`` with ``add`` (no gating) or ``gate_add``, ``cross_attn_relu`` (multi-head parallel adapter),
``prefix_nomlp``; adapters parallel, sequential and Pfeiffer; LoRA; learned and fixed scales; input LayerNorm.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from golden_files import DATA as ALL_DATA
from golden_files import Filler, metadata_of, starting_with, tensors_of
from torch import Tensor
from transformers import PreTrainedModel

import hfadapt
from hfadapt_plugins.methods.mam.fork_names import UNREAD, Pair, parameter_map
from hfadapt_plugins.methods.mam.fork_options import configs_of

DATA = ALL_DATA / "unify"
ARCHITECTURES = ("roberta", "bart", "mbart")
GENERATE = {"max_length": 9, "min_length": 2, "length_penalty": 1.0, "no_repeat_ngram_size": 0, "early_stopping": False}


@dataclass(frozen=True)
class Golden:
    """One file: the fork's options and every tensor."""

    arch: str
    options: dict[str, object]
    tensors: dict[str, Tensor]

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What the model was called with."""
        return starting_with(self.tensors, "input.")


def cases(folder: Path = DATA) -> list[str]:
    """Names of the goldens that are here, e.g. ``bart_mam``."""
    return sorted(p.stem for p in folder.glob("*.safetensors") if not p.stem.endswith("_base_weights"))


def read(case: str, folder: Path = DATA) -> Golden:
    """Read one golden."""
    path = folder / f"{case}.safetensors"
    return Golden(case.partition("_")[0], metadata_of(path, "options"), tensors_of(path))


def adapt(model: PreTrainedModel, golden: Golden) -> dict[str, Pair]:
    """Attach what the golden's options say, with its weights; return the map of parameters.

    Every new weight of the golden is used, but for those that the fork does not read.
    """
    configs = configs_of(golden.arch, golden.options)
    filler = Filler(golden.tensors)
    pairs: dict[str, Pair] = {}
    if configs:
        hfadapt.attach(model, configs)
        pairs = parameter_map(model, golden.arch)
        for key, pair in pairs.items():
            filler.copy(pair.parameter, f"new.{key}", pair.from_fork)
    unread = re.compile(UNREAD[golden.arch])
    filler.check("new.", [key for key in golden.tensors if unread.search(key)])
    return pairs


def outputs_of(model: PreTrainedModel, golden: Golden) -> Iterator[tuple[str, Tensor]]:
    """Run the golden's inputs; yield each output under its name."""
    out = model(**golden.inputs, output_hidden_states=True, use_cache=False)
    yield "loss", out.loss.view(1)
    yield "logits", out.logits
    if golden.arch == "roberta":
        yield from ((f"hidden.{i}", h) for i, h in enumerate(out.hidden_states))
        return
    yield from ((f"enc_hidden.{i}", h) for i, h in enumerate(out.encoder_hidden_states))
    yield from ((f"dec_hidden.{i}", h) for i, h in enumerate(out.decoder_hidden_states))
