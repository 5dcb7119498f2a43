"""What only a card shows, where one is: every op captured by a CUDA graph, whose ids change between replays.

``make gpu`` does the same among its first rows, and there each case of a failure is a row of a table.
"""

from __future__ import annotations

import pytest
import torch

import hfadapt_kernels as hk
from hfadapt_kernels.bench.gpu.calls import OPS, make
from hfadapt_kernels.bench.gpu.right import replayed
from hfadapt_kernels.bench.gpu.sizes import CARD

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no card is here")


@pytest.mark.parametrize("op", OPS)
def test_a_step_is_captured_and_follows_ids_that_change_between_replays(op):
    assert replayed(op, CARD, "cuda")["right"]


@pytest.mark.parametrize("op", OPS)
def test_a_step_on_the_card_never_waits_for_it(op):
    """Torch's own watch for synchronisations, from the second forward with the same adapters on."""
    call = make(op, CARD.captured, CARD.dtypes[-1], "cuda")
    with hk.use_backend("triton"):
        for round_ in range(2):
            batch = call.batch()
            torch.cuda.set_sync_debug_mode("error" if round_ else "default")
            try:
                out = call.run(call.leaves, batch)
                torch.autograd.grad(out, call.leaves, torch.ones_like(out), allow_unused=True)
            finally:
                torch.cuda.set_sync_debug_mode("default")
