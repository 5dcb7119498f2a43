"""Mistakes in recipes: each is refused with its line, what stands there, what may, and what to do."""

from __future__ import annotations

import pytest

from hfadapt.errors import ConfigError
from hfadapt.recipes.config import read_recipe

GOOD = """\
model: some/model
tasks:
  - sms_spam
  - {name: mine, data: mine.csv, head: {kind: classification, num_labels: 3}}
method: {method: lora, r: 8}
mixing: {strategy: temperature, batch_size: 16}
training: {learning_rate: 1e-4}
baselines: [frozen_head]
"""
TWO = "{method: design, form: prefix}"
#: An override that is a mistake, and what the error says of it.
MISTAKES = {
    "modle=x": "Did you mean 'model'",
    "tsaks=[a]": "Did you mean 'tasks'",
    "model=": "model",
    "model=[a, b]": "a word",
    "model={a: b}": "a word",
    "tasks=": "at least one task",
    "tasks=[]": "at least one task",
    "tasks=sms_spam": "at least one task",
    "tasks={a: b}": "at least one task",
    "tasks=[3]": "a task is a name or a mapping",
    "tasks=[[a]]": "a task is a name or a mapping",
    "tasks=[{data: x.csv}]": "'name' is missing",
    "tasks=[a, a]": "used twice",
    "tasks.mine.nmae=x": "Did you mean 'name'",
    "tasks.mien.data=x": "no item 'mien'",
    "tasks.9.data=x": "no item '9'",
    "tasks.mine.data=3": "wrong type",
    "tasks.mine.data=[a.csv]": "wrong type",
    "tasks.mine.head=clasification": "Did you mean 'classification'",
    "tasks.mine.head=3": "a head is a name",
    "tasks.mine.head=[a]": "a head is a name",
    "tasks.mine.head={num_labels: 3}": "key 'kind'",
    "tasks.mine.head={kind: classification, num_label: 3}": "Did you mean 'num_labels'",
    "tasks.mine.head={kind: classification, num_labels: 1}": "too few classes",
    "tasks.mine.head={kind: classification, num_labels: two}": "whole number",
    "tasks.mine.head={kind: classification, dropout: 1.5}": "dropout",
    "tasks.mine.head={kind: classification, dropout: -0.1}": "dropout",
    "tasks.mine.head={kind: classification, pooling: maen}": "pooling",
    "tasks.mine.head={kind: classification, label_smoothing: 1}": "label_smoothing",
    "tasks.mine.head={kind: regression, low: 3, high: 1}": "low",
    "tasks.mine.head={kind: multi_label, num_labels: 0}": "too few labels",
    "tasks.mine.metrics=3": "wrong type",
    "tasks.mine.columns=text": "wrong type",
    "tasks.mine.pair=both": "wrong type",
    "tasks.mine.loss_weight=0": "loss_weight",
    "tasks.mine.loss_weight=-1": "loss_weight",
    "tasks.mine.loss_weight=heavy": "wrong type",
    "tasks.mine.max_length=0": "max_length",
    "tasks.mine.max_length=12.5": "wrong type",
    "tasks.mine.limit={train: 0}": "limit",
    "tasks.mine.limit=100": "wrong type",
    "tasks.mine.splits=[a]": "wrong type",
    "tasks.mine.learning_rate=-1": "learning_rate",
    "tasks.mine.learning_rate=.nan": "wrong type",
    "tasks.mine.weight_decay=-.inf": "wrong type",
    "tasks.mine.regularizer=smrt": "Did you mean 'smart'",
    "tasks.mine.counts_labels=true": "unknown key",
    "method=": "method",
    "method=lroa": "Did you mean 'lora'",
    "method=3": "method",
    "method=[]": "method",
    "method={r: 8}": "key 'method'",
    "method={method: lora, rank: 8}": "unknown key 'rank'",
    "method.r=0": "r",
    "method.r=-2": "r",
    "method.r=eight": "wrong type",
    "method.r=8.5": "wrong type",
    "method.r=true": "wrong type",
    "method={method: lora, dropout: 1}": "dropout",
    "method={method: lora, dropout: -1}": "dropout",
    "method={method: lora, lora_alpha: .nan}": "wrong type",
    "method={method: lora, layers: many}": "bad layers",
    "method={method: pal, num_heads: 0}": "num_heads",
    "method={method: pal, size: 10, num_heads: 3}": "num_heads",
    "method={method: seq_bn, reduction_factor: 0}": "reduction_factor",
    "method={method: bottleneck, non_linearity: rleu}": "Did you mean 'relu'",
    "method={method: prefix, num_virtual_tokens: 0}": "num_virtual_tokens",
    "method={method: design, form: prefx}": "form",
    "mixing=aneal": "no mixing strategy",
    "mixing=3": "expected a mapping",
    "mixing={strategy: {t: 2}}": "key 'name'",
    "mixing={strategy: {name: temperature, t: 0}}": "t",
    "mixing={strategy: {name: temperature, tt: 2}}": "unknown key 'tt'",
    "mixing.batch=some": "wrong type",
    "mixing.batch_size=0": "batch_size",
    "mixing.batch_size=many": "wrong type",
    "mixing.epoch_steps=-1": "epoch_steps",
    "mixing.bucket_steps=0": "bucket_steps",
    "training=fast": "expected a mapping",
    "training.learning_rte=1": "Did you mean 'learning_rate'",
    "training.learning_rate=fast": "wrong type",
    "training.learning_rate=-1": "learning_rate",
    "training.num_train_epochs=many": "wrong type",
    "training.num_train_epochs=0": "num_train_epochs",
    "training.output_dir=x": "set by the recipe's own key",
    "training.seed=1": "set by the recipe's own key",
    "training.per_device_train_batch_size=4": "set by the recipe's own key",
    "training.save_strategy=sometimes": "wrong type",
    "training.warmup_steps=-5": "warmup_steps",
    "baselines=[frozen]": "Did you mean 'frozen_head'",
    "baselines=3": "baselines",
    "baselines={frozen_head: {learning_rte: 1}}": "Did you mean 'learning_rate'",
    "baselines={frozen_head: {head_learning_rate: 0}}": "head_learning_rate",
    "head_learning_rate=0": "head_learning_rate",
    "head_learning_rate=fast": "wrong type",
    "train_base=maybe": "wrong type",
    "adapter_drop=-1": "adapter_drop",
    "adapter_drop=1.5": "wrong type",
    "early_stopping=yes": "expected a mapping",
    "early_stopping={patience: 0}": "patience",
    "early_stopping={threshold: -1}": "threshold",
    "regularizer=smrt": "Did you mean 'smart'",
    "regularizer={name: smart, epsilon: -1}": "epsilon",
    "score_split=train": "wrong type",
    "output=[a]": "wrong type",
    "seed=-1": "seed",
    "seed=1.5": "wrong type",
    "seed=lucky": "wrong type",
    "learning_rate=1": "unknown key",
    "no_equals_sign": "not an override",
    "=3": "not an override",
    "model.name=x": "no mapping",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_refused_with_all_that_an_error_says(mistake: str) -> None:
    read_recipe(GOOD)
    with pytest.raises(ConfigError) as caught:
        read_recipe(GOOD, [mistake])
    assert MISTAKES[mistake] in str(caught.value)
    for error in caught.value.found or (caught.value,):
        parts = {part: getattr(error, part) for part in ("what", "where", "got", "allowed", "try_")}
        assert all(value not in (None, "") for value in parts.values()), (parts, str(error))
