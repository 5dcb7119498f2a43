"""``hfadapt inspect``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .output import json_option, print_json, print_table

if TYPE_CHECKING:
    from ..adapters.inspect import ModelReport, StackReport

__all__ = ["inspect"]


@click.command()
@click.argument("model")
@click.option("--layer", type=click.IntRange(min=0), default=0, show_default=True, help="Whose modules to show.")
@json_option
def inspect(model: str, layer: int, as_json: bool) -> None:
    """Show the slots and sizes of MODEL, and which methods fit it.

    MODEL is a hub name, a folder, package:NAME, or a model type such as bert. Weights are not loaded.
    """
    from ..adapters.inspect import describe, skeleton
    from ..errors import ArchitectureError

    report = describe(skeleton(_config(model)), layer=layer)
    if as_json:
        print_json({"model": model, **report.to_dict()})
    elif not report.refusal:
        _print(model, report)
    if report.refusal:
        raise ArchitectureError(report.refusal)


def _config(name: str) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from ..adapters.model_source import read_pretrained

    return CONFIG_MAPPING[name]() if name in CONFIG_MAPPING else read_pretrained(AutoConfig.from_pretrained, name)


def _print(name: str, report: ModelReport) -> None:
    interface = "through" if report.attention_interface else "not through"
    click.echo(
        f"{name}: {report.model_class} ({report.model_type}), {report.parameters:,} parameters, "
        f"map from the {report.source}, attention {interface} AttentionInterface"
    )
    for stack in report.stacks:
        print_table([stack.path, ""], _sizes(stack))
        rows = ((row.role, row.path, row.kind, _shape(row.inputs, row.outputs)) for row in stack.leaves)
        print_table([f"layer {stack.layer}", "module", "class", "size"], rows)
        slots = ((row.slot, f"{row.side} of {row.leaf}", row.reads, row.width) for row in stack.slots)
        print_table(["slot", "changes the", "from what enters", "width"], slots)
    click.echo(f"names for LoRA's target_modules: {', '.join(report.linears)}\n")
    fits = [
        (row.method, None if row.parameters is None else f"{row.parameters:,}",
         None if row.share is None else f"{row.share:.2%}", row.why_not)
        for row in report.methods
    ]  # fmt: skip
    print_table(["method", "parameters", "of the base", "why not"], fits)


def _sizes(stack: StackReport) -> list[tuple[str, Any]]:
    norms = {"post": "post-norm", "pre": "pre-norm"}
    heads = f"{stack.heads} of {stack.head_dim}, {stack.kv_heads} for keys and values" if stack.heads else "none"
    times = f", each module run {stack.calls_per_module} times" if stack.calls_per_module > 1 else ""
    return [
        ("kind", stack.kind + (", causal" if stack.causal else "")),
        ("style", norms.get(stack.style, stack.style)),
        ("layers", f"{stack.layers}{times}"),
        ("hidden size", stack.hidden_size),
        ("heads", heads),
        ("feed-forward size", stack.ffn_size),
    ]


def _shape(inputs: int | None, outputs: int | None) -> str | None:
    return None if inputs is None else f"{inputs} -> {outputs}"
