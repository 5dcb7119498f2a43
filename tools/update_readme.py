"""Write the generated parts of README.md, benchmarks/README.md, docs/methods.md and the ops' pages.

These are the method tables, the results of ``make demo``, the ops' figures from benchmarks/ops/ops.json, and what the
README's lines print.

Usage: python tools/update_readme.py [RUN_FOLDER...]

Results and plots of each run folder (runs/demo, runs/demo-full) are first copied to the folder of that name in
benchmarks, so that the README's numbers have their source in the repository. Without any, what is there is used again.
The README's lines run anew, for a minute, when they are others than those whose output stands in benchmarks/example.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

from hfadapt.adapters.atomic import write_whole
from hfadapt.cli.claims_table import markdown_capabilities, markdown_claims
from hfadapt.cli.method_table import markdown_methods, method_rows
from hfadapt.cli.op_figures import markdown_figures
from hfadapt.recipes import RunResult
from hfadapt.recipes.report import conditions, markdown_table, proof_lines, result_rows, to_markdown
from hfadapt.recipes.results import machine

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
METHODS = ROOT / "docs" / "methods.md"
BENCHMARKS = ROOT / "benchmarks"
OPS = BENCHMARKS / "ops" / "ops.json"
SWEEP = BENCHMARKS / "sweep" / "results.json"
EXAMPLE = BENCHMARKS / "example" / "output.json"
KERNELS = ROOT / "kernels" / "hfadapt_kernels"
PLOTS = ("learning_curves.png", "sampling.png", "parameters.png")


def generated() -> dict[str, str]:
    """The generated blocks of README.md by name."""
    return {
        "example": _printed(json.loads(EXAMPLE.read_text("utf-8"))),
        "results": _five_rows(RunResult.read(BENCHMARKS / "demo-full")),
        "kernels": _extremes(json.loads(OPS.read_text("utf-8"))),
        "types": _types(json.loads(SWEEP.read_text("utf-8"))),
        "methods": _families(),
    }


def generated_measurements() -> dict[str, str]:
    """The generated blocks of benchmarks/README.md by name."""
    fast, full = RunResult.read(BENCHMARKS / "demo"), RunResult.read(BENCHMARKS / "demo-full")
    curves = ["Macro average on the validation splits after each epoch:", "", *_items(_curves(full))]
    return {
        "fast": "\n".join([*_table(fast), *_items(proof_lines(fast))]),
        "converged": "\n".join([*_table(full), *curves]),
    }


def example_code(readme: str) -> str:
    """The lines of Python that the README begins with."""
    return readme.partition("```python\n")[2].partition("```\n")[0]


def run_example(code: str) -> dict[str, Any]:
    """What the README's lines print last, behind Trainer's own logs, and under which conditions."""
    one_thread = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=folder, env=one_thread, check=True, stdout=subprocess.PIPE, text=True)
    return {"code": code, "output": done.stdout.splitlines()[-1], **machine(), "threads": 1}


def _printed(example: dict[str, Any]) -> str:
    where = (
        f"It prints, beside Trainer's own logs (validation splits, one seed; {example['device']}, one thread, "
        f"{example['dtype']}, torch {example['torch']}):"
    )
    return f"{_wrapped(where)}\n\n```text\n{example['output']}\n```"


def _five_rows(result: RunResult) -> str:
    """The scores and what must be stored, a column an arm: what a reader compares stands side by side."""
    columns, rows = result_rows(result)
    kept = [*columns[1 : columns.index("params a task")], "all tasks / base"]
    lines = [[name, *(row[columns.index(name)] for row in rows)] for name in kept]
    steps = " / ".join(dict.fromkeys(str(arm.steps) for arm in result.arms))
    machine = result.machine
    about = (
        "\\* best of the row. Test splits after `make demo FULL=1`; the last row is what is stored to serve all tasks. "
        f"Base {result.model}, {steps} steps an arm, one seed; {machine['device']}, {machine['threads']} threads, "
        f"{machine['dtype']}. [All columns, learning curves, and what `make demo` reaches](benchmarks/README.md)."
    )
    return f"{to_markdown(['', *(row[0] for row in rows)], lines)}\n\n{_wrapped(about)}"


def _extremes(result: dict[str, Any]) -> str:
    """The best and the worst of the kernels' figures, and where they were measured."""
    rows = [row for row in result["rows"] if row["allocator"] == "warm"]
    best, worst = (
        f"{row['ratio']:.2f}x ({row['case']}, against {row['rival']})"
        for row in (max(rows, key=lambda row: row["ratio"]), min(rows, key=lambda row: row["ratio"]))
    )
    ahead, device = sum(row["ratio"] >= 1 for row in rows), result["device"]
    where = f"{device['processor']} with {device['isa']}, {rows[0]['threads']} threads, torch {device['torch']}"
    return _wrapped(
        f"**Kernels** are at least as fast as their rivals in {ahead} of [{len(rows)} comparisons]"
        f"(benchmarks/README.md): best {best}, worst {worst}; {where}."
    )


