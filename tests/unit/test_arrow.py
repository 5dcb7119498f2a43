"""Arrow: tokens choose among LoRAs by their first singular vectors, beside rows that have a task."""

from __future__ import annotations

import copy

import pytest
import torch
from peft.tuners.lora.arrow import ArrowLoraLinearLayer
from peft.tuners.lora.config import ArrowConfig

import hfadapt
from hfadapt.errors import CompositionError
from hfadapt.runtime import deltas_of
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model
from hfadapt.testing.toy import toy_batch, toy_model, toy_tasks

CONFIGS = (
    hfadapt.LoRA(4, 6.0, ("query", "value")),
    hfadapt.LoRA(2, 5.0, ("query", "key", "ffn_out"), use_rslora=True),
    hfadapt.LoRA(3, 9.0, ("query", "output"), dropout=0.1),  # another dropout: another delta at the same linear
)
NODE = hfadapt.Arrow("a", "b", "c", top_k=2, temperature=0.7)
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def adapted(kind="bert", head=None, configs=CONFIGS):
    torch.manual_seed(0)
    model = tiny_model(kind, head).eval()
    for name, config in zip("abc", configs, strict=False):
        hfadapt.attach(model, config, name, verify=False)
    randomize(model)
    return model


@torch.no_grad()
def run(model, ids, kind="bert", **inputs):
    return model(**(inputs or tiny_inputs(kind)), task_ids=ids)[0]


def updates(model, leaf, names):
    """The matrix that each adapter adds to the weight of one linear."""
    found = {}
    for path, delta in deltas_of(model):
        for name in {*delta.names} & {*names} if path.startswith(f"{leaf}.hfadapt") else ():
            one = delta.own(name)
            found[name] = one.config.scale * (one.lora_b @ one.lora_a).detach()
    return {name: found[name] for name in names if name in found}


def by_the_papers_words(x, matrices, top_k, temperature):
    """The effect on tokens ``[N, D]``: one token and one adapter after another."""
    out = torch.zeros(len(x), next(iter(matrices.values())).shape[0])
    for place, token in enumerate(x):
        scores = {n: abs(float(torch.linalg.svd(m.double())[2][0] @ token.double())) for n, m in matrices.items()}
        best = sorted(scores, key=scores.get, reverse=True)[:top_k]
        share = torch.softmax(torch.tensor([scores[n] for n in best]) / temperature, 0)
        for weight, name in zip(share, best, strict=True):
            out[place] += weight * (matrices[name] @ token)
    return out


@pytest.mark.parametrize("leaf", ["query", "key", "output"])
def test_a_linear_gives_each_token_what_the_paper_says(leaf):
    model, path = adapted(), {"output": "output.dense"}.get(leaf, f"self.{leaf}")
    path = f"encoder.layer.0.attention.{path}"
    hfadapt.activate(model, NODE)
    seen = []
    linear = model.get_submodule(path)
    linear.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    with torch.no_grad():
        model(**tiny_inputs("bert"))
        (x, got), stock = seen[0], torch.nn.functional.linear(seen[0][0], linear.weight, linear.bias)
    want = by_the_papers_words(x.flatten(0, 1), updates(model, path, "abc"), 2, 0.7)
    torch.testing.assert_close((got - stock).flatten(0, 1), want, rtol=1e-4, atol=1e-5)


def test_a_linear_gives_what_peft_gives():
    torch.manual_seed(1)
    a = torch.nn.ModuleDict({n: torch.nn.Linear(16, 4, bias=False) for n in "abc"})
    b = torch.nn.ModuleDict({n: torch.nn.Linear(4, 12, bias=False) for n in "abc"})
    for matrix in b.values():  # one direction far above the others, or peft's 15 iterations do not reach it
        matrix.weight.data *= torch.tensor([9.0, 1.0, 0.5, 0.2])
    config = ArrowConfig(top_k=2, router_temperature=0.5)
    config.task_adapter_names = []
    theirs = ArrowLoraLinearLayer(16, config)
    theirs.on_adapter_change(a, b)
    theirs.build_prototypes(a, b)
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        want = theirs(x, a, b, torch.nn.Identity(), dict.fromkeys("abc", 1.5))
    got = by_the_papers_words(x.flatten(0, 1), {n: 1.5 * (b[n].weight @ a[n].weight).detach() for n in "abc"}, 2, 0.5)
    torch.testing.assert_close(got.view(2, 5, 12), want, rtol=1e-4, atol=1e-4)


