"""ONNX graphs of adapted models: several tasks mixed, one merged, and what is refused by name."""

from __future__ import annotations

import json

import pytest
import torch

import hfadapt
from hfadapt.errors import CheckpointError, ConfigError
from hfadapt.inference import onnx as exporting
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import toy_model, toy_tasks


def need_the_extra():
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="the extra onnx")


def adapted(*methods, kind="bert", head="sequence-classification"):
    model = tiny_model(kind, head, seed=0).eval()
    for name, method in zip("abc", methods, strict=False):
        hfadapt.attach(model, method, name, verify=False)
    randomize(model)
    return model


def run(folder, **inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    (found,) = session.run(None, {name: inputs[name].numpy() for name in names})
    return torch.from_numpy(found)


def texts(rows, tokens):
    ids = torch.randint(3, 90, (rows, tokens), generator=torch.Generator().manual_seed(rows))
    mask = torch.ones_like(ids)
    mask[-1, tokens // 2 + 1 :] = 0
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


def test_tasks_of_many_methods_share_a_graph_of_any_size(tmp_path):
    need_the_extra()
    model = adapted(hfadapt.LoRA(3), "seq_bn", "prefix")
    said = exporting.export_onnx(model, tmp_path, ["c", "a", "b"])
    assert said == json.loads((tmp_path / "hfadapt_onnx.json").read_text())
    assert said["tasks"] == ["c", "a", "b"] and said["output"] == "logits" and not said["merged"]
    for rows, tokens in ((7, 13), (1, 3), (2, 64)):
        ids = torch.arange(rows) % 3
        with torch.no_grad():
            want = model(**texts(rows, tokens), task_ids=["cab"[i] for i in ids]).logits
        found = run(tmp_path, **texts(rows, tokens), task_ids=ids)
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)
    for unknown in (-1, 3):
        with pytest.raises(Exception, match="invalid index"):
            run(tmp_path, **texts(1, 3), task_ids=torch.tensor([unknown]))


def test_routed_and_fused_rows_and_a_shared_update_stand_in_a_graph(tmp_path):
    need_the_extra()
    model = adapted("lora", hfadapt.MTLLoRA(r=2, n_up=2), "seq_bn")
    hfadapt.attach(model, "seq_bn", "d", verify=False)
    hfadapt.add_router(model, ("a", "b"), activate_it=False)
    hfadapt.add_fusion(model, ("c", "d"))
    randomize(model)
    hfadapt.compose(model, "routed", hfadapt.Router("a", "b", top_k=1))
    hfadapt.compose(model, "fused", hfadapt.Fuse("c", "d"))
    names = ["fused", "b", "routed"]
    assert exporting.export_onnx(model, tmp_path, names)["tasks"] == names
    ids = torch.arange(7) % 3
    with torch.no_grad():
        want = model(**texts(7, 13), task_ids=[names[i] for i in ids]).logits
        plain = model(**texts(7, 13), task_ids=[None] * 7).logits
    assert (want - plain).abs().amax(1).min() > 1e-2
    torch.testing.assert_close(run(tmp_path, **texts(7, 13), task_ids=ids), want, rtol=1e-4, atol=1e-4)


def test_one_task_of_a_model_of_several_is_merged_under_its_head(tmp_path):
    need_the_extra()
    tasks = toy_tasks()
    model = toy_model(tasks, method="lora").eval()
    randomize(model.base)
    name = tasks[0].name
    said = exporting.export_onnx(model, tmp_path, name)
    assert said["merged"] and said["inputs"] == ["input_ids", "attention_mask", "token_type_ids"]
    with torch.no_grad():
        want = model(**texts(5, 9), task_ids=name).logits
    torch.testing.assert_close(run(tmp_path, **texts(5, 9)), want, rtol=1e-4, atol=1e-4)
    assert hfadapt.attachment(model.base).names == tuple(task.name for task in tasks)  # the model is as it was


@pytest.mark.parametrize(
    ("make", "tasks", "error", "words"),
    [
        (lambda: adapted("lora", kind="t5", head=None), None, CheckpointError, "T5Model.*an encoder-decoder"),
        (lambda: adapted("lora", kind="vit", head=None), None, CheckpointError, "ViTModel.*pixel_values"),
        (lambda: adapted("lora", "lora"), "ab", ConfigError, "'ab'.*allowed: some of a, b"),
        (lambda: adapted("lora", "lora"), ["a", "a"], ConfigError, "each once"),
        (lambda: "a model", None, ConfigError, "no model.*hfadapt.load"),
    ],
)
def test_what_is_not_exported_is_refused_by_name(tmp_path, monkeypatch, make, tasks, error, words):
    monkeypatch.setattr(exporting, "_PACKAGES", ())
    with pytest.raises(error, match=words):
        exporting.export_onnx(make(), tmp_path / "out", tasks)
    assert not (tmp_path / "out").exists()


def test_a_missing_extra_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "_PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(ConfigError, match=r"no_such_package.*pip install 'hfadapt\[onnx\]'"):
        exporting.export_onnx(adapted("lora"), tmp_path / "out")


def test_a_graph_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "_PACKAGES", ())
    monkeypatch.setattr(exporting, "_write", lambda graph, path, methods: path.write_bytes(b"a graph"))

    def differs(*_):
        raise CheckpointError("ONNX Runtime computes something else than the model")

    monkeypatch.setattr(exporting, "_largest_difference", differs)
    with pytest.raises(CheckpointError, match="something else"):
        exporting.export_onnx(adapted("lora"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
