#!/bin/sh
# adapters 1.3.0: prefix tuning of a decoder hides tokens under sdpa, the attention that transformers chooses by itself.
#
# The prefix stands before the keys, and sdpa's own causal mask counts from the first key: a token sees the prefix, and of
# the tokens before it only those that lie a prefix's length further back. Under eager attention it sees all of them. The
# base gives the same under both. Exit status 0: adapters still does so.
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
config = transformers.LlamaConfig(
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    intermediate_size=64,
    vocab_size=50,
    initializer_range=0.3,  # with the small one of pretraining all outputs are near zero
)
tokens = torch.arange(5, 11)[None]


def made(attention: str, prefix: bool) -> torch.nn.Module:
    torch.manual_seed(0)
    model = transformers.LlamaModel._from_config(config, attn_implementation=attention)
    if prefix:
        adapters.init(model)
        model.add_adapter("p", config=adapters.PrefixTuningConfig(prefix_length=4, flat=True))
        model.set_active_adapters("p")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "prefix" in name:
                    parameter.normal_()
    return model.eval()


@torch.no_grad()
def seen(model: torch.nn.Module) -> list[list[int]]:
    """For each token, the tokens whose change changes its output."""
    before, found = model(tokens)[0], [[] for _ in range(tokens.shape[1])]
    for place in range(tokens.shape[1]):
        other = tokens.clone()
        other[0, place] = 40
        moved = (model(other)[0] - before).abs().amax((0, 2)) > 1e-6
        for token in moved.nonzero().flatten().tolist():
            found[token].append(place)
    return found


whole = [list(range(token + 1)) for token in range(tokens.shape[1])]
result = {(attention, prefix): seen(made(attention, prefix)) for attention in ("eager", "sdpa") for prefix in (False, True)}
for (attention, prefix), found in result.items():
    print(f"{attention:5} {'with a prefix of 4' if prefix else 'without a prefix':18} the last token sees {found[-1]}")
hidden = [[0], [1], [2], [3], [0, 4], [0, 1, 5]]
assert [result[key] for key in (("eager", False), ("sdpa", False), ("eager", True))] == [whole] * 3, result
assert result["sdpa", True] == hidden, f"adapters changed: {result['sdpa', True]}"
PY
