"""A stock model with adapters under plain Trainer: the column ``task_ids`` reaches it, or training does not begin."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments, default_data_collator

import hfadapt
from hfadapt.errors import RoutingError
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import tiny_tokenizer
from tests.unit.releases import checkpoint_activations


class FixedColumns(Trainer):
    """Has a list of columns of its own, as TRL's trainers have."""

    def _set_signature_columns_if_needed(self):
        self._signature_columns = ["input_ids", "labels"]


class Packing(Trainer):
    """Makes new rows of tokens alone before Trainer's constructor sees any, and keeps one as it was, as TRL's do."""

    def __init__(self, train_dataset=None, eval_dataset=None, **options):
        sample = next(iter(train_dataset))
        assert "input_ids" in sample
        kept = ["input_ids", "attention_mask", "label"]
        train_dataset = train_dataset.select_columns(kept)
        eval_datasets = {"eval": eval_dataset}
        eval_dataset = eval_datasets["eval"].select_columns(kept)
        super().__init__(train_dataset=train_dataset, eval_dataset=eval_dataset, **options)


def rows(ids):
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "input_ids": torch.randint(5, 90, (6,), generator=generator).tolist(),
            "attention_mask": [1] * 6,
            "label": n % 2,
            "task_ids": ids[n % len(ids)],
            "text": "dropped",
        }
        for n in range(8)
    ]


def trainer(folder, kind=Trainer, ids=(0, 0, 2, 2), collator=None, data=None, model=None, **options):
    if model is None:
        model = tiny_model("bert", "sequence-classification")
        hfadapt.attach(model, "lora", names=("one", "two", "three"), seed=0)
        hfadapt.activate(model, "two")
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=4,
        report_to="none",
        learning_rate=1e-2,
        use_cpu=True,
        **options,
    )
    data = Dataset.from_list(rows(ids)) if data is None else data
    return kind(
        model=model,
        args=arguments,
        train_dataset=data,
        eval_dataset=data,
        data_collator=collator or DataCollatorWithPadding(tiny_tokenizer()),
    )


def weights(model):
    return {n: {k: p.clone() for k, p in hfadapt.parameters_of(model, n).items()} for n in ("one", "two", "three")}


def moved(model, before):
    after = weights(model)
    return {n for n in before if any(not torch.equal(before[n][k], after[n][k]) for k in before[n])}


def test_the_column_survives_plain_trainer(tmp_path):
    made = trainer(tmp_path)
    before = weights(made.model)
    made.train()
    assert moved(made.model, before) == {"one", "three"}
    assert made.evaluate()["eval_loss"] > 0


@pytest.mark.parametrize(
    "case",
    [
        {"kind": FixedColumns},
        {"kind": FixedColumns, "collator": default_data_collator},
        {"ids": ("one", "three"), "collator": default_data_collator},
        {"data": rows(("one", "three")), "collator": default_data_collator},
    ],
    ids=["fixed columns", "fixed columns, default collator", "names, default collator", "list of rows"],
)
@pytest.mark.parametrize("chosen", ["two", None])
def test_a_lost_column_stops_training_before_the_first_step(tmp_path, case, chosen):
    made = trainer(tmp_path, **case)
    hfadapt.activate(made.model, chosen)
    before = weights(made.model)
    with pytest.raises(RoutingError, match="column 'task_ids', which did not reach the model"):
        made.train()
    assert made.state.global_step == 0 and not moved(made.model, before)
    with pytest.raises(RoutingError, match="did not reach the model"):
        made.evaluate()
    with pytest.raises(RoutingError, match="did not reach the model"):
        made.predict(made.eval_dataset)


@pytest.mark.parametrize("chosen", ["two", None])
@pytest.mark.parametrize("case", [{}, {"remove_unused_columns": False}], ids=["", "unused columns kept"])
def test_a_column_that_was_packed_away_stops_training_before_the_first_step(tmp_path, chosen, case):
    made = trainer(tmp_path, kind=Packing, ids=("one", "three"), **case)
    hfadapt.activate(made.model, chosen)
    before = weights(made.model)
    with pytest.raises(RoutingError, match="'task_ids', which the trainer took out"):
        made.train()
    assert made.state.global_step == 0 and not moved(made.model, before)
    with pytest.raises(RoutingError, match="took out"):
        made.evaluate()


def test_data_that_never_had_the_column_is_packed_and_trained(tmp_path):
    data = Dataset.from_list(rows((0,))).remove_columns("task_ids")
    kept = trainer(tmp_path, kind=Packing, ids=("one",))  # another Trainer of the same model
    made = trainer(tmp_path, kind=Packing, data=data, model=kept.model)
    before = weights(made.model)
    made.train()
    made.evaluate()
    assert moved(made.model, before) == {"two"}


def test_a_trainer_without_any_adapter_over_a_frozen_base_is_refused(tmp_path):
    data = Dataset.from_list(rows((0,))).remove_columns("task_ids")
    made = trainer(tmp_path, data=data)
    hfadapt.activate(made.model, None)
    for _ in range(2):
        with pytest.raises(RoutingError, match="nothing would learn"):
            made.train()
        checkpoint_activations(made.model)  # lets the embeddings' output require a gradient
    made = trainer(tmp_path, data=data)
    hfadapt.activate(made.model, None)
    made.model.classifier.weight.requires_grad_(True)
    before = made.model.classifier.weight.clone()
    made.train()
    assert not torch.equal(made.model.classifier.weight, before)


def test_data_without_the_column_trains_what_is_active(tmp_path):
    made = trainer(tmp_path, data=Dataset.from_list(rows((0,))).remove_columns("task_ids"))
    before = weights(made.model)
    made.train()
    assert moved(made.model, before) == {"two"}
