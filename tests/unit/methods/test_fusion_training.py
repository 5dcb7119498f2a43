"""AdapterFusion in training: its penalty in the loss, checkpointing, compilation, dropped layers, several tasks."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
from transformers import Trainer, TrainerCallback, TrainingArguments

import hfadapt
from hfadapt.runtime import loss_terms as penalties
from hfadapt.runtime.attachment import deltas_of
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model
from hfadapt.testing.toy import toy_batch, toy_model, toy_tasks
from hfadapt_plugins.methods.fusion.adding import fusion_layers
from tests.unit.releases import checkpoint_activations


def move(model, seed=3):
    """Make every fusion parameter random, and its V far enough from the identity to see."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in fusion_layers(model).values():
            for key, parameter in layer.named_parameters():
                if key != "temperature":
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))


def classifier(config="dynamic", names=("a", "b"), dtype=torch.float64, method="pfeiffer"):
    """A stock classifier in training mode, without dropout, with a fusion."""
    changes = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = tiny_model("bert", "sequence-classification", **changes).to(dtype)
    hfadapt.attach(model, method, names=names, seed=0)
    randomize(model)
    hfadapt.add_fusion(model, hfadapt.Fuse(*names), config)
    move(model)
    inputs = tiny_inputs("bert", padding="right")
    return model.train(), {**inputs, "labels": torch.tensor([0, 1, 1])}


