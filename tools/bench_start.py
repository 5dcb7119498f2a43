"""How soon work begins: a first training step beside peft's, ``import hfadapt`` and ``hfadapt --help``.

    python tools/bench_start.py --out benchmarks/start

The step: from a loaded model to the step's end, hfadapt.attach beside peft's get_peft_model, LoRA on queries and values
of a model of BERT-base's size with random weights. The two take turns, each time in a process of its own, as a user's
script does it once: the library's import counts, that of transformers and the model's making do not.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench_path import machine

NAMES = ("hfadapt", "peft")
ROWS, TOKENS = 8, 64


def once(name: str, layers: int, hidden: int) -> dict[str, float]:
    """Seconds of one start: import and adapt, the first step (forward, backward, AdamW), and both."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(hidden_size=hidden, num_hidden_layers=layers, intermediate_size=4 * hidden)
    model: Any = BertModel(config).train()
    ids = torch.randint(0, config.vocab_size, (ROWS, TOKENS))
    begin = time.perf_counter()
    if name == "hfadapt":
        import hfadapt

        hfadapt.attach(model, hfadapt.LoRA(r=8), "task")
    else:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=8, target_modules=["query", "value"]))
    middle = time.perf_counter()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    model(input_ids=ids)[0].square().mean().backward()
    optimizer.step()
    end = time.perf_counter()
    return {"adapt": middle - begin, "step": end - middle, "both": end - begin}


def _environment() -> dict[str, str]:
    """Ours, but bytecode is written: else a checkout is compiled at every start, and an installed rival is not."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def measure(layers: int, hidden: int, turns: int, before: int) -> dict[str, Any]:
    """Medians of processes that take turns behind ``before`` uncounted ones, and the ratio of both parts together."""
    command = [sys.executable, __file__, "--layers", str(layers), "--hidden", str(hidden), "--measure"]
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in NAMES}
    for turn in range(-before, turns):
        for name in NAMES:
            done = subprocess.run([*command, name], check=True, capture_output=True, text=True, env=_environment())
            if turn >= 0:
                taken[name].append(json.loads(done.stdout.splitlines()[-1]))
    found: dict[str, Any] = {
        name: {part: round(1e3 * statistics.median(one[part] for one in all_), 1) for part in all_[0]}
        for name, all_ in taken.items()
    }
    return {"milliseconds": found, "times peft": round(found["hfadapt"]["both"] / found["peft"]["both"], 3)}


def commands(turns: int, before: int) -> dict[str, float]:
    """Medians of seconds as of ``measure``, with the process itself; ``import torch`` tells what the machine does."""
    run = {
        "import hfadapt": "import hfadapt",
        "hfadapt --help": "from hfadapt.cli.group import cli; cli(['--help'])",
        "import torch": "import torch",
    }
    taken: dict[str, list[float]] = {name: [] for name in run}
    for turn in range(-before, turns):
        for name, code in run.items():
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, env=_environment())
            if turn >= 0:
                taken[name].append(time.perf_counter() - begin)
    return {name: round(statistics.median(times), 3) for name, times in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7, help="processes of each")
    parser.add_argument("--before", type=int, default=1, help="processes of each that are not counted")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--out", type=Path, help="folder for start.json")
    parser.add_argument("--measure", choices=NAMES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(once(options.measure, options.layers, options.hidden)))
        return
    from importlib.metadata import version

    result = {
        "machine": {**machine(), "peft": version("peft")},
        "shapes": f"{options.layers} layers of {options.hidden}, {ROWS} x {TOKENS} tokens, LoRA r = 8",
        "load average": round(os.getloadavg()[0], 1),
        "seconds": commands(options.turns, options.before),
        **measure(options.layers, options.hidden, options.turns, options.before),
    }
    text = json.dumps(result, indent=1) + "\n"
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "start.json").write_text(text, "utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
