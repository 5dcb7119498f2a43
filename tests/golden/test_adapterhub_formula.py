"""Folders in AdapterHub's format give what the formulas of their configs give, also for kinds without a golden here."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import formula_adapterhub as formula
import pytest
import torch
from golden_adapterhub import fill_fusion
from golden_adapterhub_runs import DATA
from golden_files import close
from safetensors.torch import load_file, save_file
from test_adapterhub_saved import ALONE, THREE, attach, expected
from torch import Tensor
from transformers import BertModel

import hfadapt

SAVED = DATA / "saved"
INPUTS = load_file(str(SAVED / "inputs.safetensors"))


def saved(case: str) -> dict[str, Any]:
    return json.loads((SAVED / case / "x" / "adapter_config.json").read_text())["config"]


def weights_in(folder: Path) -> dict[str, Tensor]:
    found = next(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin"))
    if found.suffix == ".bin":  # the library cannot write its prefix tuning as safetensors
        return torch.load(found, weights_only=True)
    return load_file(str(found))


def union(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"architecture": "union", "configs": list(parts)}


SEQ, PAR, LORA = saved("seq_bn"), saved("par_bn"), saved("lora")
PREFIX, FLAT = saved("prefix_tuning"), saved("prefix_tuning_flat")
EVERY = {"attn_matrices": ["q", "k", "v"], "intermediate_lora": True, "output_lora": True}
KINDS = {
    "unipelt": union(
        PREFIX | {"use_gating": True}, SEQ | {"use_gating": True}, LORA | {"use_gating": True, "alpha": 32}
    ),
    "unipelt_flat_parallel": union(
        FLAT | {"use_gating": True}, PAR | {"use_gating": True}, LORA | {"use_gating": True}
    ),
    "scaled_par_bn": PAR | {"scaling": "learned"},
    "channel_scaled_par_bn": PAR | {"scaling": "channel"},
    "par_bn_mh_and_output": PAR | {"mh_adapter": True},
    "par_bn_norms": PAR | {"ln_before": True, "ln_after": True},
    "seq_bn_gelu_residual_after_ln": SEQ | {"non_linearity": "gelu", "residual_before_ln": False},
    "seq_bn_mh_residual_after_ln": SEQ | {"mh_adapter": True, "residual_before_ln": False},
    "seq_bn_no_ln_after": SEQ | {"residual_before_ln": False, "original_ln_after": False},
    "seq_bn_residual_in_norm": SEQ | {"ln_after": True, "adapter_residual_before_ln": True},
    "double_seq_bn_norms": saved("double_seq_bn") | {"ln_before": True, "ln_after": True, "scaling": 0.7},
    "lora_all": LORA | EVERY,
    "lora_all_gated": LORA | EVERY | {"use_gating": True, "alpha": 3},
    "lora_ffn_only": LORA | EVERY | {"selfattn_lora": False},
    "mam_leave_out": union(PREFIX | {"leave_out": [0]}, PAR | {"leave_out": [0]}),
    "prefix_flat_leave_out": FLAT | {"leave_out": [0]},
}


def base() -> BertModel:
    return BertModel.from_pretrained(SAVED / "base").eval()


def weights_for(config: dict[str, Any], name: str, model: BertModel, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = formula.layout(config, name, model)
    return {key: 0.3 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def folder_of(config: dict[str, Any], name: str, weights: dict[str, Tensor], folder: Path) -> Path:
    """A folder as ``save_adapter`` writes it."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text(
        json.dumps({"config": config, "name": name, "version": "adapters.1.3.0"})
    )
    save_file(weights, str(folder / "adapter.safetensors"))
    return folder


@pytest.mark.parametrize("case", [c for c in ALONE if c not in ("seq_bn_inv", "adapterdrop_skip_layers")])
@torch.no_grad()
def test_the_formulas_give_the_librarys_outputs(case: str) -> None:
    folder, model = SAVED / case / "x", base()
    about = json.loads((folder / "adapter_config.json").read_text())
    found = formula.Formula(model, about["config"], about["name"], weights_in(folder))
    close(found(INPUTS), expected(case)["last_hidden_state"], case, 1e-5)
    names = {k for k in weights_in(folder) if ".pool." not in k and not k.startswith("prefix_tuning.")}
    assert {k for k in formula.layout(about["config"], about["name"], model) if ".pool." not in k} <= names