def gradients(model, inputs, **more):
    model.zero_grad()
    model(**inputs, **more).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_the_training_loss_holds_the_penalty_and_the_evaluation_loss_does_not():
    model, inputs = classifier()
    penalty = hfadapt.fusion_regularizer(model)
    training, (first, *_) = model(**inputs).loss, model(**inputs, return_dict=False)
    evaluation = model.eval()(**inputs).loss
    torch.testing.assert_close(training - evaluation, penalty, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(first, training)
    assert penalty > 1e-3


def test_a_loss_of_somebody_elses_is_told_once_what_it_lacks(caplog):
    """Trainer takes the labels away to smooth them, or for ``compute_loss_func``: then no loss holds the penalty."""
    penalties._warn_once.cache_clear()
    model, inputs = classifier()
    labels = inputs.pop("labels")
    model.eval()(**inputs)
    with torch.no_grad():
        model.train()(**inputs)
    model(**inputs, labels=labels)
    assert not caplog.records
    for _ in range(2):
        model(**inputs)
    (record,) = caplog.records
    assert "label_smoothing_factor" in record.message and "fusion_regularizer(model)" in record.message


def test_several_tasks_are_told_that_weights_are_left_out_too(caplog):
    penalties._warn_once.cache_clear()
    tasks = toy_tasks()
    weighted = [dataclasses.replace(tasks[0], loss_weight=2.0), *tasks[1:]]
    batch = toy_batch(tasks)
    batch.pop("labels")
    for several, warned in ((tasks, 0), (weighted, 1)):
        toy_model(several).train()(**batch)
        assert len(caplog.records) == warned
    assert "loss weights" in caplog.text


def test_its_gradient_pulls_v_to_the_identity():
    model, inputs = classifier()
    layers = fusion_layers(model)
    with_it = gradients(model, inputs)
    for layer in layers.values():
        layer.config = hfadapt.FusionConfig(regularization=False)
    without = gradients(model, inputs)
    assert with_it.keys() == without.keys()
    for name, gradient in with_it.items():
        extra = torch.zeros_like(gradient)
        if name.endswith("value_weight"):
            value = dict(model.named_parameters())[name].detach()
            extra = 2 * 0.01 * (value - torch.eye(len(value)))
        torch.testing.assert_close(gradient, without[name] + extra, rtol=1e-9, atol=1e-12)


def test_no_penalty_where_no_fusion_runs_or_nothing_of_it_trains():
    model, inputs = classifier()
    with hfadapt.active(model, "a"):
        alone = model(**inputs).loss, model.eval()(**inputs).loss
    torch.testing.assert_close(*alone)
    hfadapt.set_adapter_drop(model.train(), 2)
    torch.testing.assert_close(model(**inputs).loss, model.eval()(**inputs).loss)
    hfadapt.set_adapter_drop(model.train(), 1)
    upper = [layer.penalty() for path, layer in fusion_layers(model).items() if "layer.1." in path]
    torch.testing.assert_close(model(**inputs).loss - model.eval()(**inputs).loss, sum(upper), rtol=1e-6, atol=1e-9)
    hfadapt.set_adapter_drop(model.train(), None)
    for layer in fusion_layers(model).values():
        layer.value_weight.requires_grad_(False)
    torch.testing.assert_close(model(**inputs).loss, model.eval()(**inputs).loss)
    static, inputs = classifier("static")
    torch.testing.assert_close(static(**inputs).loss, static.eval()(**inputs).loss)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients_penalty_included(reentrant):
    model, inputs = classifier()
    want = gradients(model, inputs)
    checkpoint_activations(model, use_reentrant=reentrant)
    if reentrant:
        model.enable_input_require_grads()
    got = gradients(model, inputs)
    got = {name: gradient for name, gradient in got.items() if name in want}
    assert got.keys() == want.keys()
    for name, gradient in want.items():
        torch.testing.assert_close(got[name], gradient, rtol=0, atol=1e-9)


def test_it_compiles_to_one_graph_with_its_penalty():
    model, inputs = classifier()
    want = gradients(model, inputs)
    loss = model(**inputs).loss
    model.zero_grad()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    out = compiled(**inputs)
    out.loss.backward()
    torch.testing.assert_close(out.loss, loss, rtol=0, atol=1e-9)
    for name, parameter in model.named_parameters():
        if name in want:
            torch.testing.assert_close(parameter.grad, want[name], rtol=0, atol=1e-9)
    torch._dynamo.reset()


def test_bfloat16_stays_near_float32():
    outputs = {}
    for dtype in (torch.float32, torch.bfloat16):
        model, inputs = classifier(dtype=dtype)
        out = model(**inputs)
        out.loss.backward()
        assert out.logits.dtype == dtype
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        outputs[dtype] = out.logits.detach().float()
    torch.testing.assert_close(outputs[torch.bfloat16], outputs[torch.float32], rtol=0.05, atol=0.05)


def rows(count):
    inputs = tiny_inputs("bert", batch=count)
    return [{"input_ids": inputs["input_ids"][i], "labels": torch.tensor(i % 2)} for i in range(count)]


def trainer(model, tmp_path, callbacks=(), **more):
    args = TrainingArguments(
        str(tmp_path),
        learning_rate=0.05,
        optim="sgd",
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        use_cpu=True,
        **more,
    )
    return Trainer(model, args, train_dataset=rows(8), eval_dataset=rows(4), callbacks=list(callbacks))


@pytest.mark.parametrize("batches", [1, 4])
@pytest.mark.parametrize("divides", [False, True], ids=["adds means", "divides by items"])
def test_accumulated_batches_leave_the_penalty_its_weight(batches, divides, tmp_path, monkeypatch):
    """Trainer adds up what a model returns that it tells the number of labels; not every head divides by it."""
    model, _ = classifier(dtype=torch.float32)
    (head,) = hfadapt.own_modules(model, "a,b").values()
    with torch.no_grad():  # the logits say nothing of the fusion: only the penalty moves V
        head.weight.zero_()
    head.requires_grad_(False)
    if divides:
        stock = type(model).forward

        @functools.wraps(stock)
        def forward(self, *args, labels=None, num_items_in_batch=None, **kwargs):
            output = stock(self, *args, labels=labels, **kwargs)
            if num_items_in_batch is not None:
                output["loss"] = output.loss * len(labels) / num_items_in_batch.to(output.loss.device)
            return output

        monkeypatch.setattr(type(model), "forward", forward)
    (layer, *_) = fusion_layers(model).values()
    before = layer.value_weight.detach().clone()
    options = {"per_device_train_batch_size": 8 // batches, "gradient_accumulation_steps": batches}
    trainer(model, tmp_path, max_steps=1, **options).train()
    counted = 1 if divides else batches  # as often as the loss itself
    want = before - counted * 0.05 * 2 * 0.01 * (before - torch.eye(len(before)))
    torch.testing.assert_close(layer.value_weight.detach(), want, rtol=1e-6, atol=1e-8)


class Depths(TrainerCallback):
    """Notes the depth of every pass, and which fusion layers had a gradient at each step."""

    def __init__(self, model):
        self.training, self.evaluation, self.steps = [], [], []
        self.hook = model.register_forward_pre_hook(self.note)

    def note(self, module, args):
        (self.training if module.training else self.evaluation).append(
            hfadapt.attachment(module).drop.get("bert.encoder.layer", 0)
        )

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        layers = fusion_layers(kwargs["model"])
        self.steps.append({path for path, layer in layers.items() if layer.value_weight.grad is not None})


def test_robust_training_redraws_the_dropped_layers_of_a_fusion_each_step(tmp_path):
    model, _ = classifier(dtype=torch.float32)
    depths = Depths(model)
    trainer(
        model,
        tmp_path,
        [hfadapt.RobustAdapterDrop(seed=0), depths],
        max_steps=12,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=1,
        eval_strategy="steps",
        eval_steps=4,
    ).train()
    assert set(depths.training) == {0, 1} and set(depths.evaluation) == {0}
    for depth, seen in itertools.zip_longest(depths.training, depths.steps):
        assert {path.split("layer.")[1][0] for path in seen} == {str(i) for i in range(depth, 2)}


def formula(config, layer, value, residual, read, ups):
    """The fusion of one place, written out: value = f + a, ups = what each adapter adds."""
    f = value - residual
    q = F.linear(f if config.query_before_ln else read, layer.query_weight, layer.query_bias)
    scores = torch.stack([(q * F.linear(u, layer.key_weight, layer.key_bias)).sum(-1) for u in ups], -1)
    shares = scores.softmax(-1)
    added = [F.linear(u + f if config.residual_before else u, layer.value_weight) for u in ups]
    mixed = sum(shares[..., n, None] * one for n, one in enumerate(added))
    return mixed + residual + (0 if config.residual_before else f)


@pytest.mark.parametrize("residual_before", [False, True])
@pytest.mark.parametrize("query_before_ln", [False, True])
@torch.no_grad()
def test_the_options_are_what_their_formulas_say(query_before_ln, residual_before):
    config = hfadapt.FusionConfig(query_before_ln=query_before_ln, residual_before=residual_before)
    model, inputs = classifier(config)
    seen = []
    (layer, *_) = fusion_layers(model).values()

    def note(module, args, output):
        value, _, leaf, routing, _ = args
        seen.append((value, routing.taps[layer.residual.key], type(leaf).forward(leaf, value), output))

    layer.register_forward_hook(note)
    model(**inputs)
    ((value, residual, read, output),) = seen
    (_, delta) = next(iter(deltas_of(model, "a")))
    ups = []
    for name in ("a", "b"):
        w = delta.adapters[name]
        ups.append(F.linear(torch.relu(F.linear(read, w.down, w.down_bias)), w.up, w.up_bias))
    want = formula(config, layer, value, residual, read, ups)
    torch.testing.assert_close(output, want, rtol=0, atol=1e-9)


@pytest.fixture
def many():
    """Three toy tasks whose adapters are trained; the first task uses all of them through a fusion."""
    model = toy_model(toy_tasks(), "pfeiffer")
    hfadapt.add_fusion(model, hfadapt.Fuse("topic", "score", "same"), activate_it=False)
    move(model)
    model.use("topic", hfadapt.Fuse("topic", "score", "same"))
    return model


def test_a_task_of_several_uses_a_fusion_of_all(many):
    batch = toy_batch(toy_tasks())
    own = copy.deepcopy(many)
    own.routes.clear()
    with torch.no_grad():
        fused, before = many(**batch), own(**batch)
    for task, same in (("topic", False), ("score", True), ("same", True)):
        got, want = many.logits_of(fused, task), own.logits_of(before, task)
        assert torch.allclose(got, want, rtol=1e-5, atol=1e-6) == same
    one = toy_batch(toy_tasks(), ["topic"])
    torch.testing.assert_close(many(**one).logits[0, :2], fused.logits[0, :2], rtol=1e-5, atol=1e-5)


def test_the_loss_of_several_tasks_holds_the_penalty_of_the_fusions_that_ran(many):
    for name, held in (("topic", True), ("score", False)):
        batch = toy_batch(toy_tasks(), [name])
        for module in many.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        evaluation, training = many.eval()(**batch).loss, many.train()(**batch).loss
        extra = hfadapt.fusion_regularizer(many) if held else torch.zeros(())
        torch.testing.assert_close(training - evaluation, extra, rtol=1e-4, atol=1e-6)


def test_a_task_that_uses_a_fusion_is_saved_and_loaded(many, tmp_path):
    batch = toy_batch(toy_tasks())
    many.save_pretrained(tmp_path)
    again = hfadapt.MultiTaskModel.from_pretrained(tmp_path, base=tiny_model("bert"))
    assert again.routes == many.routes
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, many(**batch).logits)


@torch.no_grad()
def test_recording_pruning_and_the_heat_map_from_end_to_end(many, tmp_path):
    """Weights are recorded over data, the least used adapter goes, and what is left is a fusion of the others."""
    batches = [toy_batch(toy_tasks(), ["topic"]) for _ in range(2)]
    with hfadapt.record_fusion(many) as record:
        for batch in batches:
            many(**batch)
    kept = hfadapt.prune_fusion(many, record, keep=2)
    for path, names in kept.items():
        least = min(record.means[path], key=record.means[path].get)
        assert set(names) == {"topic", "score", "same"} - {least}
    pruned = many(**batches[0]).logits
    with hfadapt.record_fusion(many) as after:
        many(**batches[0])
    for path, names in kept.items():
        means = after.means[path]
        assert sum(means[n] for n in names) == pytest.approx(1.0) and sum(means.values()) == pytest.approx(1.0)
    many.save_pretrained(tmp_path / "saved")
    again = hfadapt.MultiTaskModel.from_pretrained(tmp_path / "saved", base=tiny_model("bert"))
    assert torch.equal(again(**batches[0]).logits, pruned)
    pytest.importorskip("matplotlib")
    figure = record.plot(tmp_path / "fusion.png")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["topic", "score", "same"]
    assert axes.images[0].get_array().shape == (len(record.means), 3)
    assert (tmp_path / "fusion.png").stat().st_size > 1000
