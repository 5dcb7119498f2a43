"""A change that fails puts every tensor back as it was, whatever of it was changed; one that was not is left alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from hfadapt.adapters.restore import all_or_nothing
from hfadapt.testing.tiny import tiny_model

CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "another dtype": lambda t: t.double(),
    "another place": lambda t: t.clone(),
    "a part of the same memory": lambda t: t[:3],
    "the same memory in another order": lambda t: t.T,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_tensor_that_was_changed_is_put_back(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    model = tiny_model("bert")
    weight = model.get_submodule("encoder.layer.0.attention.self.query").weight
    before, form = weight.detach().clone(), (weight.shape, weight.stride(), weight.dtype, weight.data_ptr())
    with pytest.raises(KeyboardInterrupt), all_or_nothing(model):
        weight.data = change(weight.data)
        weight.requires_grad_(False)
        raise KeyboardInterrupt
    assert (weight.shape, weight.stride(), weight.dtype, weight.data_ptr()) == form and weight.requires_grad
    assert torch.equal(weight, before)


def test_a_sparse_tensor_hides_no_error() -> None:
    model = tiny_model("bert")
    model.extra = nn.Parameter(torch.eye(3).to_sparse(), requires_grad=False)
    with pytest.raises(ZeroDivisionError), all_or_nothing(model):
        raise ZeroDivisionError