@torch.no_grad()
def test_the_formulas_of_fusion_give_the_librarys_outputs() -> None:
    case, model = SAVED / "fusion3_static", base()
    adapters = [formula.Formula(model, SEQ, name, weights_in(case / name)) for name in THREE]
    config = json.loads((case / "fusion" / "adapter_fusion_config.json").read_text())["config"]
    found = formula.fused(adapters, weights_in(case / "fusion"), config, INPUTS)
    close(found, expected("fusion3_static")["last_hidden_state"], "fusion3_static", 1e-5)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_kinds_without_a_golden_equal_their_formulas(kind: str, tmp_path: Path) -> None:
    config, model = KINDS[kind], base()
    weights = weights_for(config, kind, model)
    want = formula.Formula(copy.deepcopy(model).double(), config, kind, {k: v.double() for k, v in weights.items()})
    attach(model, folder_of(config, kind, weights, tmp_path / kind), "x")
    model.double()
    alone = model(**INPUTS).last_hidden_state
    close(alone, want(INPUTS), kind)
    assert (alone - copy.deepcopy(want.base)(**INPUTS).last_hidden_state).abs().max() > 0.05


@pytest.mark.parametrize("kind", ["unipelt", "prefix_flat_leave_out", "lora_all_gated", "par_bn_mh_and_output"])
@torch.no_grad()
def test_rows_and_copies_of_a_batch_use_their_own_adapter(kind: str, tmp_path: Path) -> None:
    """``BatchSplit`` and ``Parallel`` of kinds without a golden."""
    config, model, want = KINDS[kind], base(), {}
    plain = copy.deepcopy(model).double()
    for seed, name in enumerate(THREE):
        weights = weights_for(config, name, model, seed)
        attach(model, folder_of(config, name, weights, tmp_path / name), name)
        want[name] = formula.Formula(plain, config, name, {k: v.double() for k, v in weights.items()})(INPUTS)
    model.double()
    rows = ["a", "b", "b", "c", "c", "c"]
    found = model(**INPUTS, task_ids=rows).last_hidden_state
    close(found, torch.stack([want[name][row] for row, name in enumerate(rows)]), kind)
    with hfadapt.active(model, hfadapt.Parallel(*THREE)):
        close(model(**INPUTS).last_hidden_state, torch.cat([want[name] for name in THREE]), kind)


@pytest.mark.parametrize(
    "options",
    [{}, {"value": False}, {"query": False, "key": False}, {"query_before_ln": True}],
    ids=["dynamic", "static", "value_alone", "query_before_ln"],
)
@torch.no_grad()
def test_fusions_without_a_golden_equal_their_formulas(options: dict[str, bool], tmp_path: Path) -> None:
    model = base()
    plain = copy.deepcopy(model).double()
    config = {"query": True, "key": True, "value": True, "query_before_ln": False} | options
    width, adapters = model.config.hidden_size, []
    for seed, name in enumerate(THREE):
        weights = weights_for(SEQ, name, model, seed)
        attach(model, folder_of(SEQ, name, weights, tmp_path / name), name)
        adapters.append(formula.Formula(plain, SEQ, name, {k: v.double() for k, v in weights.items()}))
    generator = torch.Generator().manual_seed(9)
    fusion = {}
    for layer in range(model.config.num_hidden_layers):
        owner = f"encoder.layer.{layer}.output.adapter_fusion_layer.a,b,c"
        for which in (w for w in ("query", "key", "value") if config[w]):
            fusion[f"{owner}.{which}.weight"] = 0.1 * torch.randn(width, width, generator=generator).double()
            if which != "value":
                fusion[f"{owner}.{which}.bias"] = torch.randn(width, generator=generator).double()
    model.double()
    hfadapt.add_fusion(model, THREE, config)
    fill_fusion(model, THREE, fusion).check("")
    close(model(**INPUTS).last_hidden_state, formula.fused(adapters, fusion, config, INPUTS), str(options))
