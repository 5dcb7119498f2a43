#!/bin/sh
# peft 0.19.0 and 0.21.2: a LoRA of experts (target_parameters) saved by one is read by the other as another update.
#
# From 0.19.1 on, a patch release, the factors of stacked matrices [experts, out, in] lie the other way round in the
# file. Where a matrix is as wide as high the sizes are the same, so that a folder of the older release loads without an
# error, and the model gives other outputs than those it was saved with. Exit status 0: still so.
set -eu

venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 peft==0.19.0

cat > "$venv/adapted.py" <<'PY'
import sys

import peft
import torch
from transformers import MixtralConfig, MixtralModel

folder, what = sys.argv[1:]
sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
config = MixtralConfig(vocab_size=50, num_hidden_layers=1, num_local_experts=2, num_experts_per_tok=1, **sizes)
torch.manual_seed(0)
base = MixtralModel(config).eval()
ids = torch.arange(8)[None]
with torch.no_grad():
    stock = base(ids)[0]
    if what == "save":
        lora = peft.LoraConfig(r=2, lora_alpha=8, target_modules=[], target_parameters=["experts.down_proj"])
        model = peft.get_peft_model(base, lora).eval()
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_()
        out = model(ids)[0]
        model.save_pretrained(folder)
        torch.save(out, f"{folder}/out.pt")
        print(f"peft {peft.__version__} saved; the update changes outputs by up to {(out - stock).abs().max():.2f}")
    else:
        out = peft.PeftModel.from_pretrained(base, folder).eval()(ids)[0]
        off = (out - torch.load(f"{folder}/out.pt")).abs().max()
        print(f"peft {peft.__version__} loaded it; outputs are off by up to {off:.2f}")
        sys.exit(not off > 0.1)
PY
"$venv/bin/python" -W ignore "$venv/adapted.py" "$venv/lora" save
"$venv/bin/pip" install --quiet peft==0.21.2
"$venv/bin/python" -W ignore "$venv/adapted.py" "$venv/lora" load
