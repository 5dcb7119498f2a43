"""Tasks that use the head the base brings along."""

from __future__ import annotations

import pytest
import torch

from hfadapt import (
    MultiTaskModel,
    OwnHead,
    Task,
    TaskMixture,
)
from hfadapt.errors import TaskError
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import tiny_tokenizer, toy_batch


def test_own_head_uses_the_bases_loss():
    stock = tiny_model("bert", "sequence-classification", num_labels=3)
    rows = [{"text": f"w{i} w3", "label": i % 3} for i in range(4)]
    chosen = [Task("a", OwnHead(), data=rows), Task("b", OwnHead(), data=rows)]
    batch = toy_batch(chosen, ["a", "a", "a"])
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "token_type_ids")}
    want = stock(**inputs, labels=batch["labels"][:, 0].long())
    model = MultiTaskModel.from_base(stock, chosen, None).eval()
    got = model(**batch)
    torch.testing.assert_close(got.loss, want.loss)
    torch.testing.assert_close(got.logits, want.logits)
    assert model.base.classifier.weight.requires_grad


def test_own_head_on_tokens_takes_labels_of_any_width():
    stock = tiny_model("bert", "token-classification", num_labels=3)
    model = MultiTaskModel.from_base(stock, [Task("a", OwnHead())], "low_rank").eval()
    ids = torch.tensor([[2, 5, 9, 3], [2, 6, 3, 0]])
    labels = torch.tensor([[-100.0, 1, 2], [-100, 0, -100]])
    got = model(input_ids=ids, labels=labels)
    logits = got.logits.reshape(2, 4, 3)
    want = torch.nn.functional.cross_entropy(logits[:, :3].flatten(0, 1), labels.flatten().long(), ignore_index=-100)
    torch.testing.assert_close(got.loss, want)


TEXTS = [{"text": f"w{i} w{i + 1}", "label": f"w{i + 2} w{i + 3}"} for i in range(6)]


def test_own_head_learns_texts_with_an_encoder_decoder():
    tokenizer = tiny_tokenizer(padding_side="left")
    chosen = [Task(name, OwnHead(labels="text"), data=TEXTS) for name in ("a", "b")]
    mix = TaskMixture(chosen, tokenizer)
    batch = mix.collator([mix.dataset("train", ["a"])[0], mix.dataset("train", ["b"])[1]])
    assert batch["labels"].tolist() == [[2, 6, 7, 3], [2, 7, 8, 3]]
    model = MultiTaskModel.from_base(tiny_model("t5", "seq2seq-lm"), chosen, "low_rank").eval()
    assert model(**batch).loss.isfinite()


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_own_head_learns_continuations_with_a_causal_model(padding_side):
    tokenizer = tiny_tokenizer(padding_side)
    tokenizer.eos_token = "[SEP]"
    rows = [{"text": "w0 w1", "label": "w2"}, {"text": "w0 w1 w2 w3", "label": "w4 w5"}]
    chosen = [Task("a", OwnHead(labels="continuation"), data=rows)]
    mix = TaskMixture(chosen, tokenizer)
    batch = mix.collator([mix.dataset("train")[i] for i in range(2)])
    for row, answer in enumerate(([6, 3], [8, 9, 3])):
        kept = batch["labels"][row] >= 0
        assert batch["labels"][row][kept].tolist() == batch["input_ids"][row][kept].tolist() == answer
    model = MultiTaskModel.from_base(tiny_model("gpt2", "causal-lm"), chosen, "low_rank").eval()
    assert model(**batch).loss.isfinite()


def test_a_prompt_that_leaves_no_room_for_its_continuation_is_cut():
    rows = [{"text": "w1 " * 40, "label": "w2 w3"}]
    mix = TaskMixture([Task("a", OwnHead(labels="continuation"), data=rows, max_length=16)], tiny_tokenizer())
    row = mix.train[0]
    assert len(row["input_ids"]) == 16 and row["input_ids"][-2:].tolist() == [6, 7]


def test_own_head_on_a_bare_base_is_refused():
    with pytest.raises(TaskError, match="OwnHead needs a base with a head"):
        MultiTaskModel.from_base(tiny_model("bert"), [Task("a", OwnHead())], None)


def own_head_batch(kind, size=6):
    """A stock model, labels for ``size`` rows, and inputs."""
    options = {"classes": ("bert", "sequence-classification", {"num_labels": 3}),
               "numbers": ("bert", "sequence-classification", {"num_labels": 1}),
               "tokens": ("bert", "token-classification", {"num_labels": 3}),
               "causal": ("gpt2", "causal-lm", {})}  # fmt: skip
    model_type, task, more = options[kind]
    ids = torch.randint(4, 90, (size, 5), generator=torch.Generator().manual_seed(0))
    labels = {
        "classes": torch.arange(size) % 3,
        "numbers": torch.linspace(-1, 1, size),
        "tokens": (ids % 3).masked_fill(ids > 70, -100),
        "causal": ids.masked_fill(ids < 20, -100),
    }[kind]
    return tiny_model(model_type, task, **more), {"input_ids": ids}, labels


@pytest.mark.parametrize("kind", ["classes", "numbers", "tokens", "causal"])
def test_own_head_weighs_the_tasks_of_a_mixed_batch(kind):
    stock, inputs, labels = own_head_batch(kind)
    ids = torch.tensor([0, 1, 0, 1, 1, 0])
    want = []
    for rows in (ids == 0, ids == 1):
        loss = stock(input_ids=inputs["input_ids"][rows], labels=labels[rows]).loss
        counted = labels[rows][:, 1:] if kind == "causal" else labels[rows]
        want.append(loss * (counted != -100).sum())
    counted = (labels[:, 1:] if kind == "causal" else labels) != -100
    weighted = (want[0] * 0.5 + want[1] * 3.0) / counted.sum()
    tasks = [Task("a", OwnHead(), loss_weight=0.5), Task("b", OwnHead(), loss_weight=3.0)]
    model = MultiTaskModel.from_base(stock, tasks, None).eval()
    torch.testing.assert_close(model(**inputs, task_ids=ids, labels=labels.float()).loss, weighted)


def test_own_head_weighs_a_batch_of_one_task_and_equal_weights():
    stock, inputs, labels = own_head_batch("classes")
    plain = stock(**inputs, labels=labels).loss
    tasks = [Task("a", OwnHead(), loss_weight=0.5), Task("b", OwnHead(), loss_weight=3.0)]
    model = MultiTaskModel.from_base(stock, tasks, None).eval()
    torch.testing.assert_close(model(**inputs, task_ids="b", labels=labels.float()).loss, 3 * plain)