def test_rows_without_a_task_stand_beside_rows_with_one():
    model = adapted()
    hfadapt.compose(model, "any", NODE)
    alone = {name: run(model, name) for name in ("any", "a", "__base__")}
    mixed = run(model, ["any", "a", None])
    for row, name in enumerate(alone):
        torch.testing.assert_close(mixed[row], alone[name][row], **CLOSE)
    for parameter in hfadapt.parameters_of(model, "b").values():
        parameter.data.fill_(float("nan"))
    model.eval()
    other = run(model, ["any", "a", None])
    assert torch.isnan(other[0]).any() and torch.equal(other[1:], mixed[1:])


def test_of_all_and_as_hot_as_can_be_it_is_the_average():
    model = adapted(configs=[hfadapt.LoRA(r) for r in (2, 3, 4)])
    with hfadapt.active(model, hfadapt.Average("a", "b", "c")), torch.no_grad():
        want = model(**tiny_inputs("bert"))[0]
    with hfadapt.active(model, hfadapt.Arrow("a", "b", "c", temperature=1e30)), torch.no_grad():
        torch.testing.assert_close(model(**tiny_inputs("bert"))[0], want, **CLOSE)


def test_an_adapter_that_does_nothing_yet_is_not_preferred():
    model = adapted(configs=[hfadapt.LoRA(2), hfadapt.LoRA(2)])
    hfadapt.attach(model, hfadapt.LoRA(2), "c", verify=False)  # B is 0
    with hfadapt.active(model, hfadapt.Arrow("a", "b", "c", top_k=2)):
        got = model(**tiny_inputs("bert"))[0]
    with hfadapt.active(model, hfadapt.Arrow("a", "b")):
        torch.testing.assert_close(model(**tiny_inputs("bert"))[0], got, **CLOSE)


def test_slices_of_a_fused_linear_choose_apart_and_generation_goes_on():
    configs = (
        hfadapt.LoRA(2, 4.0, ("query", "value")),
        hfadapt.LoRA(3, 4.0, ("query",)),
        hfadapt.LoRA(2, 9.0, ("key",)),
    )
    model = adapted("gpt2", "causal-lm", configs)
    hfadapt.compose(model, "any", hfadapt.Arrow("a", "b", "c", top_k=1))
    ids = tiny_inputs("gpt2")["input_ids"][:2]
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    both = model.generate(ids, task_ids=["any", "a"], **options)
    for row, name in enumerate(["any", "a"]):
        assert torch.equal(both[row], model.generate(ids[row : row + 1], task_ids=name, **options)[0])
    cached = model.generate(ids, task_ids="any", num_beams=2, **options)
    assert torch.equal(cached, model.generate(ids, task_ids="any", num_beams=2, use_cache=False, **options))


def test_it_stands_in_stacks_and_beside_other_children():
    model = adapted()
    with hfadapt.active(model, hfadapt.Parallel("a", NODE, hfadapt.Stack("c", hfadapt.Arrow("a", "b")))):
        together = run(model, None)
    for number, node in enumerate(("a", NODE, hfadapt.Stack("c", hfadapt.Arrow("a", "b")))):
        with hfadapt.active(model, node):
            torch.testing.assert_close(together.chunk(3)[number], run(model, None), **CLOSE)


def test_prototypes_follow_the_matrices_and_copies_have_their_own():
    model = adapted()
    hfadapt.activate(model, NODE)
    before = run(model, None)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in hfadapt.parameters_of(model, "a").items():
            parameter.copy_(-3 * parameter.flip(0) if "lora_a" in name else parameter)
    again = run(model, None)
    assert not torch.allclose(again, before)
    fresh = adapted()
    hfadapt.activate(fresh, NODE)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(run(fresh, None), again) and torch.equal(run(twin, None), before)


