"""``hfadapt inspect``."""

from __future__ import annotations

from typing import Any

import click

from hfadapt.cli.output import json_option, print_json, print_table

__all__ = ["inspect"]


@click.command()
@click.argument("model")
@click.option("--layer", type=int, default=0, show_default=True, help="Whose modules to show.")
@json_option
def inspect(model: str, layer: int, as_json: bool) -> None:
    """Show the slots and sizes of MODEL, and which methods fit it.

    MODEL is a hub name, a folder, package:NAME, or a model type such as bert. Weights are not loaded.
    """
    from hfadapt.architecture import resolve

    skeleton = _skeleton(model)
    arch = resolve(skeleton)
    found = {
        "model": model,
        "model_type": arch.model_type,
        "map": arch.source,
        "attention_interface": arch.attention_interface,
        "parameters": sum(parameter.numel() for parameter in skeleton.parameters()),
        "stacks": [_stack(stack, layer) for stack in arch.stacks],
        "linears": sorted({name.rpartition(".")[2] for name in arch.linears(skeleton)}),
        "methods": _fitting(skeleton),
    }
    if as_json:
        print_json(found)
        return
    click.echo(f"{model}: {found['model_type']}, {found['parameters']:,} parameters, map from the {found['map']}")
    for stack in found["stacks"]:
        sizes = {key: value for key, value in stack.items() if key not in ("modules", "path")}
        print_table([stack["path"], ""], sizes.items())
        print_table([f"layer {layer}", "module"], stack["modules"].items())
    click.echo(f"names for LoRA's target_modules: {', '.join(found['linears'])}\n")
    rows = [(row["method"], row["parameters"], row["share"], row["why_not"]) for row in found["methods"]]
    print_table(["method", "parameters", "of the base", "why not"], rows)


def _skeleton(name: str) -> Any:
    """The model without weights, on the meta device."""
    import torch
    from transformers import AutoConfig, AutoModel
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from hfadapt.run.source import model_path

    config = CONFIG_MAPPING[name]() if name in CONFIG_MAPPING else AutoConfig.from_pretrained(model_path(name))
    with torch.device("meta"):
        return AutoModel.from_config(config)


def _stack(stack: Any, index: int) -> dict[str, Any]:
    layer = stack.layer(min(index, stack.num_layers - 1))
    return {
        "path": stack.path,
        "kind": stack.kind,
        "style": f"{stack.style}-norm" if stack.style in ("pre", "post") else stack.style,
        "causal": stack.causal,
        "layers": stack.num_layers,
        "hidden size": stack.hidden_size,
        "heads": f"{stack.num_heads} of {stack.head_dim}, {stack.num_kv_heads} for keys and values",
        "feed-forward size": stack.ffn_size,
        "modules": {**layer.linears, **{f"{role} norm": path for role, path in layer.norms.items()}},
    }


def _fitting(model: Any) -> list[dict[str, Any]]:
    """Try every method with its default options; attaching is undone each time."""
    from hfadapt import attach, plugins
    from hfadapt.errors import HFAdaptError
    from hfadapt.report.methods import default_configs

    base = sum(parameter.numel() for parameter in model.parameters())
    rows = []
    for name, entry in plugins.methods().items():
        row: dict[str, Any] = {"method": name, "parameters": None, "share": None, "why_not": None}
        configs = default_configs(entry)
        try:
            if configs is None:
                row["why_not"] = "has options that must be given"
            else:
                handle = attach(model, configs, verify=False)
                row["parameters"] = handle.num_parameters()
                row["share"] = f"{row['parameters'] / base:.2%}"
                handle.detach()
        except HFAdaptError as error:
            row["why_not"] = str(error)
        rows.append(row)
    return rows
