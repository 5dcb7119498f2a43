"""The path from a slot's hook to its op, in Python calls, and what a mixed batch costs beside the bare base.

    python tools/bench_path.py --before ../old-checkout --out benchmarks/path

Every checkout is measured by this same file, in processes of its own that take turns with the other's. Calls are exact.
Forwards take turns in a process, in an order that is drawn anew for every turn: each finds the caches as the one before
it left them. A ratio is the median of the turns' own ratios, since a machine that others share changes its speed in
steps of a fifth, and the medians of two kinds may then come from different steps. Processes differ by some 3 % for
good, by where their memory lies, so there are several. While other work runs here times say little; the interval of
95 % beside each ratio (processes and turns drawn with replacement) says how little.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OPS = ("grouped_lora", "parallel_adapter_norm")
KERNELS = {"hfadapt_cpu::grouped_lora_add", *(f"hfadapt_cpu::{name}_forward" for name in OPS)}
ROWS, TOKENS, TASKS, LAYERS = 32, 4, 32, 6


def model(**sizes: Any) -> Any:
    """A BERT with random weights."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    return BertModel(BertConfig(vocab_size=1000, **sizes)).eval()


def tiny() -> Any:
    return model(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)


def calls_before_op(method: dict[str, Any], tasks: int) -> dict[str, int]:
    """Count the calls of Python functions at the last slot of a mixed forward.

    Returns:
        From the hook, inclusive, to the op's public function, exclusive (``before_op``), and to the call of the C++
        kernel (``before_kernel``).
    """
    import torch

    import hfadapt

    adapted = tiny()
    for task in range(tasks):
        hfadapt.attach(adapted, method, f"t{task}")
    ids = torch.randint(0, 1000, (2 * tasks, TOKENS))
    names = [f"t{row % tasks}" for row in range(2 * tasks)]
    found: dict[str, int] = {}
    state = {"calls": -1}

    def watch(frame: Any, event: str, arg: Any) -> None:
        if event != "call":
            return
        code = frame.f_code
        if code.co_name == "__call__" and type(frame.f_locals.get("self")).__name__ in ("OutputHook", "InputHook"):
            state["calls"] = 0
        if state["calls"] < 0:
            return
        if code.co_name in OPS and code.co_filename.endswith("op.py"):
            found["before_op"] = state["calls"]
        if code.co_name == "__call__" and code.co_filename.endswith(os.path.join("torch", "_ops.py")):
            called = frame.f_locals["self"]  # an op or one of its overloads
            name = getattr(called, "_qualified_op_name", "") or getattr(called, "_name", "").partition(".")[0]
            if name in KERNELS:
                found["before_kernel"], state["calls"] = state["calls"], -1
                return
        state["calls"] += 1

    with torch.no_grad():
        adapted(input_ids=ids, task_ids=names)
        sys.setprofile(watch)
        try:
            adapted(input_ids=ids, task_ids=names)
        finally:
            sys.setprofile(None)
    return found


def count() -> dict[str, Any]:
    methods = {"lora": {"method": "lora"}, "bottleneck": {"method": "bottleneck"}}
    return {name: {f"{n} tasks": calls_before_op(one, n) for n in (2, 8)} for name, one in methods.items()}


def peft_batch(ids: Any) -> Callable[[], Any]:
    """Return peft's forward of the same mixed batch."""
    from peft import LoraConfig, get_peft_model

    def config() -> Any:
        return LoraConfig(r=8, target_modules=["query", "value"], init_lora_weights=False)

    adapted: Any = get_peft_model(model(num_hidden_layers=LAYERS), config(), adapter_name="t0")
    for task in range(1, TASKS):
        adapted.add_adapter(f"t{task}", config())
    adapted.eval()
    names = [f"t{row % TASKS}" for row in range(ROWS)]
    return lambda: adapted(input_ids=ids, adapter_names=names)


