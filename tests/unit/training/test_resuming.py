"""Trainer resumes the run that wrote a checkpoint; what another run wrote is refused before anything is loaded."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer

import hfadapt
from hfadapt import Classification, MultiTaskModel, OwnHead, Task
from hfadapt.adapters.resume import resumed_folder
from hfadapt.errors import CheckpointError
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import toy_rows, toy_tasks

ARGS = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}


def task(name, labels=2):
    return Task(name, Classification(labels), data={"train": toy_rows("class", 16, 1)})


def bits(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def refused(trainer, checkpoint, match):
    """What is refused leaves the model, its modes and its optimizer as they were."""
    before = bits(trainer.model)
    with pytest.raises(CheckpointError, match=match):
        trainer.train(resume_from_checkpoint=str(checkpoint))
    after = bits(trainer.model)
    assert before.keys() == after.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert trainer.optimizer is None and trainer.state.global_step == 0


TASKS = [task("a"), task("b", 3), task("c")]
MANY = Task("a", hfadapt.MultiLabel(2), data=[{"text": "w1 w2", "label": ["y", "z"]}], label_names=("y", "z"))
OTHERS = {
    "order": ([TASKS[1], TASKS[0], TASKS[2]], {}, r"tasks in another order.*got: a, b, c; allowed: b, a, c"),
    "order of equal shapes": ([TASKS[2], TASKS[1], TASKS[0]], {}, r"tasks in another order.*allowed: c, b, a"),
    "names": ([task("a"), task("x", 3), task("c")], {}, r"other tasks.*got: a, b, c; allowed: a, x, c"),
    "fewer": (TASKS[:2], {}, r"other tasks.*got: a, b, c; allowed: a, b,"),
    "more": ([*TASKS, task("d")], {}, r"other tasks.*got: a, b, c; allowed: a, b, c, d"),
    "labels": ([task("a"), task("b", 4), task("c")], {}, r"other heads.*got: b: classification 3.*classification 4"),
    "kind": ([MANY, *TASKS[1:]], {}, r"other heads.*a: classification 2.*multi"),
    "rank": (TASKS, {"method": hfadapt.LoRA(4)}, r"adapter 'a' is of another method.*\"r\": 2.*\"r\": 4"),
    "scale": (TASKS, {"method": hfadapt.LoRA(2, lora_alpha=64)}, "adapter 'a' is of another method"),
    "method": (TASKS, {"method": "low_rank"}, "adapter 'a' is of another method"),
    "no method": (TASKS, {"method": None}, r"other adapters.*got: a, b, c; allowed: none"),
    "base": (TASKS, {"train_base": True}, r"train_base=False.*train_base=True"),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Keeps checkpoints between tests, which only read them."""
    return tmp_path_factory.mktemp("written")


@pytest.fixture
def checkpoint(written, make_trainer):
    folder = written / "run"
    if not folder.exists():
        make_trainer(folder, tasks=TASKS, method=hfadapt.LoRA(2), **ARGS).train()
    return folder / "checkpoint-1"


@pytest.mark.parametrize("what", OTHERS)
def test_a_checkpoint_of_other_tasks_or_methods_is_refused_before_it_is_loaded(make_trainer, checkpoint, what):
    tasks, options, match = OTHERS[what]
    trainer = make_trainer("other", tasks=tasks, **{"method": hfadapt.LoRA(2), **options}, **ARGS)
    refused(trainer, checkpoint, match)


def test_the_same_tasks_resume_to_the_bit(make_trainer, trained, checkpoint):
    whole = load_file(checkpoint.parent / "checkpoint-2" / "model.safetensors")
    again = make_trainer("again", tasks=TASKS, method=hfadapt.LoRA(2), **ARGS)
    again.train(resume_from_checkpoint=str(checkpoint))
    again.save_model(again.args.output_dir + "/end")
    found = load_file(again.args.output_dir + "/end/model.safetensors")
    assert found.keys() == whole.keys() and all(torch.equal(found[key], whole[key]) for key in whole)


def test_heads_alone_in_another_order_are_refused(make_trainer, tmp_path):
    make_trainer("heads", tasks=TASKS, method=None, **ARGS).train()
    other = make_trainer("other", tasks=TASKS[::-1], method=None, **ARGS)
    refused(other, tmp_path / "heads" / "checkpoint-1", "another order")


@pytest.mark.parametrize("train_base", [False, True])
def test_tasks_with_the_bases_own_head(make_trainer, tmp_path, train_base):
    def build(folder, names, labels=2):
        tasks = [Task(name, OwnHead(), data={"train": toy_rows("class", 16, 1)}) for name in names]
        base = tiny_model("bert", "sequence-classification", num_labels=labels)
        model = MultiTaskModel.from_base(base, tasks, "low_rank", train_base=train_base)
        return make_trainer(folder, tasks=tasks, model=model, **ARGS)

    build("own", "ab").train()
    found = tmp_path / "own" / "checkpoint-1"
    refused(build("other", "ba"), found, "another order")
    refused(build("wide", "ab", 3), found, r"tensors differ from what the configs make.*classifier")
    build("again", "ab").train(resume_from_checkpoint=str(found))


def test_full_fine_tuning_of_a_base_of_another_width_leaves_the_model_as_it_was(make_trainer, tmp_path):
    def build(folder, size):
        base = tiny_model("bert", vocab_size=size)
        return make_trainer(
            folder, tasks=TASKS[:1], model=MultiTaskModel.from_base(base, TASKS[:1], None, train_base=True), **ARGS
        )

    build("full", 128).train()
    refused(build("other", 140), tmp_path / "full" / "checkpoint-1", "word_embeddings")


