#!/bin/sh
# transformers 5.24.0 with accelerate 1.15.0: on CPU processes Trainer takes fsdp=True, and trains with data parallelism.
#
# accelerate turns FSDP on for kinds of accelerators that it lists, CPUs not among them; nothing is said, every process
# holds the whole model, and no parameter lies in shards. torch 2.13.0 itself shards over gloo on CPUs (fully_shard), as
# the second part shows. Exit status 0: it is still so.
set -eu

venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install --quiet torch==2.13.0
"$venv/bin/pip" install --quiet transformers==5.24.0 accelerate==1.15.0

cat > "$venv/train.py" <<'PY'
import logging
import os
import warnings

import accelerate
import torch
import transformers
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

warnings.filterwarnings("error", message="(?i).*fsdp.*")
said = []
logging.getLogger().addHandler(type("Said", (logging.Handler,), {"emit": lambda self, record: said.append(record.getMessage())})())
config = transformers.BertConfig(
    vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
)
model = transformers.BertForSequenceClassification(config)
rows = [{"input_ids": torch.randint(1, 64, (8,)), "labels": torch.tensor(i % 2)} for i in range(8)]
arguments = transformers.TrainingArguments(
    os.path.join(os.environ["HOME_OF_RUN"], "run"),
    max_steps=1,
    per_device_train_batch_size=2,
    use_cpu=True,
    save_strategy="no",
    report_to=[],
    disable_tqdm=True,
    fsdp=True,
    fsdp_config={"version": 2, "transformer_layer_cls_to_wrap": ["BertLayer"]},
)
trainer = transformers.Trainer(model=model, args=arguments, train_dataset=rows)
trainer.train()
kind = type(trainer.model_wrapped).__name__
shards = sum(hasattr(parameter, "full_tensor") for parameter in model.parameters())
names_fsdp = [text for text in said if "fsdp" in text.lower()]

plain = transformers.BertForSequenceClassification(config)
mesh = init_device_mesh("cpu", (2,))
for layer in plain.bert.encoder.layer:
    fully_shard(layer, mesh=mesh)
fully_shard(plain, mesh=mesh)
by_torch = sum(hasattr(parameter, "full_tensor") for parameter in plain.parameters())
if os.environ["RANK"] == "0":
    versions = f"transformers {transformers.__version__}, accelerate {accelerate.__version__}, torch {torch.__version__}"
    print(f"{versions}: fsdp is {arguments.fsdp}, the model is wrapped by {kind}")
    print(f"  parameters in shards: {shards} by Trainer, {by_torch} of {len(list(plain.parameters()))} by fully_shard")
    print(f"  lines of the log that name FSDP: {len(names_fsdp)}")
assert arguments.fsdp and kind == "DistributedDataParallel" and shards == 0 and not names_fsdp
assert by_torch == len(list(plain.parameters()))
torch.distributed.barrier()
torch.distributed.destroy_process_group()
PY

HOME_OF_RUN="$venv" OMP_NUM_THREADS=1 "$venv/bin/python" -W ignore -m torch.distributed.run --standalone \
  --nproc-per-node=2 "$venv/train.py"
