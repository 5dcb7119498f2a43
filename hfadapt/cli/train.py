"""``hfadapt train``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from .output import console, json_option, print_json, print_table

__all__ = ["train"]


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY.SUB=VALUE]...")
@click.option("--fast", is_flag=True, help="Apply the recipe's own short settings.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Check all that the run will need; show plan, memory and first batch; train nothing.",
)
@click.option("--output", type=click.Path(), help="Folder to write to, in place of the recipe's.")
@click.option("--overwrite", is_flag=True, help="Replace the run in the output folder, when this one has ended.")
@click.option(
    "--resume",
    is_flag=True,
    help="Go on from the arms and the checkpoint in the output folder.",
)
@json_option
def train(
    recipe: Path,
    overrides: tuple[str, ...],
    fast: bool,
    dry_run: bool,
    output: str | None,
    overwrite: bool,
    resume: bool,
    as_json: bool,
) -> None:
    """Train the tasks of RECIPE together, beside its baselines, and report.

    Any value of the recipe can be changed: training.learning_rate=1e-4, tasks.sms_spam.max_length=32,
    method.size=64. Fields of TrainingArguments stand under training, by their own names.
    """
    from ..recipes.config import load_recipe

    if output is not None:
        # quoted, for a folder that YAML would read as a number or a list
        overrides = (*overrides, f"output={json.dumps(output)}")
    loaded = load_recipe(recipe, overrides, fast=fast)
    from ..recipes.run import Run

    run = Run(loaded, say=lambda line: click.secho(line, fg="cyan", bold=True, err=True))
    folder = run.prepare_output(overwrite=overwrite, resume=resume, recipe_file=recipe)
    if dry_run:
        from ..recipes.plan import plan_of

        plan = plan_of(run)
        print_json(plan) if as_json else _show_plan(plan, run)
        return
    with folder:
        if not as_json:
            click.echo(str(run.mixture.preview()), err=True)
        result = run.train(resume=resume, fast=fast)
        files = run.finish(result)
    if as_json:
        print_json({"output": str(run.output), "files": [str(file) for file in files], **_summary(result)})
        return
    from ..recipes.report import conditions, legend, proof_lines, rich_table

    console().print(rich_table(result))
    click.echo(f"{legend(result)} {conditions(result)}")
    for line in proof_lines(result):
        click.echo(line)
    click.echo(f"Report: {files[0]}")


def _summary(result: Any) -> dict[str, Any]:
    arms = {
        arm.name: {
            "scores": arm.scores,
            "macro": arm.macro,
            "parameters_task": arm.parameters_task,
            "multiple_of_base": arm.parameters_total / result.base_parameters,
            "seconds": arm.seconds,
            "tokens_per_second": arm.tokens_per_second,
            "steps": arm.steps,
        }
        for arm in result.arms
    }
    return {"arms": arms, "proof": result.proof, "seconds": result.seconds, "machine": result.machine}


def _show_plan(plan: dict[str, Any], run: Any) -> None:
    tasks = run.tasks
    sizes = plan["schedule"]["sizes"]
    print_table(
        ["task", "head", "metrics", "pair", "training rows"],
        [
            (task.name, task.head, ", ".join(task.metrics), task.pair, f"{size:,}")
            for task, size in zip(tasks, sizes, strict=True)
        ],
        title=f"Plan: {plan['steps']} steps of {plan['schedule']['rows_per_step']} rows on {plan['model']}",
    )
    click.echo(str(run.mixture.preview()))
    click.echo(
        f"base {plan['base_parameters']:,} parameters, added {plan['added_parameters']:,}, trained "
        f"{plan['trained_parameters']:,}; all tasks together {plan['multiple_of_base']:.3f}x the base"
    )
    memory = ", ".join(f"{name} {size / 2**20:,.0f} MiB" for name, size in plan["memory_bytes"].items())
    click.echo(f"memory (estimate, longest row {plan['longest_row_tokens']} tokens): {memory}")
    seconds = plan["seconds"]
    click.echo(
        f"time (estimate, of {seconds['updates_timed']} updates made here): {seconds['update']:.2f} s an update, "
        f"{seconds['training'] / 3600:,.1f} h of training without evaluations and baselines"
    )
    disk = ", ".join(f"{name} {size / 2**20:,.0f} MiB" for name, size in plan["disk_bytes"].items())
    click.echo(f"disk (estimate): {disk}")
    for split, names in plan["scored"].items():
        click.echo(f"scored on {split}: {', '.join(names)}")
    for line in plan["notes"]:
        click.echo(line)
    batch = plan["first_batch"]
    shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in batch["shapes"].items())
    print_table(
        ["task", "label", "text as the model reads it"],
        [
            (row["task"], row["label"], " || ".join(row[key] for key in ("text", "text_pair") if key in row))
            for row in batch["rows"]
        ],
        title=f"First batch: {shapes}",
    )
