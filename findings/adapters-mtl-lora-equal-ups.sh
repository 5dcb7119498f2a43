#!/bin/sh
# adapters 1.3.0: the up-projections of MTL-LoRA stay equal, however long they train, so that several compute what one does.
#
# All of them start at zero with equal weights, so each gets the same gradient in every step, and its weight too. Exit
# status 0: adapters still does so.
set -eu

venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install --quiet torch==2.13.0
"$venv/bin/pip" install --quiet transformers==4.57.6 adapters==1.3.0

"$venv/bin/python" -W ignore - <<'PY'
import adapters
import torch
import transformers

print(f"torch {torch.__version__}, transformers {transformers.__version__}, adapters {adapters.__version__}")
torch.manual_seed(0)
config = transformers.BertConfig(
    vocab_size=50,
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=64,
    initializer_range=0.3,  # with the small one of pretraining all outputs are near zero
)
model = transformers.BertModel(config)
adapters.init(model)
model.add_adapter("tasks", config=adapters.MTLLoRAConfig(r=4, n_up_projection=3))
model.train_adapter("tasks")
trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
wanted = torch.randn(32)
for _ in range(50):
    loss = (model(torch.randint(3, 50, (8, 6)))[0] - wanted).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
ups = [parameter for name, parameter in trained.items() if name.endswith("lora_B")]
shares = [parameter for name, parameter in trained.items() if name.endswith(".weights")]
print(f"{len(ups)} places, up-projections {tuple(ups[0].shape)}, largest {max(up.abs().max().item() for up in ups):.3f}")
print(f"largest difference between two at a place: {max((up - up[:1]).abs().max().item() for up in ups)}")
assert all(up.any() and torch.equal(up, up[:1].expand_as(up)) for up in ups), "adapters changed: they part"
assert all(torch.equal(share, share[:1].expand_as(share)) for share in shares), "adapters changed: their weights part"
PY
