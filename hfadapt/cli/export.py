"""``hfadapt export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .output import base_option
from .saved import load_saved

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["export"]


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    required=True,
    help="peft, adapterhub, one of a plugin's; merged, a stock model's folder; or onnx, a graph for other runtimes.",
)
@click.option("--adapter", help="Which adapter or task, where FOLDER holds several.")
@base_option
def export(folder: Path, output: Path, form: str, adapter: str | None, base: str | None) -> None:
    """Write the adapter in FOLDER to OUTPUT as another library reads it.

    FOLDER is that of a run, or one that holds adapters, hfadapt's or another library's. With --format merged the
    adapter is folded into the base, which is written as transformers writes it; methods that are no update of weights
    are refused. With --format onnx the graph has all tasks, whose ids are an input, or the one of --adapter, merged
    where its method allows it; ONNX Runtime is shown to compute the same before anything is kept.
    """
    from .. import plugins
    from ..adapters.foreign import export as export_adapter
    from ..multitask.model import MultiTaskModel
    from ..recipes.finished_run import adapter_of

    if form not in ("merged", "onnx"):
        _ = plugins.formats()[form]  # an unknown one is known before the base is loaded
    folder = adapter_of(folder)
    loaded = load_saved(folder, base)
    if form == "onnx":
        _write_onnx(loaded, adapter, output)
        return
    model: Any = loaded.base if isinstance(loaded, MultiTaskModel) else loaded
    name = _chosen(model, adapter, folder)
    if form == "merged":
        _write_merged(model, name, output)
    else:
        export_adapter(model, output, name, format=form)
    click.echo(f"{name} is in {output}")
    if isinstance(loaded, MultiTaskModel) and loaded.heads:
        click.echo(f"the head of the task {name} is hfadapt's own and stays behind", err=True)


def _chosen(model: PreTrainedModel, adapter: str | None, folder: Path) -> str:
    """Return the name of the adapter.

    Raises:
        AttachError: there is none of that name, or none at all.
        CheckpointError: the folder holds several, and none was named.
    """
    from ..errors import CheckpointError
    from ..runtime.attachment import attachment

    names = attachment(model).names
    if adapter is None and len(names) != 1:
        raise CheckpointError(
            "the folder holds several adapters",
            where=str(folder),
            got="no --adapter",
            allowed=", ".join(names),
            try_=f"--adapter {names[0]}",
        )
    name = names[0] if adapter is None else adapter
    attachment(model).require(name)
    return name


def _write_onnx(model: PreTrainedModel, adapter: str | None, output: Path) -> None:
    from ..inference.onnx import export_onnx

    said = export_onnx(model, output, adapter)
    how = "merged into the weights" if said["merged"] else f"of the input task_ids, counted from {said['tasks'][0]!r}"
    how = "in the graph" if len(said["tasks"]) == 1 and not said["merged"] else how
    click.echo(f"{', '.join(said['tasks'])} ({how}) in {output}")
    click.echo(f"largest difference from the model in ONNX Runtime: {said['largest_difference']:.1e}")


def _write_merged(model: PreTrainedModel, name: str, output: Path) -> None:
    from ..adapters.atomic import atomic_folder
    from ..adapters.detach import detach
    from ..adapters.merge import merge
    from ..errors import CheckpointError
    from ..runtime.attachment import attachment

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CheckpointError(
            "a merged model is written into a folder of its own",
            where=str(output),
            got="something that is there already",
            allowed="a folder that is not there yet, or is empty",
            try_="the name of a new folder",
        )
    others = [one for one in attachment(model).names if one != name]
    if others:
        detach(model, others)
    merge(model, name, keep_original=False)
    with atomic_folder(output) as temporary:
        model.save_pretrained(temporary)
