"""Every variant of the unified view's published code: outputs, losses, gradients and generated ids in float64."""

from __future__ import annotations

import golden_unify
import pytest
import torch
from golden_unify import adapt, base_model, outputs_of, read

CASES = golden_unify.cases()
GENERATING = [c for c in CASES if any(k.startswith("output.generate") for k in read(c).tensors)]
TOLERANCE = 1e-9


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("case", CASES)
def test_outputs_loss_and_gradients(case: str, implementation: str) -> None:
    golden = read(case)
    model = base_model(golden.arch, implementation)
    pairs = adapt(model, golden)
    found = dict(outputs_of(model, golden))
    for key, value in found.items():
        torch.testing.assert_close(
            value.detach(),
            golden.tensors[f"output.{key}"],
            rtol=TOLERANCE,
            atol=TOLERANCE,
            msg=lambda m, k=key: f"{k}: {m}",
        )
    wanted = golden.outputs("grad.")
    if not pairs:
        assert not wanted
        return
    found["loss"].sum().backward()
    for key, value in wanted.items():
        pair = pairs[key.removeprefix("grad.")]
        assert pair.parameter.grad is not None, key
        torch.testing.assert_close(
            pair.to_fork(pair.parameter.grad), value, rtol=TOLERANCE, atol=TOLERANCE, msg=lambda m, k=key: f"{k}: {m}"
        )


@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no-cache"])
@pytest.mark.parametrize("case", GENERATING)
def test_generated_ids(case: str, use_cache: bool) -> None:
    golden = read(case)
    model = base_model(golden.arch)
    adapt(model, golden)
    inputs = {k: golden.inputs[k] for k in ("input_ids", "attention_mask")}
    for key, want in golden.outputs("generate.beams").items():
        beams = int(key.removeprefix("generate.beams"))
        got = model.generate(**inputs, **golden_unify.GENERATE, num_beams=beams, use_cache=use_cache, do_sample=False)
        assert got.tolist() == want.tolist(), key
