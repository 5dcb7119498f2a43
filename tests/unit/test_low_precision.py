"""On a base in bfloat16 or float16 what is trained is float32: steps of an optimizer do not round to nothing."""

import pytest
import torch
from safetensors.torch import load_file

import hfadapt
from hfadapt import MultiTaskModel, OwnHead, Task
from hfadapt.adapters.files import WEIGHTS_FILE
from hfadapt.errors import AttachError
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model

HEAD = "sequence-classification"
INPUTS = tiny_inputs("bert", HEAD, padding="right")
MIXED = ["a", "b", "a"]
METHODS = {
    "bottleneck": "pfeiffer",
    "invertible": "seq_bn_inv",
    "lora": "lora",
    "low_rank": "low_rank",
    "mam": hfadapt.MAM({"num_virtual_tokens": 3, "mlp_size": 8}, {"r": 8, "non_linearity": "gelu"}),
    "pal": hfadapt.PAL(8, num_heads=2),
    "parallel": "par_bn",
    "pooler": "pooler",
    "top": hfadapt.TopLayer(),
    "unipelt": hfadapt.UniPELT({"num_virtual_tokens": 3, "mlp_size": 8}, {"non_linearity": "gelu"}, {"r": 2}),
}


def base(dtype=torch.bfloat16, kind="bert", head=HEAD):
    return tiny_model(kind, head).to(dtype)


def adapted(method="lora", dtype=torch.bfloat16, **options):
    model = base(dtype)
    hfadapt.attach(model, method, names=["a", "b"], seed=0, **options)
    randomize(model)
    return model


@torch.no_grad()
def run(model, **more):
    return model(**INPUTS, **more)[0]


def dtypes(model, name="a"):
    return {p.dtype for p in hfadapt.parameters_of(model, name).values()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
def test_what_is_trained_is_float32_and_reads_and_returns_the_bases_dtype(method, dtype):
    model = adapted(method, dtype)
    assert dtypes(model) == dtypes(model, "b") == {torch.float32}
    mixed = run(model, task_ids=MIXED)
    assert mixed.dtype == dtype
    exact = adapted(method, torch.float32)
    for row, name in enumerate(MIXED):
        assert torch.equal(mixed[row], run(model, task_ids=name)[row])
        torch.testing.assert_close(mixed[row].float(), run(exact, task_ids=name)[row], rtol=0.05, atol=0.05)
    model(**INPUTS, task_ids=MIXED)[0].float().square().sum().backward()
    for name in "ab":
        assert all(p.grad.dtype == torch.float32 for p in hfadapt.parameters_of(model, name).values())


@pytest.mark.parametrize("method", ["lora", "pfeiffer"])
def test_fifty_small_steps_move_nearly_all_weights_and_hardly_any_in_bfloat16(method):
    moved = {}
    for autocast in (True, False):
        model = adapted(method, autocast_adapter_dtype=autocast).train()
        own = hfadapt.parameters_of(model, "a")
        before = {n: p.detach().clone() for n, p in own.items()}
        optimizer = torch.optim.AdamW(hfadapt.trainable_parameters(model).values(), lr=2e-5)
        for _ in range(50):
            optimizer.zero_grad()
            model(**INPUTS, labels=torch.tensor([0, 1, 0]), task_ids="a").loss.backward()
            optimizer.step()
        count = sum(p.numel() for p in own.values())
        moved[autocast] = sum((p != before[n]).sum().item() for n, p in own.items()) / count
    assert moved[True] > 0.95 and moved[False] < 0.6, moved


def test_the_second_adapter_has_the_dtype_of_the_first_and_a_switch_gives_the_bases():
    model = base()
    hfadapt.attach(model, "lora", "a", autocast_adapter_dtype=False)
    hfadapt.attach(model, "pfeiffer", "b", modules_to_save=["LayerNorm"])
    assert dtypes(model) == dtypes(model, "b") == {torch.bfloat16}
    with pytest.raises(AttachError, match="have one dtype"):
        hfadapt.attach(model, "lora", "c", autocast_adapter_dtype=True)
    hfadapt.detach(model)
    hfadapt.attach(model, "lora", "a")
    hfadapt.attach(model, "pfeiffer", "b")
    assert dtypes(model) == dtypes(model, "b") == {torch.float32}


@pytest.mark.parametrize("autocast", [True, False])
def test_a_folder_keeps_the_dtype(autocast, tmp_path):
    model = adapted(autocast_adapter_dtype=autocast)
    hfadapt.save(model, tmp_path)
    kept = torch.float32 if autocast else torch.bfloat16
    assert {t.dtype for t in load_file(tmp_path / WEIGHTS_FILE).values()} == {kept}
    again = hfadapt.load(tmp_path, base())
    assert dtypes(again) == {kept} and torch.equal(run(again, task_ids=MIXED), run(model, task_ids=MIXED))
    assert dtypes(hfadapt.load(tmp_path, base(torch.float32))) == {torch.float32}


def test_packed_and_merged_models_compute_the_same():
    model = adapted()
    want = run(model, task_ids="a")
    hfadapt.pack(model)
    torch.testing.assert_close(run(model, task_ids="a"), want, rtol=0.05, atol=0.05)
    hfadapt.unpack(model)
    assert torch.equal(run(model, task_ids="a"), want)
    hfadapt.detach(model, "b")
    merged = hfadapt.merge(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(run(model), want, rtol=0.05, atol=0.05)
    merged.unmerge()
    assert dtypes(model) == {torch.float32} and torch.equal(run(model), want)


def test_fusion_layers_and_their_head_are_float32():
    model = adapted("pfeiffer")
    hfadapt.add_fusion(model, ("a", "b"))
    trained = hfadapt.trainable_parameters(model)
    assert trained and {p.dtype for p in trained.values()} == {torch.float32}
    assert run(model).dtype == torch.bfloat16
    model(**INPUTS)[0].sum().backward()


def test_a_float64_base_keeps_its_precision():
    model = base(torch.float64)
    hfadapt.attach(model, "lora", "a")
    assert dtypes(model) == {torch.float64}


def test_the_own_head_of_a_multi_task_model_is_float32(tmp_path):
    base().save_pretrained(tmp_path / "base")
    tasks = [Task(name, OwnHead()) for name in "ab"]
    model = MultiTaskModel.from_pretrained(tmp_path / "base", tasks=tasks, method="lora", dtype=torch.bfloat16).eval()
    assert model.base.bert.embeddings.word_embeddings.weight.dtype == torch.bfloat16
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    with torch.no_grad():
        model.base.classifier.weight.normal_()
    model.save_pretrained(tmp_path / "out")
    again = MultiTaskModel.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    assert torch.equal(again(**INPUTS, task_ids=MIXED).logits, model(**INPUTS, task_ids=MIXED).logits)
    model(**INPUTS, task_ids=MIXED, labels=torch.tensor([0.0, 1, 0])).loss.backward()
    assert model.base.classifier.weight.grad.dtype == torch.float32
