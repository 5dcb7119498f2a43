"""TaskBatch, backend choice, activations and the dropout hash."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import hfadapt_kernels as hk
from hfadapt_kernels import backend, native
from hfadapt_kernels.backend import FusedOp
from hfadapt_kernels.dropout import draw_seed, keep_scale


def test_ids_out_of_range_name_the_row_and_the_range():
    with pytest.raises(hk.RowIdError, match=r"ids\[1\] is out of range: expected -1 \(no task\) or 0..2, got 3"):
        hk.TaskBatch.from_ids([0, 3], 3)
    with pytest.raises(hk.RowIdError, match="got -2"):
        hk.TaskBatch.from_ids([-2], 3)


@pytest.mark.parametrize("bad", [torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2)], ids=["rank", "dtype"])
def test_ids_that_are_no_integer_vector_are_refused(bad):
    with pytest.raises(hk.ShapeError, match="integer tensor"):
        hk.TaskBatch.from_ids(bad, 1)


def test_segments_group_rows_and_use_slices_for_neighbours():
    batch = hk.TaskBatch.from_ids([2, 0, 0, -1, 2], 4)
    found = [(s.task, s.rows if isinstance(s.rows, slice) else s.rows.tolist()) for s in batch.segments()]
    assert found == [(-1, slice(3, 4)), (0, slice(1, 3)), (2, [0, 4])]


def test_order_is_stable_and_counts_empty_tasks():
    rows, starts = hk.TaskBatch.from_ids([2, 0, 0, -1, 2], 4).order()
    assert rows.tolist() == [3, 1, 2, 0, 4]
    assert starts.tolist() == [1, 3, 3, 5, 5]


def test_one_task_for_every_row_is_uniform():
    assert hk.TaskBatch.from_ids([0, 0], 1).uniform
    assert not hk.TaskBatch.from_ids([0, -1], 1).uniform
    assert hk.TaskBatch.single(3).op_ids is None


def test_expand_repeats_rows_and_is_cached():
    batch = hk.TaskBatch.from_ids([1, 0], 2)
    assert batch.expand(2).ids.tolist() == [1, 1, 0, 0]
    assert batch.expand(2) is batch.expand(2)
    assert batch.expand(1) is batch


def test_from_ids_traces_without_graph_breaks():
    def count(ids):
        return hk.TaskBatch.from_ids(ids, 3).order()[1]

    compiled = torch.compile(count, fullgraph=True, backend="eager")
    assert compiled(torch.tensor([2, 0, 0])).tolist() == [0, 2, 2, 3]


@pytest.fixture
def fresh_library():
    """Let the library be judged anew, now and after the test."""
    caches = (native._load, backend._device_reason)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def test_without_a_library_the_reason_is_what_the_build_said(tmp_path: Path) -> None:
    told = tmp_path / "_C.not_built.txt"
    assert "left out" in native._why_not_built(told) and "--force-reinstall" in native._why_not_built(told)
    told.write_text("the compiler g++-99 ended with exit status 1\n", encoding="utf-8")
    reason = native._why_not_built(told)
    assert "not built: the compiler g++-99 ended with exit status 1; " in reason and "HFADAPT_BUILD_CPP=1" in reason


@pytest.mark.skipif(not native.available(), reason=str(native.why_not()))
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            ("Tensor? mask, Tensor? bias, bool causal", "Tensor? mask, bool causal"),
            "prefix_attention_forward takes other",
        ),
        (('"isa(int wanted)', '"isas(int wanted)'), "isas is missing"),
    ],
    ids=["other arguments", "missing op"],
)
def test_a_library_of_other_sources_is_reported_and_not_used(
    change, reason, tmp_path, monkeypatch, caplog, fresh_library
):
    other = tmp_path / "bindings.cpp"
    source = native._BINDINGS.read_text("utf-8")
    assert source.count("m.def(") == len(native._DEFINITION.findall(source)) and change[0] in source
    other.write_text(source.replace(*change), "utf-8")
    monkeypatch.setattr(native, "_BINDINGS", other)
    assert reason in native.why_not() and "build it again" in native.why_not()
    assert [record.levelname for record in caplog.records] == ["WARNING"] and reason in caplog.text
    op = backend._OPS["pal_attention"]
    assert op._choose("auto", "cpu", torch.float32, op.example_facts).backend == "reference"
    with pytest.raises(hk.BackendError, match="other sources"):
        op._choose("cpu", "cpu", torch.float32, op.example_facts)
    assert {row["reason"] for row in backend.explain() if row["backend"] == "cpu"} == {native.why_not()}


def test_a_library_without_sources_beside_it_needs_none(tmp_path, monkeypatch, fresh_library):
    before = native.available()
    native._load.cache_clear()
    monkeypatch.setattr(native, "_BINDINGS", tmp_path / "none.cpp")
    assert native.available() is before


def test_an_explicit_backend_that_cannot_run_raises_with_the_reason(monkeypatch):
    monkeypatch.setattr(backend, "_OPS", {})
    op = FusedOp("test_only")
    op.register("reference", lambda: None)
    op.register("cpu", lambda: None, supports=lambda device, dtype: "no float64 kernel")
    with hk.use_backend("cpu"), pytest.raises(hk.BackendError, match="cannot run"):
        op.select("cpu", torch.float64)
    with hk.use_backend("triton"), pytest.raises(hk.BackendError, match="no triton implementation"):
        op.select("cpu", torch.float32)
    with hk.use_backend("auto"):
        assert op.select("cpu", torch.float64).backend == "reference"


def test_an_unknown_backend_name_lists_the_known_ones(monkeypatch):
    monkeypatch.setenv("HFADAPT_BACKEND", "cuda")
    with pytest.raises(hk.BackendError, match="auto or one of"):
        hk.requested_backend()


@pytest.mark.parametrize("name", sorted(hk.ACTIVATIONS))
def test_activation_derivative_equals_autograd(name):
    activation = hk.get_activation(name)
    x = torch.linspace(-4, 4, 41, dtype=torch.float64).requires_grad_()
    (expected,) = torch.autograd.grad(activation.fn(x).sum(), x)
    torch.testing.assert_close(activation.derivative(x.detach()), expected, atol=1e-12, rtol=1e-12)


def test_dropout_mask_replays_has_the_right_rate_and_differs_between_seeds():
    rows, cols = torch.arange(400)[:, None], torch.arange(256)
    torch.manual_seed(3)
    seed, other = draw_seed("cpu"), draw_seed("cpu")
    kept = keep_scale(seed, rows, cols, 0.25, torch.float64)
    assert torch.equal(kept, keep_scale(seed, rows, cols, 0.25, torch.float64))
    assert set(kept.unique().tolist()) == {0.0, 1 / 0.75}
    assert abs((kept > 0).double().mean().item() - 0.75) < 0.01
    agree = ((kept > 0) == (keep_scale(other, rows, cols, 0.25, torch.float64) > 0)).double().mean().item()
    assert abs(agree - (0.75**2 + 0.25**2)) < 0.01
