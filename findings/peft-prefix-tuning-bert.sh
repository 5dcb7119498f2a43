#!/bin/sh
# peft 0.21.2's prefix tuning of BERT raises on transformers 5.24.0 and works on 5.23.0.
#
# peft looks for the argument past_key_values in the model's signature, which 5.24.0 renamed to cache; its error says
# that the model does not support past key values. pip installs the two together without a word. Exit status 0: they
# still do not work together.
set -eu

venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install --quiet torch==2.13.0

for release in 5.23.0 5.24.0; do
    "$venv/bin/pip" install --quiet "transformers==$release" peft==0.21.2
    "$venv/bin/python" -W ignore - <<'PY'
import peft
import torch
import transformers

config = transformers.BertConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=50
)
model = peft.get_peft_model(
    transformers.BertForSequenceClassification(config),
    peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3),
)
try:
    found = f"logits {list(model(input_ids=torch.arange(12).view(2, 6)).logits.shape)}"
except ValueError as error:
    found = f"ValueError: {error}"
print(f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}: {found}")
wanted = {
    "5.23.0": "logits [2, 2]",
    "5.24.0": "ValueError: Model does not support past key values which are required for prefix tuning.",
}[transformers.__version__]
assert found == wanted, "peft or transformers changed"
PY
done
