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
