"""A training step over a frozen base, beside full fine-tuning, peft and adapters: time in turn, memory in processes.

    python tools/bench_step.py --adapters-env ../rivals --out benchmarks/step

One step is forward, backward and AdamW of BERT's classifier with random weights. Times are medians of steps that take
turns, after one of each that does not count; adapters, which needs an older transformers, takes its turns in a process
of an environment of its own, made there if it is missing. Memory is by how much the largest resident size of a process
during three steps of one kind exceeds that after the model was made: neither model nor libraries count. Each of the
three parts (``--only``) keeps what the file says of the others.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench_path import machine

PACKED = {"lora, packed": "float32", "lora, int8": "int8", "lora, int8_dynamic": "int8_dynamic"}
FUSED = 8
FUSION = f"fusion of {FUSED}"
RIVAL, WHOLE = "peft lora", "full fine-tuning"
KINDS = (WHOLE, RIVAL, "lora", *PACKED, "bottleneck", "pal", FUSION)
# What adapters trains, and what of ours is the same.
ADAPTERS = {f"adapters {kind}": kind for kind in ("lora", "bottleneck", FUSION)}
PARTS = {
    "steps": tuple(kind for kind in (*KINDS, *ADAPTERS) if FUSION not in kind),
    "fusion": (FUSION, f"adapters {FUSION}"),
    "memory": (*KINDS, *ADAPTERS),
}


def stepper(kind: str, layers: int, hidden: int, rows: int, tokens: int) -> Callable[[], None]:
    """What makes one step of a kind, on a model of its own."""
    import torch
    from transformers import BertForSequenceClassification

    from hfadapt.cli.bench_bert import bert_config

    torch.manual_seed(0)
    model: Any = BertForSequenceClassification(bert_config(layers, hidden))
    if kind == RIVAL:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(
            model, LoraConfig(r=8, target_modules=["query", "value"], modules_to_save=["classifier"])
        )
    elif kind == FUSION:
        import hfadapt

        names = [f"t{number}" for number in range(FUSED)]
        hfadapt.attach(model, "bottleneck", names=names)
        # adapters drops a tenth of the scores, as BERT's attention does, and cannot be told not to
        hfadapt.add_fusion(model, names, {"dropout": 0.1})
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


def adapters_step(rivals: Any, kind: str, *sizes: int) -> Callable[[], dict[str, Any]] | str:
    """What makes one step of AdapterHub's library in its own process, or why there is none."""
    method = "fusion" if kind == FUSION else kind
    return rivals.ask("step", **dict(zip(("layers", "hidden", "rows", "tokens"), sizes, strict=True)), method=method,
                      tasks=FUSED)  # fmt: skip


def milliseconds(kinds: Iterable[str], repeats: int, rivals: Any, *sizes: int) -> dict[str, float | str]:
    """Median milliseconds of a step of each kind, which all take turns, or why it is not measured."""
    from hfadapt.cli.timing import medians_in_turn

    calls: dict[str, Callable[[], Any]] = {}
    missing: dict[str, float | str] = {}
    for kind in kinds:
        if kind not in ADAPTERS:
            calls[kind] = stepper(kind, *sizes)
            continue
        ask = adapters_step(rivals, ADAPTERS[kind], *sizes)
        if isinstance(ask, str):
            missing[kind] = ask
        else:
            calls[kind] = lambda ask=ask: float(ask()["seconds"])
    return {kind: round(1e3 * taken, 1) for kind, taken in medians_in_turn(calls, repeats).items()} | missing


def mebibytes(kind: str, *sizes: int) -> float | None:
    """What three steps need beside the model, in MiB; of the process that asks."""
    from hfadapt.cli.engine_cases.rival_program import held_from_now

    step = stepper(kind, *sizes)
    held = held_from_now()
    for _ in range(3):
        step()
    return held()


def memory(rivals: Any, sizes: dict[str, int]) -> dict[str, Any]:
    """MiB of each kind, in a process of its own."""
    arguments = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    found: dict[str, Any] = {}
    for kind in KINDS:
        done = subprocess.run(
            [sys.executable, __file__, *arguments, "--memory", kind], check=True, capture_output=True, text=True
        )
        found[kind] = json.loads(done.stdout.splitlines()[-1])
    for kind, ours in ADAPTERS.items():
        ask = adapters_step(rivals, ours, *sizes.values())
        # its first step was made before it answered
        found[kind] = ask if isinstance(ask, str) else [ask()["MiB"] for _ in range(2)][-1]
        rivals.close()
    return found


def beside_adapters(found: dict[str, Any], ours_first: bool) -> dict[str, float]:
    """Of each kind that adapters has too: ours for one of theirs, or theirs for one of ours."""
    pairs = {kind: (found[kind], found[theirs]) for theirs, kind in ADAPTERS.items() if theirs in found}
    measured = {kind: pair for kind, pair in pairs.items() if all(isinstance(one, float) for one in pair)}
    return {kind: round(a / b if ours_first else b / a, 3) for kind, (a, b) in measured.items() if a and b}


def part(name: str, repeats: int, rivals: Any, sizes: dict[str, int]) -> dict[str, Any]:
    """One of the parts, with the machine and its load."""
    import torch

    load = round(os.getloadavg()[0], 1)
    result: dict[str, Any] = {}
    if name == "memory":
        needed = memory(rivals, sizes)
        result["MiB beside the model"] = needed
        result["times peft"] = {
            kind: round(mib / needed[RIVAL], 3) for kind, mib in needed.items() if isinstance(mib, float)
        }
        result["times adapters"] = beside_adapters(needed, True)
    else:
        taken = milliseconds(PARTS[name], repeats, rivals, *sizes.values())
        result["milliseconds"] = taken
        if WHOLE in taken:
            measured = {kind: ms for kind, ms in taken.items() if isinstance(ms, float)}
            result["times full fine-tuning"] = {kind: round(ms / measured[WHOLE], 3) for kind, ms in measured.items()}
        result["times as fast as adapters"] = beside_adapters(taken, False)
    told = {"peft": version("peft"), **rivals.versions, "threads": torch.get_num_threads()}
    shapes = "{layers} layers of {hidden}, {rows} x {tokens} tokens, LoRA r = 8".format(**sizes)
    return {"machine": {**machine(), **told}, "shapes": shapes, "repeats": repeats, "load average": load, **result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to measure; all")
    parser.add_argument("--repeats", type=int, default=5, help="steps of each kind")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--adapters-env", type=Path, help="virtual environment of adapters; left out without one")
    parser.add_argument("--out", type=Path, help="folder for step.json")
    parser.add_argument("--memory", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = {name: getattr(options, name) for name in ("layers", "hidden", "rows", "tokens")}
    if options.memory:
        print(json.dumps(mebibytes(options.memory, *sizes.values())))
        return
    import torch

    from hfadapt.cli.engine_cases.rivals import Rivals, make_environment

    if options.adapters_env is not None:
        make_environment(options.adapters_env)
    file = None if options.out is None else options.out / "step.json"
    before = json.loads(file.read_text("utf-8")) if file is not None and file.is_file() else {}
    result = {name: before[name] for name in PARTS if name in before}
    for name in options.only:
        with Rivals(options.adapters_env, torch.get_num_threads()).closing() as rivals:
            result[name] = part(name, options.repeats, rivals, sizes)
        # what is cut off is of use
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print(json.dumps({name: result[name] for name in options.only}, indent=1))


if __name__ == "__main__":
    main()