def seconds(repeats: int, rival: bool) -> dict[str, list[float]]:
    """Time forwards in turn: the bare base, a mixed batch of LoRAs, one of bottlenecks, and peft's of LoRAs."""
    import torch

    import hfadapt

    torch.set_num_threads(2)
    ids = torch.randint(0, 1000, (ROWS, TOKENS))
    names = [f"t{row % TASKS}" for row in range(ROWS)]
    base = model(num_hidden_layers=LAYERS)
    run: dict[str, Callable[[], Any]] = {"base": lambda: base(input_ids=ids)}
    for name, method in (("lora", {"method": "lora", "init": "normal"}), ("bottleneck", {"method": "bottleneck"})):
        adapted = model(num_hidden_layers=LAYERS)
        for task in range(TASKS):
            hfadapt.attach(adapted, method, f"t{task}")
        run[name] = lambda adapted=adapted: adapted(input_ids=ids, task_ids=names)
    if rival:
        run["peft lora"] = peft_batch(ids)
    taken: dict[str, list[float]] = {name: [] for name in run}
    drawn, order = random.Random(0), list(run)
    with torch.no_grad():
        for turn in range(repeats + 3):
            drawn.shuffle(order)
            for name in order:
                start = time.perf_counter()
                run[name]()
                if turn >= 3:
                    taken[name].append(time.perf_counter() - start)
    return taken


def summary(processes: list[dict[str, list[float]]]) -> dict[str, Any]:
    """Pool what several processes measured."""
    pairs: dict[str, list[list[float]]] = {}
    for taken in processes:
        for name, times in taken.items():
            pairs.setdefault(name, []).append([one / bare for one, bare in zip(times, taken["base"], strict=True)])
    return {
        "processes": len(processes),
        "turns of each": len(processes[0]["base"]),
        "milliseconds": {
            name: round(1e3 * statistics.median(one for taken in processes for one in taken[name]), 2) for name in pairs
        },
        "times the base": {name: round(statistics.median(chain(*each)), 3) for name, each in pairs.items()},
        "times the base, each process": {
            name: [round(statistics.median(one), 3) for one in each] for name, each in pairs.items() if name != "base"
        },
        "times the base, interval of 95 %": {name: interval(each) for name, each in pairs.items() if name != "base"},
    }


def interval(processes: list[list[float]], draws: int = 1000) -> list[float]:
    """Bootstrap the median ratio: processes are drawn, and turns of each."""
    drawn, found = random.Random(1), []
    for _ in range(draws):
        chosen = drawn.choices(processes, k=len(processes))
        found.append(statistics.median(one for each in chosen for one in drawn.choices(each, k=len(each))))
    found.sort()
    return [round(found[int(draws * share)], 3) for share in (0.025, 0.975)]


def machine() -> dict[str, Any]:
    import torch
    import transformers

    processor = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), processor)
    return {
        "processor": processor,
        "simd": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "dtype": "float32",
    }


def measure(checkout: Path, arguments: list[str]) -> dict[str, Any]:
    """Measure one checkout in a process of its own."""
    paths = os.pathsep.join(str(checkout / part) for part in (".", "kernels", "plugins"))
    command = [sys.executable, __file__, "--measure", *arguments]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, cwd=checkout, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="another checkout, with its C++ library built, to compare with")
    parser.add_argument("--repeats", type=int, default=40, help="timed forwards of each kind; 0 counts calls only")
    parser.add_argument("--processes", type=int, default=6, help="of each checkout; each times its own forwards")
    parser.add_argument("--out", type=Path, help="folder for path.json")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rival", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        found: dict[str, Any] = {} if options.repeats else {"python calls": count()}
        if options.repeats:
            found["seconds"] = seconds(options.repeats, options.rival)
        print(json.dumps(found))
        return
    checkouts = {"now": ROOT} if options.before is None else {"before": options.before.resolve(), "now": ROOT}
    result: dict[str, Any] = {"machine": machine()}
    for name, checkout in checkouts.items():
        result[name] = measure(checkout, ["--repeats", "0"])
    if options.repeats:
        result["shapes"] = f"{ROWS} x {TOKENS} tokens, {TASKS} tasks mixed, {LAYERS} layers of BERT-base, 2 threads"
        result["load average"] = round(os.getloadavg()[0], 1)
        taken: dict[str, list[Any]] = {name: [] for name in checkouts}
        for _ in range(options.processes):
            for name, checkout in checkouts.items():
                rival = ["--rival"] if name == "now" else []
                taken[name].append(measure(checkout, ["--repeats", str(options.repeats), *rival])["seconds"])
        for name, processes in taken.items():
            result[name]["forward"] = summary(processes)
    text = json.dumps(result, indent=1) + "\n"
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "path.json").write_text(text, "utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
