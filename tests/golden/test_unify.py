"""Every variant of the unified view's published code: outputs, losses, gradients and generated ids in float64."""

from __future__ import annotations

import golden_unify
import pytest
from golden_files import close, starting_with
from golden_unify import adapt, outputs_of, read
from golden_unify_base import base_model

CASES = golden_unify.cases()
GENERATING = [c for c in CASES if starting_with(read(c).tensors, "output.generate")]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("case", CASES)
def test_outputs_loss_and_gradients(case: str, implementation: str) -> None:
    golden = read(case)
    model = base_model(golden.arch, implementation)
    pairs = adapt(model, golden)
    found = dict(outputs_of(model, golden))
    for key, value in found.items():
        close(value, golden.tensors[f"output.{key}"], key)
    wanted = starting_with(golden.tensors, "output.grad.")
    assert bool(wanted) == bool(pairs)
    if pairs:
        found["loss"].sum().backward()
    for key, value in wanted.items():
        gradient = pairs[key].parameter.grad
        assert gradient is not None, key
        close(pairs[key].to_fork(gradient), value, f"gradient of {key}")


@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no-cache"])
@pytest.mark.parametrize("case", GENERATING)
def test_generated_ids(case: str, use_cache: bool) -> None:
    golden = read(case)
    model = base_model(golden.arch)
    adapt(model, golden)
    inputs = {k: golden.inputs[k] for k in ("input_ids", "attention_mask")}
    for key, want in starting_with(golden.tensors, "output.generate.beams").items():
        got = model.generate(
            **inputs, **golden_unify.GENERATE, num_beams=int(key), use_cache=use_cache, do_sample=False
        )
        assert got.tolist() == want.tolist(), key