def _types(result: dict[str, Any]) -> str:
    """How many types of transformers' run stock, and on how many of these LoRA and methods with a map do their all."""
    tried = [one["methods"]["lora"] for one in result["types"].values() if "lora" in one.get("methods", {})]
    whole = sum(one["verdict"] == "ok" for one in tried)
    alone = sum(one["verdict"] == "one adapter a batch" for one in tried)
    mapped = ("bottleneck", "parallel", "low_rank", "lhuc", "pal")
    runs = [one["methods"] for one in result["types"].values() if set(mapped) <= set(one.get("methods", {}))]
    every = sum(all(one[name]["verdict"] in ("ok", "one adapter a batch") for name in mapped) for one in runs)
    five = (
        f"bottleneck, parallel, low rank, LHUC and PAL do on {every} of the {len(runs)} that were tried with all five"
    )
    return _wrapped(
        f"**Models**: of the {len(result['types'])} types of transformers {result['transformers']}, {len(tried)} can "
        f"be built tiny and run stock. On {whole} of these LoRA attaches, mixes rows, trains, saves and loads, and on "
        f"{alone} more all but mixes rows; {five}; [the others are refused, and why](benchmarks/sweep/README.md)."
    )


def _families() -> str:
    """A line a family: its papers, and the names of its methods."""
    families: dict[str, list[dict[str, Any]]] = {}
    for row in method_rows():
        families.setdefault(row["family"], []).append(row)
    lines = []
    for family, rows in families.items():
        papers = dict.fromkeys(number for row in rows for number in re.findall(r"arXiv:(\d{4}\.\d{4,5})", row["paper"]))
        links = ", ".join(f"[{number}](https://arxiv.org/abs/{number})" for number in papers)
        lines.append(f"**{family}** ({links}): {', '.join(_code(row['method']) for row in rows)}")
    return "\n".join(_items(lines))


def _code(name: str) -> str:
    return f"`{name}`"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _table(result: RunResult) -> list[str]:
    return [markdown_table(result), "", f"\\* best of the column. {conditions(result)}", ""]


def _curves(result: RunResult) -> list[str]:
    lines = []
    for arm in result.arms:
        curves = [arm.curve(task, metric)[1] for task, metric in result.tasks.items()]
        macro = [sum(values) / len(values) for values in zip(*curves, strict=True)]
        lines.append(f"{arm.title}: {', '.join(f'{value:.3f}' for value in macro)}")
    return lines


def _items(lines: list[str]) -> list[str]:
    return [f"- {line}" for line in lines]


def generated_methods() -> dict[str, str]:
    """The generated blocks of docs/methods.md by name."""
    return {
        "methods": markdown_methods("../"),
        "capabilities": markdown_capabilities(),
        "claims": markdown_claims(),
    }


def generated_op_pages() -> dict[Path, dict[str, str]]:
    """The generated block of every measured op's page, by the page."""
    result = json.loads(OPS.read_text("utf-8"))
    ops = sorted({row["op"] for row in result["rows"]})
    return {KERNELS / op / "README.md": {"figures": markdown_figures(result, op)} for op in ops}


def fill(text: str, blocks: dict[str, str]) -> str:
    """Replace what stands between ``<!-- name -->`` and ``<!-- /name -->``."""
    for name, block in blocks.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text = pattern.sub(lambda match, block=block: f"{match[1]}\n{block}\n\n{match[2]}", text)
    return text


def main(arguments: list[str]) -> None:
    """Update every page that has generated parts."""
    for run in map(Path, arguments):
        kept = BENCHMARKS / run.name
        kept.mkdir(parents=True, exist_ok=True)
        for name in ("results.json", *(f"plots/{plot}" for plot in PLOTS)):
            write_whole(kept / Path(name).name, (run / name).read_bytes())
    code = example_code(README.read_text("utf-8"))
    if not EXAMPLE.is_file() or json.loads(EXAMPLE.read_text("utf-8"))["code"] != code:
        EXAMPLE.parent.mkdir(exist_ok=True)
        write_whole(EXAMPLE, (json.dumps(run_example(code), indent=1) + "\n").encode())
    measurements = {BENCHMARKS / "README.md": generated_measurements()}
    pages = {README: generated(), **measurements, METHODS: generated_methods(), **generated_op_pages()}
    for page, blocks in pages.items():
        write_whole(page, fill(page.read_text("utf-8"), blocks).encode())


if __name__ == "__main__":
    main(sys.argv[1:])
