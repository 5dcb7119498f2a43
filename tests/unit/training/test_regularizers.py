"""Regularizers in a plain Trainer: every form of training, checkpoints, tasks, and what is refused."""

from __future__ import annotations

import functools
import logging
import tempfile
import warnings

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

import hfadapt
from hfadapt import plugins
from hfadapt.errors import ArchitectureError, CheckpointError, ConfigError, RoutingError
from hfadapt.testing.regularizers import tiny_batch, tiny_classifier
from hfadapt.testing.tiny import tiny_inputs, tiny_model
from hfadapt.testing.toy import toy_model, toy_tasks
from tests.unit.releases import older

NAMES = list(plugins.regularizers())
LARGE = {"smart": {"epsilon": 0.05, "sigma": 0.02, "step_size": 0.04}, "r3f": {"sigma": 0.05}, "r4f": {"sigma": 0.05}}


def rows(count=16):
    batch = tiny_batch(count)
    return [{name: value[row] for name, value in batch.items()} for row in range(count)]


def trainer_of(model, folder, regularizer=None, options=None, *, data=None, callbacks=(), model_init=None, **changes):
    fields = {
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "logging_strategy": "no",
    }
    args = TrainingArguments(output_dir=str(folder), **{**fields, **changes})
    trainer = Trainer(
        model=model, args=args, train_dataset=data or rows(), callbacks=list(callbacks), model_init=model_init
    )
    if regularizer is not None:
        hfadapt.regularize(trainer, regularizer, **(options or {}))
    return trainer


def trained(folder, name, model=None, **changes):
    set_seed(0)
    model = tiny_classifier() if model is None else model
    trainer_of(model, folder, name, LARGE.get(name), **changes).train()
    return {key: p.detach().clone() for key, p in model.named_parameters()}


@functools.cache
def plainly(name):
    """What a training ends with whose settings are all as they are; many tests compare with it."""
    with tempfile.TemporaryDirectory() as folder:
        return trained(folder, name)


def largest_difference(left, right):
    return max(float((left[key].double() - right[key].double()).abs().max()) for key in left)


def same(left, right):
    return all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("name", NAMES)
def test_trains_and_moves_only_what_trains(tmp_path, name):
    plain, with_it = plainly(None), trained(tmp_path, name)
    assert largest_difference(plain, with_it) > 1e-6
    start = dict(tiny_classifier().named_parameters())
    frozen = [key for key, p in start.items() if not p.requires_grad]
    assert frozen and all(torch.equal(start[key], with_it[key]) for key in frozen)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_trainer_makes_when_it_trains_is_regularised_as_one_that_it_is_given(tmp_path, name):
    """``Trainer(model_init=...)``, as a search has it, makes another model at each ``train``."""

    def model_init():
        model = tiny_classifier()
        set_seed(0)  # as a Trainer that is given its model seeds after it was made
        return model

    want = trained(tmp_path, name, seed=0)
    trainer = trainer_of(None, tmp_path, name, LARGE.get(name), model_init=model_init, seed=0)
    for _ in range(2):
        trainer.train()
        assert same(want, dict(trainer.model.named_parameters()))


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "other"])
@pytest.mark.parametrize("name", NAMES)
def test_activation_checkpointing_of_both_forms_changes_nothing(tmp_path, name, reentrant):
    changed = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer releases have another word for it
        got = trained(tmp_path, name, **changed)
    assert largest_difference(got, plainly(name)) <= 1e-9


@pytest.mark.parametrize("name", ["smart", "freelb", "sam"])
def test_full_fine_tuning(tmp_path, name):
    plain, got = (trained(tmp_path, one, tiny_classifier(None)) for one in (None, name))
    assert largest_difference(plain, got) > 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_autocast(tmp_path, name, caplog):
    set_seed(0)
    model = tiny_classifier().float()
    with caplog.at_level(logging.WARNING, "hfadapt"):
        trainer_of(model, tmp_path, name, bf16=True).train()
    assert all(p.isfinite().all() for p in model.parameters())
    said = [r.message for r in caplog.records if "below what torch.bfloat16 can hold" in r.message]
    assert len(said) == (name in ("smart", "r3f", "r4f")) and all("float32, outside of autocast" in one for one in said)


