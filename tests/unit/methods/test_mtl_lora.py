"""MTL-LoRA: the paper's formula, what the tasks of a group share and what each has alone, and the way in and out."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hfadapt
from hfadapt.errors import AttachError, CheckpointError, ConfigError
from hfadapt.runtime import deltas_of
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model
from hfadapt_plugins.methods.lora.prototype import top_right_singular_vector
from hfadapt_plugins.methods.mtl_lora.delta import task_up

CONFIG = hfadapt.MTLLoRA(r=4, n_up=3)


def adapted(config=CONFIG, names=("a", "b"), kind="bert", seed=7, **more):
    model = tiny_model(kind, **more).double()
    hfadapt.attach(model, config, names=names, seed=0, verify=False)
    randomize(model, seed)
    return model


@torch.no_grad()
def output(model, kind="bert", **call) -> Tensor:
    return model(**tiny_inputs(kind, batch=3), **call)[0]


def paper(own, config, x: Tensor) -> Tensor:
    """``s sum_i exp(w_i / t) / sum_j exp(w_j / t) B_i L A x`` as it is written."""
    powers = [torch.exp(w / config.temperature) for w in own.mix]
    matrix = own.matrix if own.matrix.dim() == 2 else torch.diag(own.matrix)
    inner = (x @ own.lora_a.T) @ matrix.T
    return config.scale * sum(p / sum(powers) * (inner @ b.T) for p, b in zip(powers, own.lora_b, strict=True))


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        hfadapt.MTLLoRA(r=4, n_up=3, task_matrix="diagonal", temperature=0.1),
        hfadapt.MTLLoRA(r=2, n_up=1, lora_alpha=3.0, use_rslora=True),
    ],
    ids=["full", "diagonal", "one"],
)
def test_a_mixed_batch_computes_the_papers_sum(config) -> None:
    model = adapted(config)
    leaf = model.encoder.layer[0].attention.self.query
    weight, bias = leaf.weight.detach().clone(), leaf.bias.detach().clone()
    delta = next(delta for path, delta in deltas_of(model) if path.startswith("encoder.layer.0.attention.self.query"))
    seen = {}
    leaf.register_forward_hook(lambda _, args, out: seen.update(x=args[0], y=out))
    output(model, task_ids=["b", "a", "b"])
    for row, name in enumerate(["b", "a", "b"]):
        x = seen["x"][row]
        want = x @ weight.T + bias + paper(delta.own(name), config, x)
        torch.testing.assert_close(seen["y"][row], want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 3), (3,)], ids=["full", "diagonal"])
def test_gradients_of_a_tasks_matrix_are_difference_quotients(shape) -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(s, generator=generator, dtype=torch.float64) for s in ((2, 5, 3), (2,), shape)]
    for part in parts:
        part.requires_grad_()
    assert torch.autograd.gradcheck(lambda *given: task_up(*given, 0.7), parts)


def test_every_part_of_a_model_has_the_gradient_of_its_difference_quotient() -> None:
    model, inputs, ids = adapted(), tiny_inputs("bert", batch=3), ["b", "a", "b"]

    def value() -> Tensor:
        return model(**inputs, task_ids=ids)[0].square().sum()

    value().backward()
    own = next(iter(deltas_of(model)))[1].own("b")
    for parameter in (own.lora_a, own.lora_b, own.mix, own.matrix):
        flat, grad = parameter.data.view(-1), parameter.grad.view(-1)
        for place in {0, flat.numel() // 2, flat.numel() - 1}:
            before = flat[place].item()
            found = []
            for step in (1e-6, -1e-6):
                flat[place] = before + step
                with torch.no_grad():
                    found.append(value().item())
            flat[place] = before
            assert grad[place].item() == pytest.approx((found[0] - found[1]) / 2e-6, rel=1e-4, abs=1e-5)


def test_a_large_weight_overflows_nowhere() -> None:
    b, mix = torch.ones(2, 3, 1), torch.tensor([1e4, -1e4])
    assert torch.equal(task_up(b, mix, torch.ones(1, 1), 0.05), torch.ones(3, 1))


def test_a_group_starts_at_the_base_and_a_later_task_at_the_group() -> None:
    model = tiny_model("bert").double()
    before = output(model)
    hfadapt.attach(model, CONFIG, names=["a", "b"], seed=0)
    assert torch.equal(output(model, task_ids=["a", "b", None]), before)
    randomize(model)
    hfadapt.attach(model, CONFIG, names="c", seed=1)
    assert not torch.equal(output(model, task_ids="c"), before)


def test_tasks_of_a_group_share_a_and_b_and_nothing_else() -> None:
    model = adapted(names=["a", "b"])
    hfadapt.attach(model, hfadapt.MTLLoRA(r=4, n_up=3, group="other"), names="c")
    for _, delta in deltas_of(model):
        a, b, c = (delta.own(name) for name in "abc")
        assert a.lora_a is b.lora_a and a.lora_b is b.lora_b
        assert a.mix is not b.mix and a.matrix is not b.matrix
        assert c.lora_a is not a.lora_a and c.lora_b is not a.lora_b
    width = 4 * 32 + 3 * 32 * 4
    assert hfadapt.attachment(model).names == ("a", "b", "c")
    places = len(list(deltas_of(model)))
    alone = sum(p.numel() for p in hfadapt.parameters_of(model, "a").values())
    assert alone == places * (width + 3 + 16)


def test_rows_of_one_task_train_what_is_shared_and_that_task_alone() -> None:
    model = adapted(names=["a", "b"])
    model(**tiny_inputs("bert", batch=3), task_ids="a")[0].square().sum().backward()
    for _, delta in deltas_of(model):
        a, b = delta.own("a"), delta.own("b")
        assert a.lora_a.grad is not None and a.mix.grad is not None and a.matrix.grad is not None
        assert b.mix.grad is None and b.matrix.grad is None


def test_up_projections_part_in_training() -> None:
    """With equal shares all B_i, which start at zero, would have one gradient: n_up would be 1 for ever."""
    model = tiny_model("bert").double()
    hfadapt.attach(model, CONFIG, names=["a", "b"], seed=0)
    optimizer = torch.optim.SGD(hfadapt.trainable_parameters(model).values(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(**tiny_inputs("bert", batch=3), task_ids=["a", "b", "a"])[0].square().sum().backward()
        optimizer.step()
    b = next(iter(deltas_of(model)))[1].own("a").lora_b
    assert (b[0] - b[1]).abs().max() > 1e-6


def test_detaching_one_task_leaves_the_others_to_the_bit() -> None:
    model = adapted(names=["a", "b", "c"])
    want = output(model, task_ids=["b", "c", "b"])
    hfadapt.detach(model, "a")
    assert torch.equal(output(model, task_ids=["b", "c", "b"]), want)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_task_merges_and_comes_back(kind) -> None:
    model = adapted(names="a", kind=kind)
    want = output(model, kind)
    merged = hfadapt.merge(model, "a")
    torch.testing.assert_close(output(model, kind), want, rtol=1e-9, atol=1e-9)
    merged.unmerge()
    assert torch.equal(output(model, kind), want)


def test_copies_keep_what_is_shared() -> None:
    model = copy.deepcopy(adapted(names=["a", "b"]))
    delta = next(iter(deltas_of(model)))[1]
    assert delta.own("a").lora_b is delta.own("b").lora_b


def test_one_folder_holds_all_tasks_and_they_share_again(tmp_path) -> None:
    model = adapted(names=["a", "b"])
    hfadapt.save(model, tmp_path / "both")
    again = hfadapt.load(tmp_path / "both", tiny_model("bert").double())
    assert torch.equal(output(again, task_ids=["a", "b", "a"]), output(model, task_ids=["a", "b", "a"]))
    delta = next(iter(deltas_of(again)))[1]
    assert delta.own("a").lora_a is delta.own("b").lora_a


def test_tasks_saved_one_by_one_join_again(tmp_path) -> None:
    model = adapted(names=["a", "b"])
    want = output(model, task_ids=["a", "b", "a"])
    for name in "ab":
        hfadapt.save(model, tmp_path / name, name)
    alone = hfadapt.load(tmp_path / "b", tiny_model("bert").double())
    assert torch.equal(output(alone, task_ids="b"), output(model, task_ids="b"))
    again = hfadapt.load(tmp_path / "a", alone)
    assert torch.equal(output(again, task_ids=["a", "b", "a"]), want)
    delta = next(iter(deltas_of(again)))[1]
    assert delta.own("a").lora_a is delta.own("b").lora_a


def test_a_folder_whose_shared_part_is_another_is_refused_and_leaves_no_trace(tmp_path) -> None:
    first, second = adapted(names="a"), adapted(names="b", seed=8)
    hfadapt.save(second, tmp_path / "b")
    want, keys = output(first), list(first.state_dict())
    with pytest.raises(CheckpointError, match="shares parameters with others") as caught:
        hfadapt.load(tmp_path / "b", first)
    assert "adapter 'a'" in str(caught.value)
    assert torch.equal(output(first), want) and list(first.state_dict()) == keys


def test_a_folder_with_two_values_for_one_parameter_is_refused(tmp_path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    hfadapt.save(adapted(), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    with safe_open(str(file), "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(str(file))
    key = next(key for key in tensors if key.endswith("adapters.b.lora_a"))
    save_file({**tensors, key: tensors[key] + 1}, str(file), metadata=metadata)
    config = tmp_path / "hfadapt_config.json"
    lines = [line for line in config.read_text().splitlines() if "sha256" not in line]
    config.write_text("\n".join(lines).replace(",\n}", "\n}"))
    with pytest.raises(CheckpointError, match="shares parameters with others"):
        hfadapt.load(tmp_path, tiny_model("bert").double())


def test_save_pretrained_of_the_model_loads_again(tmp_path) -> None:
    model = adapted().float()
    want = output(model, task_ids=["a", "b", "a"])
    model.save_pretrained(tmp_path)
    assert torch.equal(output(hfadapt.load(tmp_path), task_ids=["a", "b", "a"]), want)


def test_a_quantised_model_is_not_saved_whole_with_what_tasks_share(tmp_path) -> None:
    model = adapted().float()
    model.hf_quantizer = object()  # any object will do: that there is one is what counts
    with pytest.raises(CheckpointError, match=r"takes no two names[\s\S]*adapters.b.lora_a[\s\S]*hfadapt.save"):
        model.save_pretrained(tmp_path / "whole")
    assert not (tmp_path / "whole").exists()


def test_a_task_leaves_as_a_lora_of_pefts(tmp_path) -> None:
    peft = pytest.importorskip("peft", reason="reads what was written")
    model = adapted().float()
    want = output(model, task_ids="b")
    hfadapt.save_peft(model, tmp_path, "b")
    theirs = peft.PeftModel.from_pretrained(tiny_model("bert"), str(tmp_path)).eval()
    torch.testing.assert_close(output(theirs), want, rtol=1e-5, atol=1e-5)
    again = hfadapt.load(tmp_path, tiny_model("bert"))
    torch.testing.assert_close(output(again), want, rtol=1e-5, atol=1e-5)


def test_tasks_combine_into_a_plain_lora() -> None:
    model = adapted()
    hfadapt.combine(model, {"a": 0.25, "b": 0.75}, name="both", method="cat")
    (config,) = hfadapt.attachment(model).require("both").configs
    assert config.method == "lora" and config.r == 8
    for _, delta in deltas_of(model, "a"):
        want = sum(w * delta.config(n).scale * torch.mul(*_pair(delta, n)) for n, w in (("a", 0.25), ("b", 0.75)))
        other = next(d for _, d in deltas_of(model, "both") if d.site.leaf == delta.site.leaf)
        a, b = other.matrices("both", double=True)
        torch.testing.assert_close(other.config("both").scale * b @ a, want, rtol=1e-6, atol=1e-7)


def _pair(delta, name):
    a, b = delta.matrices(name, double=True)
    return b @ a, torch.ones((), dtype=torch.float64)


@torch.no_grad()
def as_loras(model):
    """The same base with a plain LoRA for each task, of the matrices that the task computes with."""
    plain = tiny_model("bert").double()
    hfadapt.attach(plain, CONFIG.as_lora(), names=["a", "b"], verify=False)
    for (_, ours), (_, theirs) in zip(deltas_of(model), deltas_of(plain), strict=True):
        for name in "ab":
            for kept, made in zip(theirs.matrices(name), ours.matrices(name), strict=True):
                kept.copy_(made)
    return plain


@pytest.mark.parametrize(
    "node",
    [
        hfadapt.Average("a", "b"),
        hfadapt.Stack("a", "b"),
        hfadapt.Arrow("a", "b", top_k=1),
        hfadapt.Router("a", "b", top_k=2),
        hfadapt.Fuse("a", "b"),
    ],
    ids=lambda node: type(node).__name__,
)
def test_tasks_join_as_the_loras_that_they_compute(node) -> None:
    model = adapted()
    plain = as_loras(model)
    for one in (model, plain):
        if isinstance(node, hfadapt.Router):
            hfadapt.add_router(one, ("a", "b"), activate_it=False)
        if isinstance(node, hfadapt.Fuse):
            hfadapt.add_fusion(one, ("a", "b"))
    # what joins them, and the base
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if ".adapters." not in k}, strict=False)
    with hfadapt.active(model, node), hfadapt.active(plain, node):
        found, want = output(model), output(plain)
    assert not torch.equal(found, output(model, task_ids="a"))
    torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("part", ["lora_a", "lora_b", "mix", "matrix"])
def test_a_prototype_is_kept_until_any_part_of_the_update_changes(part) -> None:
    _, delta = next(deltas_of(adapted()))
    before = delta.prototype("a")
    assert delta.prototype("a") is before
    with torch.no_grad():
        getattr(delta.own("a"), part)[..., :1] += 1.0
    after = delta.prototype("a")
    assert not torch.equal(after.abs(), before.abs())
    torch.testing.assert_close(after, top_right_singular_vector(*delta.matrices("a", double=True)))


def test_low_precision_bases_train_in_float32_under_autocast() -> None:
    model = tiny_model("bert").to(torch.bfloat16)
    hfadapt.attach(model, CONFIG, names=["a", "b"], seed=0)
    assert {p.dtype for p in hfadapt.parameters_of(model, "a").values()} == {torch.float32}
    randomize(model)
    with torch.autocast("cpu", torch.bfloat16):
        model(**tiny_inputs("bert", batch=3), task_ids=["a", "b", "a"])[0].float().square().sum().backward()
    assert all(p.grad is not None for p in hfadapt.parameters_of(model, "b").values())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_up", 0),
        ("n_up", 1.5),
        ("r", 0),
        ("temperature", 0),
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", True),
        ("group", ""),
        ("group", 3),
        ("task_matrix", "sparse"),
        ("dropout", 1.0),
        ("lora_alpha", 0),
        ("target_modules", ()),
        ("init", "zero"),
    ],
)
def test_fields_that_are_not_allowed_are_named(field, value) -> None:
    with pytest.raises(ConfigError, match=f"bad {field}") as caught:
        hfadapt.MTLLoRA(**{field: value})
    assert all((caught.value.where, caught.value.got, caught.value.allowed, caught.value.try_))


@pytest.mark.parametrize(
    "other",
    [{"r": 2}, {"n_up": 2}, {"target_modules": ("query",)}, {"dropout": 0.1}, {"layers": (0,)}],
    ids=lambda given: next(iter(given)),
)
def test_a_group_has_one_shape(other) -> None:
    model = adapted(names="a")
    keys, want = list(model.state_dict()), output(model)
    given = {"r": 4, "n_up": 3, **other}
    with pytest.raises(AttachError, match="'a' of the group 'default' has other shared matrices") as caught:
        hfadapt.attach(model, hfadapt.MTLLoRA(**given), "b")
    assert all((caught.value.where, caught.value.got, caught.value.allowed, caught.value.try_))
    assert list(model.state_dict()) == keys and torch.equal(output(model), want)
    hfadapt.attach(model, hfadapt.MTLLoRA(**given, group="b"), "b")


def test_what_is_a_tasks_own_may_differ_in_a_group() -> None:
    model = adapted(names="a")
    own = hfadapt.MTLLoRA(r=4, n_up=3, lora_alpha=2.0, temperature=2.0, task_matrix="diagonal", use_rslora=True)
    hfadapt.attach(model, own, "b")
    randomize(model)
    mixed = output(model, task_ids=["a", "b", "a"])
    torch.testing.assert_close(mixed[1], output(model, task_ids="b")[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("names", [("word_embeddings",), ("nowhere",)])
def test_only_linears_are_shared(names) -> None:
    with pytest.raises(AttachError):
        hfadapt.attach(tiny_model("bert"), hfadapt.MTLLoRA(target_modules=names))


def test_the_page_names_its_own_tests() -> None:
    assert Path(__file__).name in hfadapt.plugins.methods()["mtl_lora"].tests
    assert issubclass(hfadapt.MTLLoRA, hfadapt.MethodConfig) and not isinstance(CONFIG, nn.Module)
