"""A concatenated prefix is the gated sum of He et al. 2022 (eq. 7), and its variants are what the paper says."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hfadapt_kernels import TaskBatch, prefix_attention
from hfadapt_plugins.methods.prefix.attend import Part, PrefixAttention

FILE = Path(__file__).parent / "data" / "formula" / "prefix_identity.safetensors"
EXPECTED = {"concat": "prefix_concat", "gate_add": "gated", "no_gating": "no_gating", "relu": "mh_pa_relu"}


def eager(module, query, key, value, mask, **options):
    scores = query @ key.transpose(-1, -2) * options["scaling"]
    weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
    return (weights @ value).transpose(1, 2), weights


def attend(form: str, wants_weights: bool = False) -> torch.Tensor:
    data = load_file(str(FILE))
    part = Part([data["P_k"]], [data["P_v"]], TaskBatch.single(data["q"].shape[0]), form)
    attention = PrefixAttention(eager, "eager", wants_weights).with_part(part)
    module = nn.Module().eval()
    scaling = data["q"].shape[-1] ** -0.5
    out, _ = attention(module, data["q"], data["k"], data["v"], data["additive_mask"], scaling=scaling, dropout=0.0)
    return out.transpose(1, 2)


@pytest.mark.parametrize("form", EXPECTED)
def test_forms(form: str) -> None:
    want = load_file(str(FILE))[f"out.{EXPECTED[form]}"]
    torch.testing.assert_close(attend(form), want, rtol=1e-9, atol=1e-9)


def test_longer_keys_give_what_the_kernel_gives() -> None:
    torch.testing.assert_close(attend("concat", wants_weights=True), attend("concat"), rtol=1e-12, atol=1e-12)


def test_the_gate_is_the_share_of_the_prefix_under_the_mask() -> None:
    data = SimpleNamespace(**{k.replace(".", "_"): v for k, v in load_file(str(FILE)).items()})
    _, gate = prefix_attention(
        data.q, data.k, data.v, [data.P_k], [data.P_v], TaskBatch.single(data.q.shape[0]), mask=data.additive_mask,
        return_gate=True,
    )  # fmt: skip
    torch.testing.assert_close(gate.unsqueeze(-1), data.out_lambda, rtol=1e-9, atol=1e-9)