def test_searches_compute_in_float32_under_autocast(tmp_path):
    model, seen = tiny_classifier().float(), []
    dense = model.bert.encoder.layer[0].intermediate.dense
    dense.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    trainer_of(
        model, tmp_path, "smart", {"proximal": "none"}, bf16=True, max_steps=1, gradient_accumulation_steps=1
    ).train()
    # the clean pass, then the reference, one search and the pass at its end
    assert seen == [torch.bfloat16, torch.float32, torch.float32, torch.float32]


# one of each kind: what compares with the clean pass, what trains at a perturbation, what repeats an update
@pytest.mark.parametrize("name", ["smart", "freelb", "sam"])
def test_compiled_models_train_as_others(tmp_path, name):
    def one(**changes):
        return trained(
            tmp_path, name, tiny_classifier(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), **changes
        )

    got = one(torch_compile=True, torch_compile_backend="aot_eager", max_steps=2)
    assert largest_difference(got, one(max_steps=2)) <= 1e-7
    torch._dynamo.reset()


def test_sam_takes_the_gradient_at_the_worst_point_over_all_accumulated_batches(tmp_path):
    model = tiny_classifier(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    other = tiny_classifier(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    changes = {"optim": "sgd", "max_steps": 1, "max_grad_norm": 0.05, "lr_scheduler_type": "constant"}
    trainer = trainer_of(model, tmp_path, "sam", {"rho": 0.1}, data=rows(8), **changes)
    trainer.train()
    parameters = [p for p in other.parameters() if p.requires_grad]
    batch = tiny_batch(8)

    def gradient():
        other.zero_grad()
        other(**batch).loss.backward()
        return [p.grad.clone() for p in parameters]

    first = gradient()
    size = torch.cat([g.flatten() for g in first]).norm()
    start = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p, g in zip(parameters, first, strict=True):
            p.add_(0.1 * g / size)
    second = gradient()
    clip = min(1.0, 0.05 / float(torch.cat([g.flatten() for g in second]).norm()))
    assert clip < 1
    got = [p for p in model.parameters() if p.requires_grad]
    for p, before, g in zip(got, start, second, strict=True):
        torch.testing.assert_close(p.detach(), before - 1e-2 * clip * g, rtol=1e-5, atol=1e-9)


def test_freeat_updates_after_every_replay(tmp_path):
    counted = []

    class Count(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            counted.append(state.global_step)

    trainer_of(tiny_classifier(), tmp_path, "freeat", {"steps": 3}, callbacks=[Count()], max_steps=2).train()
    assert counted == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("method", [None, "lora"])
def test_r4f_holds_the_head_within_its_bound(tmp_path, method):
    model = tiny_classifier(method)
    heads = [one for one in model.classifier.modules() if isinstance(one, torch.nn.Linear) and one.weight.requires_grad]
    with torch.no_grad():
        for head in heads:
            head.weight.mul_(50)
    trainer_of(model, tmp_path, "r4f", {"lipschitz": 0.7}).train()
    (size,) = [float(torch.linalg.matrix_norm(head.weight.detach(), 2)) for head in heads]
    assert 0.5 < size <= 0.7 + 1e-6


def test_evaluation_is_that_of_a_trainer_without_it(tmp_path):
    ends = []
    for name in (None, "smart"):
        trainer = trainer_of(tiny_classifier(), tmp_path, name)
        trainer.eval_dataset = rows(8)
        ends.append(trainer.evaluate()["eval_loss"])
    assert ends[0] == ends[1]


NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.mark.parametrize(("model_type", "changes_of_config"), [("bert", NO_DROPOUT), ("qwen2", {})])
def test_a_terms_share_of_the_loss_does_not_depend_on_accumulation(tmp_path, model_type, changes_of_config):
    """Trainer adds up the means of heads that take no notice of num_items_in_batch: two micro-batches count twice."""
    moved = []
    for size, accumulated in ((8, 1), (4, 2)):
        set_seed(0)
        model = tiny_model(model_type, "sequence-classification", **changes_of_config).double()
        model.config.pad_token_id = 0
        before = {key: p.detach().clone() for key, p in model.named_parameters()}
        changes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated, "max_steps": 1}
        changes |= {"optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 1e-3}
        trainer_of(model, tmp_path, "r3f", {"sigma": 0.5, "weight": 5.0}, **changes).train()
        moved.append({key: p.detach() - before[key] for key, p in model.named_parameters()})
    whole = {key: 2 * change for key, change in moved[0].items()}
    assert largest_difference(whole, moved[1]) <= 1e-9
    assert max(float(change.abs().max()) for change in moved[0].values()) > 1e-6


def test_remove_takes_it_out_again(tmp_path):
    set_seed(0)
    model = tiny_classifier()
    trainer = trainer_of(model, tmp_path)
    hfadapt.regularize(trainer, "smart", **LARGE["smart"]).remove()
    trainer.train()
    assert same({key: p.detach() for key, p in model.named_parameters()}, plainly(None))


@pytest.mark.parametrize("proximal", ["momentum", "vanilla"])
@pytest.mark.skipif(older("accelerate", "1.8"), reason="resumes a plain Trainer's epoch with other rows")
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, proximal):
    options = {**LARGE["smart"], "proximal": proximal, "solves": 2, "momentum": (0.5, 0.9), "momentum_switch": 0.5}
    ends = []
    for resumed in (False, True):
        set_seed(0)
        folder = tmp_path / str(resumed)
        changes = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
        model = tiny_classifier(hidden_dropout_prob=0.1)
        trainer = trainer_of(model, folder, "smart", options, **changes)
        trainer.train()
        if resumed:
            set_seed(1)
            model = tiny_classifier(hidden_dropout_prob=0.1)
            trainer = trainer_of(model, folder, "smart", options, **changes)
            trainer.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
        regularization = trainer.compute_loss.__self__
        (teacher,) = regularization.teachers.values()
        ends.append(({key: p.detach().clone() for key, p in model.named_parameters()}, teacher.tensors))
    assert same(*(one[0] for one in ends)) and same(*(one[1] for one in ends))
    assert largest_difference(ends[0][1], {k: ends[0][0][k] for k in ends[0][1]}) > 0 or proximal == "vanilla"


def test_the_teacher_holds_what_trains_and_nothing_else(tmp_path):
    model = tiny_classifier()
    trainer = trainer_of(model, tmp_path, "smart", max_steps=1)
    trainer.train()
    (teacher,) = trainer.compute_loss.__self__.teachers.values()
    assert set(teacher.tensors) == {name for name, p in model.named_parameters() if p.requires_grad}


def test_checkpoints_without_or_with_another_teacher_are_refused_before_training(tmp_path):
    changes = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    trainer_of(tiny_classifier(), tmp_path / "with", "smart", **changes).train()
    trainer_of(tiny_classifier(), tmp_path / "without", **changes).train()
    again = trainer_of(tiny_classifier(), tmp_path / "without", "smart", **changes)
    with pytest.raises(CheckpointError, match="holds no teacher.*try: resume from an older checkpoint"):
        again.train(resume_from_checkpoint=str(tmp_path / "without" / "checkpoint-1"))
    with pytest.raises(CheckpointError, match="holds no teacher"):
        again.train(resume_from_checkpoint=True)
    stolen = tmp_path / "without" / "checkpoint-1" / "regularizer_teacher.safetensors"
    other = tiny_classifier(hfadapt.LoRA(r=3))
    trainer_of(other, tmp_path / "other", "smart", **changes).train()
    stolen.write_bytes((tmp_path / "other" / "checkpoint-1" / stolen.name).read_bytes())
    with pytest.raises(CheckpointError, match="the teacher is of another model.*lora"):
        again.train(resume_from_checkpoint=str(tmp_path / "without" / "checkpoint-1"))
    stolen.write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="the teacher cannot be read"):
        again.train(resume_from_checkpoint=str(tmp_path / "without" / "checkpoint-1"))


def test_what_does_not_fit_is_refused_before_training(tmp_path):
    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, row):
            return {}

    vit = tiny_model("vit", "image-classification")
    trainer = trainer_of(vit, tmp_path, data=Images())
    with pytest.raises(ArchitectureError, match="no word embeddings.*vit|no word embeddings.*ViT"):
        hfadapt.regularize(trainer, "smart")
    for options, said in (
        ({"momentum_switch": 500}, "bad momentum_switch.*at most the run's 3"),
        ({"solves": 4}, "bad solves.*at most the run's 3"),
    ):
        with pytest.raises(ConfigError, match=said):
            trainer_of(tiny_classifier(), tmp_path, "smart", options).train()
    with pytest.raises(ConfigError, match="no dropout"):
        trainer_of(tiny_classifier(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), tmp_path, "r_drop")
    with pytest.raises(ConfigError, match="no linear that gives the answers"):
        trainer_of(tiny_model("gpt2", "causal-lm"), tmp_path, "r4f")
    twice = trainer_of(tiny_classifier(), tmp_path, "smart")
    with pytest.raises(ConfigError, match="has a regularizer already"):
        hfadapt.regularize(twice, "r3f")
    with pytest.raises(ConfigError, match="regularizers by task need a model with tasks"):
        trainer_of(tiny_classifier(), tmp_path, {"rte": "smart"})
    toy = toy_model(toy_tasks((16, 8, 8)), "lora")
    with pytest.raises(RoutingError, match="nope"):
        hfadapt.regularize(trainer_of(toy, tmp_path), {"nope": "smart"})
    with pytest.raises(ConfigError, match="holds for all tasks or none"):
        hfadapt.regularize(trainer_of(toy, tmp_path), {toy.tasks[0].name: "sam"})