def test_checkpoints_resume_that_say_no_method_fields_of_newer_releases(make_trainer, checkpoint, tmp_path):
    """As an older release wrote them: fields that have defaults today are missing."""
    old = tmp_path / "old" / "checkpoint-1"
    old.mkdir(parents=True)
    for file in checkpoint.iterdir():
        (old / file.name).write_bytes(file.read_bytes())
    config = json.loads((old / "hfadapt_config.json").read_text("utf-8"))
    config.pop("fusions", None)
    for methods in config["adapters"].values():
        for method in methods:
            for field in set(method) - {"method", "r"}:
                del method[field]
    (old / "hfadapt_config.json").write_text(json.dumps(config))
    make_trainer("again", tasks=TASKS, method=hfadapt.LoRA(2), **ARGS).train(resume_from_checkpoint=str(old))


def test_weights_loaded_by_hand_go_by_name(make_trainer, checkpoint):
    """Only an optimizer's state goes by order, and none is loaded here."""
    other = make_trainer("other", tasks=TASKS[::-1], method=hfadapt.LoRA(2), **ARGS).model
    saved = load_file(checkpoint / "model.safetensors")
    other.load_state_dict(saved)
    own = other.state_dict()
    heads = [key for key in saved if key.startswith("heads.")]
    assert heads and all(torch.equal(own[key], saved[key]) for key in heads)


def stock(make_trainer, folder, names=("a",), method=None, labels=2, **attach):
    torch.manual_seed(3)
    model = tiny_model("bert", "sequence-classification", num_labels=labels)
    if names:
        hfadapt.attach(model, method or hfadapt.LoRA(2), names=names, **attach)
        hfadapt.activate(model, names[0])
    trainer = make_trainer(folder, tasks=toy_tasks()[:1], model=model, **ARGS)
    trainer.compute_metrics = None
    return trainer


@pytest.fixture
def stock_checkpoint(written, make_trainer):
    folder = written / "stock"
    if not folder.exists():
        stock(make_trainer, folder).train()
    return folder / "checkpoint-1"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"names": ("b",)}, r"other adapters|missing .*\.b\."),
        ({"names": ("a", "b")}, r"other adapters|missing .*\.b\."),
        ({"method": hfadapt.LoRA(4)}, "another method|tensors differ"),
        ({"method": "low_rank"}, "another method|tensors differ"),
        ({"method": hfadapt.LoRA(2, target_modules=("query", "key", "value"))}, "another method|missing"),
        ({"method": hfadapt.LoRA(2, layers=(0,))}, "another method|unexpected"),
        ({"labels": 3}, "tensors differ.*classifier"),
        ({"train_head": False}, "unexpected.*classifier"),
        ({"modules_to_save": ["pooler"]}, "missing.*pooler"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_stock_model_with_other_adapters_is_refused(make_trainer, stock_checkpoint, options, match):
    refused(stock(make_trainer, "other", **options), stock_checkpoint, match)


def test_a_checkpoint_of_the_bare_base_is_refused(make_trainer, tmp_path):
    stock(make_trainer, "bare", names=()).train()
    refused(stock(make_trainer, "other"), tmp_path / "bare" / "checkpoint-1", "missing .*hfadapt")


def test_a_model_that_was_detached_loads_as_stock():
    model = tiny_model("bert")
    hfadapt.attach(model, hfadapt.LoRA(2))
    assert model._load_state_dict_pre_hooks
    hfadapt.detach(model)
    assert not model._load_state_dict_pre_hooks
    model.load_state_dict(tiny_model("bert").state_dict())


@pytest.mark.parametrize("beside", [".", "hfadapt"])
def test_adapters_in_another_order_are_refused_where_the_checkpoint_says_theirs(make_trainer, tmp_path, beside):
    first = stock(make_trainer, "two", names=("a", "b"))
    first.train()
    found = tmp_path / "two" / "checkpoint-1"
    hfadapt.save(first.model, tmp_path / "record")
    (found / beside).mkdir(exist_ok=True)
    (found / beside / "hfadapt_config.json").write_bytes((tmp_path / "record" / "hfadapt_config.json").read_bytes())
    other = stock(make_trainer, "other", names=("b", "a"))
    refused(other, found, r"adapters in another order.*got: a, b; allowed: b, a")
    stock(make_trainer, "again", names=("a", "b")).train(resume_from_checkpoint=str(found))


def test_a_part_loaded_by_hand_into_an_adapted_model_stays_allowed():
    model = tiny_model("bert")
    hfadapt.attach(model, hfadapt.LoRA(2))
    left = model.load_state_dict(tiny_model("bert").state_dict(), strict=False)
    assert left.missing_keys and all("hfadapt" in key for key in left.missing_keys)


def test_the_folder_is_found_by_transformers_own_names(make_trainer, checkpoint, monkeypatch):
    seen = []

    def look(self, state_dict, strict=True, assign=False):
        seen.append(resumed_folder())
        raise InterruptedError

    monkeypatch.setattr(MultiTaskModel, "load_state_dict", look)
    with pytest.raises(InterruptedError):
        make_trainer("other", tasks=TASKS, **ARGS).train(resume_from_checkpoint=str(checkpoint))
    assert seen == [checkpoint] and resumed_folder() is None
    assert hasattr(Trainer, "_load_from_checkpoint")


def test_a_record_that_cannot_be_read_is_named(make_trainer, checkpoint, tmp_path):
    broken = tmp_path / "broken" / "checkpoint-1"
    broken.mkdir(parents=True)
    save_file(load_file(checkpoint / "model.safetensors"), broken / "model.safetensors", metadata={"format": "pt"})
    (broken / "hfadapt_config.json").write_text('{"format": "hfadapt", "for')
    refused(make_trainer("other", tasks=TASKS, method=hfadapt.LoRA(2), **ARGS), broken, "cannot be read")
