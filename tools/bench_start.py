"""From a loaded model to the end of its first training step: hfadapt.attach beside peft's get_peft_model.

    python tools/bench_start.py --out benchmarks/start

LoRA on queries and values of a model of BERT-base's size with random weights. Both take turns in one process, each time
on a fresh copy of the model; the first turn of each, which imports what the others find imported, stands apart.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench_path import machine

ROWS, TOKENS = 8, 64


def starts() -> dict[str, Callable[[Any], Any]]:
    """Who adapts a model how; imports count as part of the first turn."""

    def ours(model: Any) -> Any:
        import hfadapt

        hfadapt.attach(model, hfadapt.LoRA(r=8), "task")
        return model

    def peft(model: Any) -> Any:
        from peft import LoraConfig, get_peft_model

        return get_peft_model(model, LoraConfig(r=8, target_modules=["query", "value"]))

    return {"hfadapt": ours, "peft": peft}


def seconds(layers: int, hidden: int, repeats: int) -> dict[str, Any]:
    """Time adapting and the first step (forward, backward, AdamW) apart, in turns."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(hidden_size=hidden, num_hidden_layers=layers, intermediate_size=4 * hidden)
    base = BertModel(config).train()
    ids = torch.randint(0, config.vocab_size, (ROWS, TOKENS))
    taken: dict[str, dict[str, list[float]]] = {name: {"adapt": [], "step": []} for name in starts()}
    for _ in range(repeats + 1):
        for name, start in starts().items():
            model = copy.deepcopy(base)
            begin = time.perf_counter()
            adapted = start(model)
            middle = time.perf_counter()
            optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-3)
            adapted(input_ids=ids)[0].square().mean().backward()
            optimizer.step()
            taken[name]["adapt"].append(middle - begin)
            taken[name]["step"].append(time.perf_counter() - middle)
    found: dict[str, Any] = {}
    for name, parts in taken.items():
        both = [sum(one) for one in zip(*parts.values(), strict=True)]
        found[name] = {
            "first turn, milliseconds": round(1e3 * both[0], 1),
            "milliseconds": {
                **{part: round(1e3 * statistics.median(times[1:]), 1) for part, times in parts.items()},
                "both": round(1e3 * statistics.median(both[1:]), 1),
            },
        }
    times = {name: one["milliseconds"]["both"] for name, one in found.items()}
    return {**found, "times peft": round(times["hfadapt"] / times["peft"], 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10, help="turns of each after the first")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--out", type=Path, help="folder for start.json")
    options = parser.parse_args()
    result = {
        "machine": machine(),
        "shapes": f"{options.layers} layers of {options.hidden}, {ROWS} x {TOKENS} tokens, LoRA r = 8",
        "load average": round(os.getloadavg()[0], 1),
        **seconds(options.layers, options.hidden, options.repeats),
    }
    text = json.dumps(result, indent=1) + "\n"
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "start.json").write_text(text, "utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
