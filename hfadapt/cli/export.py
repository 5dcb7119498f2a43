"""``hfadapt export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .output import base_option

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["export"]


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--format", "form", required=True, help="peft, adapterhub, one of a plugin's; or merged, a stock model's folder."
)
@click.option("--adapter", help="Which adapter or task, where FOLDER holds several.")
@base_option
def export(folder: Path, output: Path, form: str, adapter: str | None, base: str | None) -> None:
    """Write the adapter in FOLDER to OUTPUT as another library reads it.

    FOLDER is that of a run, or one that holds adapters, hfadapt's or another library's. With --format merged the
    adapter is folded into the base, which is written as transformers writes it; methods that are no update of weights
    are refused.
    """
    from .. import plugins
    from ..adapters.foreign import export as export_adapter
    from ..multitask.model import MultiTaskModel
    from ..recipes.finished_run import adapter_of

    if form != "merged":
        _ = plugins.formats()[form]  # an unknown one is known before the base is loaded
    folder = adapter_of(folder)
    loaded = _load(folder, base)
    model: Any = loaded.base if isinstance(loaded, MultiTaskModel) else loaded
    name = _chosen(model, adapter, folder)
    if form == "merged":
        _write_merged(model, name, output)
    else:
        export_adapter(model, output, name, format=form)
    click.echo(f"{name} is in {output}")
    if isinstance(loaded, MultiTaskModel) and loaded.heads:
        click.echo(f"the head of the task {name} is hfadapt's own and stays behind", err=True)


def _load(folder: Path, base: str | None) -> PreTrainedModel:
    """Put what a folder holds on its base, or on another that the caller named.

    Raises:
        CheckpointError: see ``hfadapt.load``; or the base of another library's folder is named.
    """
    from ..adapters.base_identity import dtype_option, label_options
    from ..adapters.base_model import load_base
    from ..adapters.files import read_config
    from ..adapters.foreign import find_format
    from ..errors import CheckpointError
    from ..multitask.load import load
    from ..multitask.model import MultiTaskModel
    from ..multitask.save import KEY

    if base is None:
        return load(folder)
    if find_format(folder, None) is not None:
        raise CheckpointError(
            "another library's folder says no class for its base, which so cannot be named here",
            where=str(folder),
            got=f"--base {base}",
            allowed="folders that hfadapt saved",
            try_="hfadapt.load(folder, model) and hfadapt.export in Python",
        )
    data = read_config(folder)
    if KEY in data:
        return MultiTaskModel.from_pretrained(str(folder), base=base)
    options = {**dtype_option(data, folder), **(label_options(data) if data.get("head") else {})}
    return load(folder, load_base(folder, data["model_class"], base, options))


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
            try_="the name of a new folder",
        )
    others = [one for one in attachment(model).names if one != name]
    if others:
        detach(model, others)
    merge(model, name, keep_original=False)
    with atomic_folder(output) as temporary:
        model.save_pretrained(temporary)
