"""Router: rows choose among adapters by a small trained layer over what they say, beside rows that have a task."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from transformers import Trainer, TrainingArguments
from transformers.cache_utils import DynamicCache

import hfadapt
from hfadapt.errors import CompositionError, RoutingError
from hfadapt.runtime.row_routing import routers_of
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model
from hfadapt.testing.toy import tiny_tokenizer, toy_batch, toy_model, toy_tasks

NODE = hfadapt.Router("a", "b", "c", top_k=2)
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
CONFIGS = (hfadapt.LoRA(4), "seq_bn", "prefix")


def adapted(kind="bert", head=None, configs=CONFIGS, node=NODE):
    torch.manual_seed(0)
    model = tiny_model(kind, head).eval()
    for name, config in zip("abc", configs, strict=False):
        hfadapt.attach(model, config, name, verify=False)
    hfadapt.add_router(model, node, activate_it=False)
    randomize(model)
    layer_of(model).weight.data.normal_()
    hfadapt.compose(model, "any", node)
    return model


def padded():
    return tiny_inputs("bert", padding="right")


def layer_of(model):
    return next(layer for _, layer in routers_of(model))


@torch.no_grad()
def run(model, ids, **inputs):
    return model(**(inputs or tiny_inputs(model.config.model_type)), task_ids=ids)[0]


def by_hand(model, input_ids, mask, top_k=2):
    """The weights ``[B, N]``, one row after another."""
    layer, rows = layer_of(model), []
    for ids, real in zip(input_ids, mask, strict=True):
        mean = model.get_input_embeddings().weight[ids[real.bool()]].mean(0)
        state = F.layer_norm(mean, mean.shape)
        scores = layer.weight @ state + layer.bias
        best = scores.argsort(descending=True)[:top_k]
        rows.append(torch.zeros_like(scores).index_put((best,), scores[best].softmax(0)))
    return torch.stack(rows).detach()


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_a_row_gets_the_weighted_sum_of_what_its_adapters_do(top_k):
    model = adapted(configs=[hfadapt.LoRA(r, target_modules=("query",), layers=(0,)) for r in (2, 3, 4)])
    inputs, linear, seen = padded(), model.encoder.layer[0].attention.self.query, []
    linear.register_forward_hook(lambda _, args, out: seen.append(out))
    for ids in ("a", "b", "c", None):
        run(model, [ids] * 3, **inputs)
    with hfadapt.active(model, hfadapt.Router("a", "b", "c", top_k=top_k)):
        run(model, None, **inputs)
    *alone, base, got = seen
    weights = by_hand(model, inputs["input_ids"], inputs["attention_mask"], top_k)
    assert ((weights > 0).sum(1) == top_k).all() and len({tuple(row.argsort().tolist()) for row in weights}) > 1
    want = base + sum(w.view(-1, 1, 1) * (one - base) for w, one in zip(weights.T, alone, strict=True))
    torch.testing.assert_close(got, want, **CLOSE)


def test_padding_and_the_form_of_the_input_say_nothing():
    model, inputs = adapted(), padded()
    want = run(model, "any", **inputs)
    inputs["input_ids"][inputs["attention_mask"] == 0] += 1
    assert torch.equal(run(model, "any", **inputs)[0], want[0])
    embeds = model.get_input_embeddings()(inputs["input_ids"]).detach()
    rest = {"attention_mask": inputs["attention_mask"]}
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(run(model, "any", inputs_embeds=embeds, **rest)[real], want[real], **CLOSE)
    longer = {key: F.pad(value, (0, 3)) for key, value in inputs.items()}
    torch.testing.assert_close(run(model, "any", **longer)[:, : real.shape[1]][real], want[real], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5", "bart", "albert"])
def test_rows_without_a_task_stand_beside_rows_with_one(kind):
    model = adapted(kind, configs=[hfadapt.LoRA(2), hfadapt.LoRA(3), hfadapt.Bottleneck()])
    alone = {name: run(model, name) for name in ("any", "a", "__base__")}
    mixed = run(model, ["any", "a", None])
    for row, name in enumerate(alone):
        torch.testing.assert_close(mixed[row], alone[name][row], **CLOSE)


def test_a_row_keeps_its_bits_whatever_the_others_say_and_use():
    model, inputs = adapted(), padded()
    mixed = run(model, ["any", "a", None], **inputs)
    other = {**inputs, "input_ids": inputs["input_ids"].clone()}
    other["input_ids"][1:] = (other["input_ids"][1:] + 7) % model.config.vocab_size
    assert torch.equal(run(model, ["any", "any", "b"], **other)[0], mixed[0])
    assert torch.equal(run(model, ["c", "a", None], **inputs)[1:], mixed[1:])
    (unused,) = (by_hand(model, inputs["input_ids"], inputs["attention_mask"])[0] == 0).nonzero().flatten().tolist()
    for parameter in hfadapt.parameters_of(model, "abc"[unused]).values():
        parameter.data.fill_(float("nan"))
    assert torch.equal(
        run(model, ["any", None, None], **inputs)[0], mixed[0]
    )  # it does not even touch rows that leave it out


def test_gradients_are_those_of_finite_differences():
    model = adapted(configs=[hfadapt.LoRA(2), "seq_bn", "pal"]).double().train()
    for module in model.modules():
        module.p = 0.0 if isinstance(module, torch.nn.Dropout) else getattr(module, "p", None)
    layer, inputs = layer_of(model), tiny_inputs("bert")

    def loss(weight, bias):
        with torch.no_grad():
            layer.weight.copy_(weight), layer.bias.copy_(bias)
        return model(**inputs, task_ids=["any", "any", "a"])[0].pow(2).sum()

    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    loss(weight, bias).backward()
    for given, parameter in ((weight, layer.weight), (bias, layer.bias)):
        got, found = parameter.grad.flatten(), given.flatten()
        for place in {0, len(found) // 2, len(found) - 1}:
            kept, step = float(found[place]), 1e-6
            with torch.no_grad():
                found[place] = kept + step
                above = float(loss(weight, bias))
                found[place] = kept - step
                below = float(loss(weight, bias))
                found[place] = kept
            assert float(got[place]) == pytest.approx((above - below) / (2 * step), rel=1e-5, abs=1e-7)
    assert layer.weight.grad.abs().max() > 0


def test_rows_with_a_task_give_it_no_gradient():
    model = adapted().train()

    def run_with(ids):
        model(**tiny_inputs("bert"), task_ids=ids)[0].sum().backward()

    hfadapt.unfreeze(model)
    run_with(["a", "b", None])
    assert layer_of(model).weight.grad is None
    run_with(["a", "any", None])
    assert layer_of(model).weight.grad.abs().sum() > 0


def test_plain_trainer_learns_which_adapter_a_row_needs(tmp_path):
    torch.manual_seed(0)
    model = tiny_model("bert", "sequence-classification")
    hfadapt.attach(model, hfadapt.LoRA(2), names=["a", "b"], verify=False)
    randomize(model)
    for name, sign in (("a", 5.0), ("b", -5.0)):  # one says 0, the other 1
        head = hfadapt.own_modules(model, name)["classifier"]
        head.weight.data.zero_(), head.bias.data.copy_(torch.tensor([sign, -sign]))
    hfadapt.add_router(model, ("a", "b"), activate_it=False)
    hfadapt.compose(model, "any", hfadapt.Router("a", "b"))
    before = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    rows = []
    for number in range(64):
        label = number % 2
        ids = [5 + 3 * label + number % 3, 7 + 20 * label, 8 + 20 * label]
        rows.append({"input_ids": ids, "attention_mask": [1] * 3, "labels": label, "task_ids": 2 if number % 4 else 0})
    args = TrainingArguments(
        tmp_path, max_steps=12, per_device_train_batch_size=16, learning_rate=0.3, report_to=[], save_steps=12,
        disable_tqdm=True, use_cpu=True, logging_steps=1000, seed=0,
    )  # fmt: skip
    Trainer(model=model, args=args, train_dataset=rows, eval_dataset=rows).train()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)
    batch = {k: torch.tensor([row[k] for row in rows]) for k in ("input_ids", "attention_mask")}
    said = run(model.eval(), "any", **batch).argmax(-1)
    assert (said == torch.tensor([row["labels"] for row in rows])).float().mean() > 0.95
    again = hfadapt.load(tmp_path / "checkpoint-12", tiny_model("bert", "sequence-classification"))
    again.load_state_dict(model.state_dict())
    assert torch.equal(run(again, "any", **batch), run(model, "any", **batch))


@pytest.mark.parametrize("named", [True, False])
def test_it_is_saved_and_comes_back(tmp_path, named):
    model = adapted()
    hfadapt.activate(model, "any" if named else NODE)
    hfadapt.save(model, tmp_path)
    again = hfadapt.load(tmp_path, tiny_model("bert").eval())
    assert hfadapt.attachment(again).active == hfadapt.attachment(model).active
    assert torch.equal(layer_of(again).weight, layer_of(model).weight)
    again.load_state_dict(model.state_dict())  # the same base
    assert torch.equal(run(again, None), run(model, None))
    hfadapt.save(model, tmp_path / "some", ["a", "b"])  # without c there is no router over all three
    assert not [*routers_of(hfadapt.load(tmp_path / "some", tiny_model("bert")))]


def test_copies_and_pickles_are_models_of_their_own():
    model = adapted()
    for made in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(run(made, "any"), run(model, "any"))
        layer_of(made).weight.data.neg_()
        assert layer_of(made).model is made
        assert not torch.equal(run(made, "any"), run(model, "any"))


def test_detach_leaves_nothing():
    model = tiny_model("bert")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for name, config in zip("abc", CONFIGS, strict=True):
        hfadapt.attach(model, config, name, verify=False)
    hfadapt.add_router(model, NODE)
    hfadapt.detach(model, "c")
    assert not [*routers_of(model)] and hfadapt.attachment(model).active is None
    hfadapt.add_router(model, ("a", "b"))
    hfadapt.detach(model)
    assert model.state_dict().keys() == before.keys() and not hasattr(model, "hfadapt_shared")


def test_other_embeddings_are_read_once_they_are_there():
    model = adapted()
    run(model, "any")
    model.resize_token_embeddings(model.config.vocab_size + 5)
    inputs = padded()
    inputs["input_ids"][0, 0] = model.config.vocab_size - 1
    want = by_hand(model, inputs["input_ids"], inputs["attention_mask"])
    found = layer_of(model)(inputs["input_ids"], inputs["attention_mask"])
    assert torch.equal(found.argmax(1), want.argmax(1))


@pytest.mark.parametrize(
    ("kind", "options"), [("gpt2", {"num_beams": 2}), ("gpt2", {"use_cache": False}), ("t5", {})], ids=str
)
def test_generation_keeps_what_the_prompt_was_given(kind, options):
    head = "causal-lm" if kind == "gpt2" else "seq2seq-lm"
    model = adapted(kind, head, configs=[hfadapt.LoRA(2), hfadapt.LoRA(3), hfadapt.LoRA(4)])
    prompts = torch.tensor([[5, 6, 7, 8], [30, 31, 9, 10], [11, 41, 12, 13]])
    given = {"max_new_tokens": 3, "do_sample": False, **options}
    mixed = model.generate(prompts, task_ids=["any", "a", "any"], **given)
    shares = by_hand(model, prompts, torch.ones_like(prompts))
    for row, name in ((1, "a"), (2, "any")):
        alone = model.generate(prompts[row : row + 1], task_ids=name, **given)
        assert torch.equal(mixed[row, : alone.shape[1]], alone[0])
    with hfadapt.active(model, hfadapt.Average("a", "b", "c", weights=shares[0].tolist())):
        fixed = model.generate(prompts[:1], **given)
    assert torch.equal(mixed[0, : fixed.shape[1]], fixed[0])


def test_every_child_of_a_parallel_and_a_step_of_a_stack_may_be_one():
    model = adapted(configs=[hfadapt.LoRA(2), hfadapt.LoRA(3), "seq_bn"])
    want = [run(model, name) for name in ("b", "any")]
    with hfadapt.active(model, hfadapt.Parallel("b", NODE)):
        torch.testing.assert_close(run(model, None), torch.cat(want), **CLOSE)
    hfadapt.compose(model, "then", hfadapt.Stack("c", hfadapt.Router("a", "b", "c")))
    assert not torch.equal(run(model, "then"), want[1])


def test_heads_are_weighed_as_their_adapters():
    model = adapted(head="sequence-classification")
    seen = []
    hook = model.classifier.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    inputs = padded()
    run(model, "any", **inputs)
    hook.remove()
    x, got = seen[0]
    weights = by_hand(model, inputs["input_ids"], inputs["attention_mask"])
    heads = [hfadapt.own_modules(model, name)["classifier"](x) for name in "abc"]
    torch.testing.assert_close(got, sum(w[:, None] * one for w, one in zip(weights.T, heads, strict=True)), **CLOSE)


def test_checkpointed_layers_are_run_again_with_the_same_weights():
    model = adapted().train()
    layer_of(model).requires_grad_(True)
    found = []
    for on in (False, True):
        if on:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        torch.manual_seed(0)
        model(**tiny_inputs("bert"), task_ids=["any", "a", "any"])[0].sum().backward()
        found.append(layer_of(model).weight.grad)
    torch.testing.assert_close(*found)


@pytest.mark.compile
def test_a_compiled_model_gives_the_same():
    model = adapted(configs=[hfadapt.LoRA(2), hfadapt.LoRA(3), "seq_bn"])
    want = run(model, ["any", "a", None])
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        got = compiled(**tiny_inputs("bert"), task_ids=torch.tensor([3, 0, -1]))[0]
    torch.testing.assert_close(got, want, **CLOSE)


def test_a_task_is_served_through_it(tmp_path):
    tasks = toy_tasks()
    model = toy_model(tasks, method="lora").eval()
    names = [task.name for task in tasks]
    hfadapt.add_router(model, names, activate_it=False)
    randomize(model)
    model.use(names[0], hfadapt.Router(*names, top_k=1))
    batch = toy_batch(tasks)
    with torch.no_grad():
        want = model(**batch)
    model.save_pretrained(tmp_path)
    again = hfadapt.MultiTaskModel.from_pretrained(tmp_path, base=tiny_model("bert"))
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(**batch).logits, want.logits, equal_nan=True)
    engine = hfadapt.Engine(again, tiny_tokenizer())
    texts = ["a film", "two bad words and more", "good"]
    alone = [engine.predict(text, names[0])[0] for text in texts]
    assert engine.predict(texts, [names[0]] * 3) == alone
    assert engine.predict([texts[0], "x y"], [names[0], names[1]])[0] == alone[0]


def refused(call, error, *words):
    with pytest.raises(error) as found:
        call()
    for word in (*words, "got", "allowed", "try"):
        assert word in str(found.value)


def test_calls_that_do_not_hold_the_text_are_refused():
    model = adapted("gpt2", "causal-lm", configs=[hfadapt.LoRA(2)] * 3)
    ids, cache = torch.tensor([[5, 6, 7]]), DynamicCache()
    model(ids, past_key_values=cache, use_cache=True, task_ids="any")

    def late():
        model(ids[:, :1], past_key_values=cache, use_cache=True, task_ids="any")

    refused(late, RoutingError, "key-value cache (3)", "generate")
    model(ids[:, :1], past_key_values=cache, use_cache=True, task_ids="a")
    square = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    refused(lambda: model(ids, attention_mask=square, task_ids="any"), RoutingError, "which tokens of a row", "[1, 3]")
    encoder = adapted("t5", configs=[hfadapt.LoRA(2)] * 3)
    states = encoder.encoder(ids, task_ids="any")
    refused(
        lambda: encoder(encoder_outputs=states, decoder_input_ids=ids, task_ids="any"),
        RoutingError,
        "neither input_ids",
    )


def test_a_choice_of_one_is_not_trained():
    model = adapted().train()
    hfadapt.activate(model, hfadapt.Router("a", "b", "c", top_k=1))
    refused(lambda: model(**tiny_inputs("bert")), RoutingError, "cannot be trained", "top_k=2")
    layer_of(model).requires_grad_(False)
    model(**tiny_inputs("bert"))


def test_what_cannot_be_routed_is_refused():
    model = adapted()
    refused(lambda: hfadapt.add_router(model, NODE), CompositionError, "there is a router")
    refused(lambda: hfadapt.activate(model, hfadapt.Router("b", "a")), CompositionError, "no router", "add_router")
    refused(lambda: hfadapt.add_router(model, ("a", "x")), CompositionError, "not attached")
    refused(lambda: hfadapt.add_router(model, 3), CompositionError, "no adapters")
    vision = tiny_model("vit")
    hfadapt.attach(vision, "lora", names=["a", "b"], verify=False)
    refused(lambda: hfadapt.add_router(vision, ("a", "b")), CompositionError, "ViTModel", "Arrow")
    assert not hasattr(vision, "hfadapt_shared")


@pytest.mark.parametrize(
    "build",
    [
        lambda: hfadapt.Router("a"),
        lambda: hfadapt.Router("a", "a"),
        lambda: hfadapt.Router("a", hfadapt.Stack("b")),
        *(lambda k=k: hfadapt.Router("a", "b", top_k=k) for k in (0, 3, 1.0, True, "1")),
    ],
)
def test_nodes_that_mean_nothing_are_refused(build):
    with pytest.raises(CompositionError):
        build()
