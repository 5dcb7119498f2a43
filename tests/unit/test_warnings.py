"""Warnings raised from our own files end a test; those about what a caller wrote reach the caller."""

from __future__ import annotations

import warnings

import pytest
import torch
from transformers.utils.deprecation import deprecate_kwarg

import hfadapt
from hfadapt.testing.tiny import tiny_model

IDS = torch.tensor([[3, 4, 5]])


@pytest.mark.parametrize(
    "module", ["hfadapt", "hfadapt.runtime.root_hooks", "hfadapt_kernels.op", "hfadapt_plugins.methods"]
)
def test_a_warning_from_our_files_is_an_error_and_one_from_others_is_not(module):
    with pytest.raises(DeprecationWarning, match="gone"):
        warnings.warn_explicit("gone", DeprecationWarning, "file.py", 1, module=module)
    for other in ("hfadaptable.other", "other.hfadapt", "hfadapt.runtime.handing_on"):
        with warnings.catch_warnings(record=True) as heard:
            warnings.warn_explicit("gone", DeprecationWarning, "file.py", 1, module=other)
        assert [str(one.message) for one in heard] == ["gone"]


@pytest.mark.parametrize("method", ["forward", "generate"])
def test_a_deprecated_argument_of_a_callers_is_the_callers_to_hear_of(monkeypatch, method):
    kind = type(tiny_model("gpt2", head="causal-lm"))
    named = deprecate_kwarg("older", new_name="attention_mask", version="99.0.0")
    monkeypatch.setattr(kind, method, named(getattr(kind, method)))
    model = tiny_model("gpt2", head="causal-lm")
    hfadapt.attach(model, "lora")
    call = model if method == "forward" else model.generate
    more = {} if method == "forward" else {"max_new_tokens": 1, "do_sample": False}
    with warnings.catch_warnings(record=True) as heard:
        call(IDS, older=torch.ones_like(IDS), **more)
    assert any("`older` is deprecated" in str(one.message) for one in heard)
