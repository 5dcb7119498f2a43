#!/bin/sh
# transformers 5.24.0: with gradient accumulation, Trainer adds up the mean losses of sequence classifiers.
#
# Trainer hands every model whose forward takes keyword arguments the number of items of an update, and leaves the division
# to the model. BertForSequenceClassification takes the number and returns the mean of its micro-batch all the same, so
# that two batches of 4 give twice the gradient of one batch of 8: clipping, SGD and any term that is added to the loss
# depend on how the batch is cut. Exit status 0: the ratio of the two steps is still 2.
set -eu

venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 accelerate==1.15.0

"$venv/bin/python" -W ignore - <<'PY'
import tempfile

import torch
import transformers
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

generator = torch.Generator().manual_seed(0)
rows = [
    {"input_ids": torch.randint(5, 99, (7,), generator=generator), "labels": torch.tensor(row % 2)}
    for row in range(8)
]


def step(batch, accumulated):
    """How far one step of plain SGD moves the weights."""
    transformers.set_seed(0)
    config = BertConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )
    model = BertForSequenceClassification(config).double()
    before = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    arguments = TrainingArguments(
        tempfile.mkdtemp(), max_steps=1, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulated,
        optim="sgd", learning_rate=1e-3, max_grad_norm=0.0, use_cpu=True, report_to=[], save_strategy="no",
        logging_strategy="no", disable_tqdm=True,
    )
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach() - before


whole, cut = step(8, 1), step(4, 2)
ratio = float(cut.norm() / whole.norm())
along = float(cut @ whole / (cut.norm() * whole.norm()))
print(
    f"torch {torch.__version__}, transformers {transformers.__version__}: two batches of 4 move the weights "
    f"{ratio:.6f} times as far as one of 8, in the same direction (cosine {along:.6f})"
)
assert abs(ratio - 2) < 1e-6 and along > 1 - 1e-9, "transformers changed"
PY
