"""A training step over a frozen base, beside full fine-tuning and peft's LoRA: time in turn, memory in processes.

    python tools/bench_step.py --out benchmarks/step

One step is forward, backward and AdamW of BERT's classifier with random weights. Times are medians of steps that take
turns in one process, after one of each that does not count. Memory is by how much the largest resident size of a
process during three steps of one kind exceeds that after the model was made: neither model nor libraries count.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench_path import machine

PACKED = {"lora, packed": "float32", "lora, int8": "int8", "lora, int8_dynamic": "int8_dynamic"}
KINDS = ("full fine-tuning", "peft lora", "lora", *PACKED, "bottleneck", "pal")
RIVAL, WHOLE = "peft lora", "full fine-tuning"


def stepper(kind: str, layers: int, hidden: int, rows: int, tokens: int) -> Callable[[], None]:
    """What makes one step of a kind, on a model of its own."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=1000,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 64),
        intermediate_size=4 * hidden,
    )
    model: Any = BertForSequenceClassification(config)
    if kind == RIVAL:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(
            model, LoraConfig(r=8, target_modules=["query", "value"], modules_to_save=["classifier"])
        )
    elif kind != WHOLE:
        import hfadapt

        hfadapt.attach(model, {"method": "lora", "r": 8} if kind.startswith("lora") else kind)
        if kind in PACKED:
            hfadapt.pack(model, PACKED[kind])
    model.train()
    inputs = {"input_ids": torch.randint(4, 1000, (rows, tokens)), "labels": torch.randint(0, 2, (rows,))}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def milliseconds(repeats: int, *sizes: int) -> dict[str, float]:
    """Median milliseconds of a step of each kind; all take turns."""
    from hfadapt.cli.timing import medians_in_turn

    steps = {kind: stepper(kind, *sizes) for kind in KINDS}
    return {kind: round(1e3 * taken, 1) for kind, taken in medians_in_turn(steps, repeats).items()}


def mebibytes(kind: str, *sizes: int) -> float:
    """What three steps need beside the model, in MiB; of the process that asks."""
    step = stepper(kind, *sizes)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the largest size so far, that of making the model
    before = _kibibytes("VmRSS")
    for _ in range(3):
        step()
    return round((_kibibytes("VmHWM") - before) / 1024, 1)


def _kibibytes(name: str) -> int:
    status = Path("/proc/self/status").read_text("ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{name}:"))


def memory(arguments: list[str]) -> dict[str, float]:
    """MiB of each kind, in a process of its own."""
    found = {}
    for kind in KINDS:
        done = subprocess.run(
            [sys.executable, __file__, *arguments, "--memory", kind], check=True, capture_output=True, text=True
        )
        found[kind] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="steps of each kind")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--out", type=Path, help="folder for step.json")
    parser.add_argument("--memory", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = {name: getattr(options, name) for name in ("layers", "hidden", "rows", "tokens")}
    if options.memory:
        print(json.dumps(mebibytes(options.memory, *sizes.values())))
        return
    from importlib.metadata import version

    import torch

    load = round(os.getloadavg()[0], 1)
    taken = milliseconds(options.repeats, *sizes.values())
    needed = memory([word for name, size in sizes.items() for word in (f"--{name}", str(size))])
    result = {
        "machine": {**machine(), "peft": version("peft"), "threads": torch.get_num_threads()},
        "shapes": "{layers} layers of {hidden}, {rows} x {tokens} tokens, LoRA r = 8".format(**sizes),
        "load average": load,
        "milliseconds": taken,
        "times full fine-tuning": {kind: round(ms / taken[WHOLE], 3) for kind, ms in taken.items()},
        "MiB beside the model": needed,
        "memory, times peft": {kind: round(mib / needed[RIVAL], 3) for kind, mib in needed.items() if needed[RIVAL]},
    }
    text = json.dumps(result, indent=1) + "\n"
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "step.json").write_text(text, "utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
