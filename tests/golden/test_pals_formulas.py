"""The forms of the paper that the published code lacks, against an independent float64 evaluation of its formulas."""

from __future__ import annotations

import golden_pals
import pytest
import torch
from golden_files import DATA as ALL_DATA
from golden_files import tensors_of

import hfadapt
from hfadapt.routing import Routing, Rows
from hfadapt.routing.forward_pass import Pass, StackInputs
from hfadapt.runtime.attachment import deltas_of
from hfadapt_kernels import TaskBatch
from hfadapt_plugins.methods.pal.script_names import parameter_name

DATA = tensors_of(ALL_DATA / "formula" / "pals_ts_variants.safetensors")
ENDS = {
    "encoder": "VE.weight", "encoder_bias": "VE.bias", "decoder": "VD.weight", "decoder_bias": "VD.bias",
    "down": "VE.weight", "down_bias": "VE.bias", "up": "VD.weight", "up_bias": "VD.bias",
    "inner": "ffn.W1", "inner_bias": "ffn.b1", "outer": "ffn.W2", "outer_bias": "ffn.b2",
    "norm_weight": "serial.LN.weight", "norm_bias": "serial.LN.bias",
    "norm_after_weight": "serial.LN.weight", "norm_after_bias": "serial.LN.bias",
}  # fmt: skip

VARIANTS = {
    "low_rank_identity_bias": hfadapt.LowRank(12),
    "low_rank_identity_nobias": hfadapt.LowRank(12, bias=False),
    "low_rank_gelu_mid.refcode": hfadapt.LowRank(12, activation="gelu"),
    "pal_linear_out_heads2": hfadapt.PAL(12, num_heads=2),
    "pal_linear_out_heads6": hfadapt.PAL(12, num_heads=6),
    "pal_linear_out_heads12": hfadapt.PAL(12, num_heads=12),
    "pal_gelu_out_heads6.refcode": hfadapt.PAL(12, num_heads=6, activation="gelu"),
    "ffn_g_linear_out": hfadapt.PAL(12, g="ffn"),
    "serial_low_rank_identity_bias": hfadapt.LowRank(12, position="serial"),
}


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_task_function_equals_the_formula(variant: str) -> None:
    golden = golden_pals.read("pals")
    model = golden_pals.base(golden)
    config = VARIANTS[variant]
    hfadapt.attach(model, config, "task0")
    for path, parameter in hfadapt.parameters_of(model, "task0").items():
        leaf = path.rpartition(".")[2]
        if leaf in ENDS:
            parameter.copy_(DATA[ENDS[leaf]])
        else:  # query, key and value are those of the golden model's first layer
            parameter.copy_(golden.weights[parameter_name(path, 0)])
    source, mask = DATA["in.h"], DATA["in.attention_mask"]
    _, delta = next(iter(deltas_of(model, "task0")))
    state = hfadapt.attachment(model)
    routing = Routing(state.names, state.steps, None, 0, source.shape[0], StackInputs(mask), Pass())
    rows = Rows(("task0",), TaskBatch.single(source.shape[0]), routing, model.get_submodule(delta.site.leaf))
    serial = variant.startswith("serial")
    got = delta(source if serial else torch.zeros_like(source), source, rows)
    torch.testing.assert_close(got, DATA[f"out.{variant}"], rtol=0, atol=1e-9)


def test_every_formula_of_the_file_is_covered() -> None:
    assert {k.removeprefix("out.") for k in DATA if k.startswith("out.")} == set(VARIANTS)
