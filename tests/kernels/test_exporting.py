"""What stands for the ops in exported graphs gives what the ops give, for rows of all tasks and of none."""

from __future__ import annotations

import pytest
import torch

from hfadapt_kernels import exporting
from hfadapt_kernels.grouped_lora import schema as lora
from hfadapt_kernels.grouped_lora.reference import grouped_lora_reference
from hfadapt_kernels.parallel_adapter_norm import schema as norm
from hfadapt_kernels.prefix_attention import schema as prefix
from hfadapt_kernels.prefix_attention.reference import FORMS, prefix_attention_reference

IDS = torch.tensor([1, -1, 0, 1])


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("ids", [IDS, None])
@pytest.mark.parametrize("added", [True, False])
def test_grouped_lora(ids, added):
    torch.manual_seed(0)
    x, y = draw(4, 3, 6), draw(4, 3, 5) if added else None
    a, b, scale = [draw(2, 6), draw(3, 6)], [draw(5, 2), draw(5, 3)], [0.5, 2.0]
    out, _ = exporting.decompositions()[lora.forward_op](x, y, a, b, [], scale, ids, 0.0, None, False)
    torch.testing.assert_close(out, grouped_lora_reference(x, y, a, b, [], scale, ids, 0.0, None))


@pytest.mark.parametrize("ids", [IDS, None])
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_parallel_adapter_norm(ids, kind):
    torch.manual_seed(0)
    x, down, up = draw(4, 3, 6), [draw(2, 6), draw(3, 6)], [draw(6, 2), draw(6, 3)]
    weights = (down, up, [], [], [], [1.0, 0.5], draw(6), None)
    given = (x, x.clone(), x, *weights, ids, None, 1, kind, 1e-5, 0.0, 0.0, False)
    out, *_ = exporting.decompositions()[norm.forward_op](*given)
    torch.testing.assert_close(out, norm.forward_op(*given)[0])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("masked", [True, False])
def test_prefix_attention(form, masked):
    torch.manual_seed(0)
    q, k, v = draw(4, 4, 3, 8), draw(4, 2, 5, 8), draw(4, 2, 5, 8)
    pk, pv = [draw(2, 3, 8), draw(2, 1, 8)], [draw(2, 3, 8), draw(2, 1, 8)]
    mask = torch.rand(4, 1, 3, 5) > 0.3 if masked else None
    given = (q, k, v, pk, pv, IDS, mask, None, not masked, 0.3, form, 0.0, None)
    out, *_ = exporting.decompositions()[prefix.forward_op](*given)
    torch.testing.assert_close(out, prefix_attention_reference(*given)[0])
