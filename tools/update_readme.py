"""Write the generated parts of README.md, docs/methods.md and the ops' pages.

These are the method tables, the results of ``make demo``, and the ops' figures from benchmarks/ops/ops.json.

Usage: python tools/update_readme.py [RUN_FOLDER...]

Results and plots of each run folder (runs/demo, runs/demo-full) are first copied to the folder of that name in
benchmarks, so that the README's numbers have their source in the repository. Without any, what is there is used again.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from hfadapt.adapters.atomic import write_whole
from hfadapt.cli.claims_table import markdown_capabilities, markdown_claims
from hfadapt.cli.method_table import markdown_families, markdown_methods
from hfadapt.cli.op_figures import markdown_figures
from hfadapt.recipes import RunResult
from hfadapt.recipes.report import conditions, markdown_table, proof_lines

ROOT = Path(__file__).resolve().parents[1]
METHODS = ROOT / "docs" / "methods.md"
BENCHMARKS = ROOT / "benchmarks"
OPS = BENCHMARKS / "ops" / "ops.json"
KERNELS = ROOT / "kernels" / "hfadapt_kernels"
PLOTS = ("learning_curves.png", "sampling.png", "parameters.png")


def generated() -> dict[str, str]:
    """The generated blocks of README.md by name."""
    fast, full = RunResult.read(BENCHMARKS / "demo"), RunResult.read(BENCHMARKS / "demo-full")
    curves = ["Macro average on the validation splits after each epoch:", "", *_items(_curves(full))]
    return {
        "methods": markdown_families(),
        "results": "\n".join([*_table(fast), *_items(proof_lines(fast))]),
        "converged": "\n".join([*_table(full), *curves]),
    }


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
    readme = ROOT / "README.md"
    for page, blocks in {readme: generated(), METHODS: generated_methods(), **generated_op_pages()}.items():
        write_whole(page, fill(page.read_text("utf-8"), blocks).encode())


if __name__ == "__main__":
    main(sys.argv[1:])