class NeedsClosure(torch.optim.SGD):
    def step(self, closure):
        return super().step(closure)


class NoClosure(torch.optim.SGD):
    def step(self):
        return super().step()


@pytest.mark.parametrize("optimizer", [NeedsClosure, NoClosure, torch.optim.LBFGS])
def test_sam_refuses_optimizers_without_torchs_contract(tmp_path, optimizer):
    model = tiny_classifier()
    trainer = trainer_of(model, tmp_path)
    trainer.optimizer = optimizer([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with pytest.raises(ConfigError, match="SAM needs both gradients.*try: optim='adamw_torch'"):
        hfadapt.regularize(trainer, "sam")


@pytest.mark.parametrize(("model_type", "head"), [("t5", "seq2seq-lm"), ("gpt2", "causal-lm"), ("bart", "seq2seq-lm")])
@pytest.mark.parametrize("name", ["smart", "freelb", "yopo", "vat"])
def test_decoders_and_encoder_decoders(tmp_path, model_type, head, name):
    model = tiny_model(model_type, head)
    hfadapt.attach(model, "lora")
    given = tiny_inputs(model_type, head, batch=8, padding="right")
    given.pop("decoder_input_ids", None)
    given["labels"] = given["input_ids"].clone()
    data = [{key: value[row] for key, value in given.items()} for row in range(8)]
    trainer_of(model, tmp_path, name, data=data, max_steps=1).train()
    assert all(p.isfinite().all() for p in model.parameters())