def test_loras_train_under_it_and_rows_elsewhere_leave_them_alone():
    model = adapted().train()
    hfadapt.compose(model, "any", hfadapt.Arrow("a", "b", top_k=1))
    model(**tiny_inputs("bert"), task_ids=["any", "c", "c"])[0][0].sum().backward()
    moved = {n: any(p.grad is not None for p in hfadapt.parameters_of(model, n).values()) for n in "ab"}
    assert moved == {"a": True, "b": True}
    model.zero_grad()
    model(**tiny_inputs("bert"), task_ids=["c", "c", "c"])[0].sum().backward()
    assert all(p.grad is None for n in "ab" for p in hfadapt.parameters_of(model, n).values())


@pytest.mark.parametrize("named", [True, False])
def test_it_is_saved_and_comes_back(tmp_path, named):
    model = adapted()
    if named:
        hfadapt.compose(model, "any", NODE)
    hfadapt.activate(model, "any" if named else NODE)
    hfadapt.save(model, tmp_path)
    again = hfadapt.load(tmp_path, tiny_model("bert").eval())
    assert hfadapt.attachment(again).active == hfadapt.attachment(model).active
    again.load_state_dict(model.state_dict())  # the same base
    assert torch.equal(run(again, None), run(model, None))


def test_a_task_of_a_multi_task_model_goes_through_it(tmp_path):
    tasks = toy_tasks()
    model = toy_model(tasks, method="lora").eval()
    randomize(model)
    names = [task.name for task in tasks]
    model.use(names[0], hfadapt.Arrow(*names, top_k=2))
    batch = toy_batch(tasks)
    with torch.no_grad():
        want = model(**batch)
    model.save_pretrained(tmp_path)
    again = hfadapt.MultiTaskModel.from_pretrained(tmp_path, base=tiny_model("bert"))
    with torch.no_grad():
        got = again.eval()(**batch)
    torch.testing.assert_close(got.logits, want.logits, equal_nan=True)


def test_heads_are_averaged():
    model = adapted(head="sequence-classification")
    with hfadapt.active(model, NODE):
        seen = []
        hook = model.classifier.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
        run(model, None, **tiny_inputs("bert", "sequence-classification"))
        hook.remove()
    x, got = seen[0]
    heads = [hfadapt.own_modules(model, name)["classifier"] for name in "abc"]
    torch.testing.assert_close(got, sum(head(x) for head in heads) / 3)


@pytest.mark.compile
def test_a_compiled_model_gives_the_same():
    model = adapted()
    hfadapt.compose(model, "any", NODE)
    want = run(model, ["any", "a", None])
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        got = compiled(**tiny_inputs("bert"), task_ids=torch.tensor([3, 0, -1]))[0]
    torch.testing.assert_close(got, want, **CLOSE)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ("seq_bn", "not a low-rank update"),
        (hfadapt.LoRA(2, dora=True), "scales the linear's own output"),
        (hfadapt.LoRA(2, gate="token"), "gate"),
        (hfadapt.LoRA(2, 4.0, ("word_embeddings",)), "changes a table"),
        ("mam", "not a low-rank update"),
    ],
)
def test_adapters_without_prototypes_are_refused(config, why):
    model = adapted(configs=(hfadapt.LoRA(2), config))
    node = hfadapt.Arrow("a", "b")
    for choose in (
        lambda: hfadapt.activate(model, node),
        lambda: hfadapt.compose(model, "any", hfadapt.Stack(node)),
        lambda: hfadapt.active(model, hfadapt.Parallel("a", node)).__enter__(),
    ):
        with pytest.raises(CompositionError, match=f"cannot be routed to adapter 'b'.*{why}.*Average"):
            choose()
    assert hfadapt.attachment(model).active is None and not hfadapt.attachment(model).compositions


@pytest.mark.parametrize(
    "build",
    [
        lambda: hfadapt.Arrow("a"),
        lambda: hfadapt.Arrow("a", "a"),
        lambda: hfadapt.Arrow("a", hfadapt.Stack("b")),
        *(lambda k=k: hfadapt.Arrow("a", "b", top_k=k) for k in (0, 3, 1.0, True, "1")),
        *(lambda t=t: hfadapt.Arrow("a", "b", temperature=t) for t in (0, -1, float("nan"), None, "hot")),
    ],
)
def test_nodes_that_mean_nothing_are_refused(build):
    with pytest.raises(CompositionError):
        build()
