"""Adapters on disk: one folder, safetensors and JSON, written atomically and read strictly.

``hfadapt_config.json`` holds the format's version, the adapters' configs, compositions, the base it belongs to and the
library versions; ``adapter_model.safetensors`` holds every parameter once, tied ones included (``files.py``: names and
digests). A ``MultiTaskModel``'s folder is written by ``multitask/save.py``, what ``save_pretrained`` and Trainer add by
``save_hooks.py``, and a run's folder by ``recipes/output.py``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..errors import CheckpointError, ConfigError
from ..errors.arguments import require_mapping
from ..errors.names import names_of
from ..routing.composition import Composition, to_json
from ..runtime.attachment import (
    Attachment,
    attachment,
    find_attachment,
    parameters_of,
    shared_modules,
    slots_of,
    uncompiled,
)
from ..runtime.row_routing import routers_of
from ..runtime.shards import gathered
from ..runtime.slot import fused_node
from ..runtime.watch import require_intact
from .atomic import atomic_folder
from .base_identity import describe_base, token_names, token_rows
from .beside_peft import describe_peft, require_in_place
from .files import FIRST_VERSION, FORMAT_VERSION, WEIGHTS_FILE, outdated, write_files
from .folder_config import HFAdaptConfig
from .freeze import trained_base
from .occupied import refuse_foreign
from .own_files import describe_own, names_of_own, own_to_save
from .plain_weights import require_plain
from .router import describe_routers
from .saved_tensors import require_finite

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "describe",
    "file_names",
    "fusions_of",
    "prefix_of",
    "require_loadable",
    "save",
    "saved_parameters",
    "state_of",
    "write",
]


_NO_ADAPTERS: dict[str, Any] = {
    "format_version": FIRST_VERSION,
    "head": [],
    "adapters": {},
    "compositions": {},
    "active": None,
}


def versions() -> dict[str, str]:
    found = {}
    for package in ("hfadapt", "torch", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            from ..errors.version import __version__

            found[package] = __version__ if package == "hfadapt" else "unknown"
    return found


def prefix_of(model: PreTrainedModel) -> str:
    base = getattr(model, "base_model", model)
    return "" if base is model else f"{model.base_model_prefix}."


def _chosen(model: PreTrainedModel, names: str | Iterable[str] | None) -> list[str]:
    """Return the names of the adapters that are asked for; raise where one is not attached."""
    state = attachment(model)
    chosen = list(state.names if names is None else names_of(names))
    for name in chosen:
        state.require(name)
    return chosen


def state_of(
    model: PreTrainedModel, names: Iterable[str] | None = None, weights: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Return what a save writes: parameters of the adapters, relative to the base model, and their own modules.

    Args:
        model: An adapted model.
        names: The adapters; all by default.
        weights: Tensors to take in place of the model's, by the model's own names (gathered from shards).

    Raises:
        CheckpointError: an adapter is pruned or parametrised.
    """
    chosen = _chosen(model, names)
    prefix = prefix_of(model)
    given = {} if weights is None else weights
    require_intact(attachment(model), chosen)
    require_plain(model, chosen)
    parameters = saved_parameters(model, chosen, own_modules=False)
    tensors = {key.removeprefix(prefix): given.get(key, p).detach() for key, p in parameters.items()}
    return tensors | own_to_save(model, chosen, prefix, given)


def file_names(model: PreTrainedModel) -> dict[str, str]:
    """Return, for each tensor of `state_of`, its key in the file and its key in ``model.state_dict()``."""
    chosen = list(attachment(model).names)
    prefix = prefix_of(model)
    parameters = saved_parameters(model, chosen, own_modules=False)
    return {key.removeprefix(prefix): key for key in parameters} | names_of_own(model, chosen, prefix)


def saved_parameters(
    model: PreTrainedModel, names: Iterable[str] | None = None, *, own_modules: bool
) -> dict[str, nn.Parameter]:
    """Return the parameters of adapters, and of the fusion layers and routers that join them, by the model's own names.

    Args:
        model: A model, adapted or not.
        names: The adapters; all by default.
        own_modules: With those of the adapters' own copies of modules of the base.
    """
    state = find_attachment(model)
    chosen = tuple(() if state is None else state.names if names is None else names)
    found: dict[str, nn.Parameter] = {}
    for name in chosen:
        found.update(parameters_of(model, name, own_modules))
    for path, fusion in fusions_of(model, chosen):
        found.update((f"{path}.{key}", parameter) for key, parameter in fusion.named_parameters())
    for key, _ in routers_of(model, chosen):
        joined = shared_modules(model, key).named_parameters()
        found.update((f"hfadapt_shared.{key}.{name}", parameter) for name, parameter in joined)
    return found


def fusions_of(model: PreTrainedModel, names: Iterable[str]) -> list[tuple[str, nn.Module]]:
    """Return the path of each fusion layer that joins adapters of ``names`` alone, and the layer."""
    among = set(names)
    return [
        (f"{path}.hfadapt.fusions.{key}", fusion)
        for path, slot in slots_of(model)
        for key, fusion in slot.fusions.items()
        if set(fused_node(key).split(",")) <= among
    ]


def describe(model: PreTrainedModel, names: Iterable[str] | None = None) -> dict[str, Any]:
    """Return the content of ``hfadapt_config.json``; a model without adapters may be one whose heads alone train."""
    state = find_attachment(model)
    if state is None:
        kind = model.config.model_type
        adapters = {**_NO_ADAPTERS}
    else:
        kind = state.arch.model_type
        adapters = _describe_adapters(model, state, _chosen(model, names))
    return {
        "format": "hfadapt",
        **adapters,
        **describe_base(model, kind),
        **describe_peft(model),
        "versions": versions(),
    }


def _describe_adapters(model: PreTrainedModel, state: Attachment, chosen: list[str]) -> dict[str, Any]:
    compositions = {
        k: to_json(v) for k, v in state.compositions.items() if not k.startswith("_") and _covered(v, chosen)
    }
    active = state.active
    drop = {stack: layers for stack, layers in state.drop.items() if layers}
    covered = isinstance(active, Composition) and _covered(active, chosen)
    routers = describe_routers(model, chosen)
    return {
        **describe_own(state, chosen, prefix_of(model)),
        "adapters": {n: [c.to_dict() for c in state.require(n).configs] for n in chosen},
        "compositions": compositions,
        "fusions": [
            {**f.config.to_dict(), "adapters": list(node.children), "kept": {k: list(v) for k, v in f.kept.items()}}
            for node, f in state.fusions.items()
            if _covered(node, chosen)
        ],
        "active": active if isinstance(active, str) and active in (*chosen, *compositions) else None,
        **({"format_version": FORMAT_VERSION, "active_composition": to_json(active)} if covered else {}),
        **({"format_version": FORMAT_VERSION, "drop": drop} if drop else {}),
        **({"format_version": FORMAT_VERSION, "routers": routers} if routers else {}),
    }


def _covered(node: Any, names: list[str]) -> bool:
    from ..routing.composition import adapter_names

    return all(n in names for n in adapter_names(node))


def save(
    model: PreTrainedModel,
    folder: str | os.PathLike[str],
    names: str | Iterable[str] | None = None,
    *,
    extra: Mapping[str, Any] | None = None,
    extra_tensors: Mapping[str, Tensor] | None = None,
    card: Callable[[Path], None] | None = None,
) -> Path:
    """Write the adapters (and the task head) of ``model`` to ``folder``; the base is not written.

    Of a model that ``fully_shard`` has split over processes, every process calls this, and the first one writes.

    Args:
        model: An adapted model.
        folder: Made if it is missing; an interrupted save leaves it as it was. What hfadapt saved there before is
            replaced, files of others are kept.
        names: The adapters, or the name of one; all by default.
        extra: Further keys of ``hfadapt_config.json`` (tasks and heads of a multi-task model).
        extra_tensors: Further tensors.
        card: Called with the temporary folder, to add a model card or other files.

    Raises:
        CheckpointError: the files cannot be written, the folder holds a model or an adapter of another library's,
            the base trains, or an adapter holds NaN or Inf or is pruned or parametrised.
        AttachError: nothing is attached, or an adapter is unknown.
    """
    model = uncompiled(model)
    extra = require_mapping("extra", extra, where="hfadapt.save", allowed="a dict of further keys")
    extra_tensors = require_mapping(
        "extra_tensors", extra_tensors, where="hfadapt.save", allowed="a dict of tensors", of=Tensor
    )
    if names is not None and not (names := names_of(names)):
        raise CheckpointError(
            "no adapter to save",
            where=str(folder),
            got="names=()",
            allowed="names, or None for all",
            try_="leave names out, which saves every adapter",
        )
    if card is not None and not callable(card):
        raise ConfigError(
            "card is no function",
            where="hfadapt.save",
            got=repr(card),
            allowed="a function of a folder",
            try_="card=lambda folder: folder.joinpath('README.md').write_text('...')",
        )
    refuse_foreign(folder)
    chosen = _chosen(model, names)
    read = {
        *saved_parameters(model, chosen, own_modules=True),
        *names_of_own(model, chosen, prefix_of(model)).values(),
        *token_names(model),
    }
    with gathered(model, read) as writes:
        require_loadable(model, folder, names)
        if writes:
            with atomic_folder(folder, dropped=outdated(folder)) as temporary:
                write(model, temporary, names, extra=extra, extra_tensors=extra_tensors)
                if card is not None:
                    card(temporary)
    return Path(folder)


def require_loadable(
    model: PreTrainedModel,
    folder: str | os.PathLike[str],
    names: str | Iterable[str] | None = None,
    *,
    besides: Iterable[str] = (),
) -> None:
    """Refuse to write adapters that would not be what they are now on the base that they name.

    Args:
        model: An adapted model.
        folder: For the error.
        names: The adapters; all by default.
        besides: Paths of modules of the base that are written too.

    Raises:
        CheckpointError: other parameters of the base train; or an adapter holds NaN or Inf, which nothing reads again.
        AttachError: nothing is attached, an adapter is unknown, or a module that it sits on was replaced.
    """
    chosen = _chosen(model, names)
    require_intact(attachment(model), chosen)
    for name in chosen:
        require_finite(parameters_of(model, name), f"{folder}, adapter {name!r}")
    written = tuple(f"{path}." for path in besides)
    trained = [key for key in trained_base(model) if not key.startswith(written)]
    if trained:
        raise CheckpointError(
            "the base trains, and a folder of adapters does not hold it",
            where=str(folder),
            got=f"{len(trained)} parameters of the base with requires_grad, such as {trained[0]}",
            allowed="adapters of a frozen base",
            try_="model.save_pretrained(folder), which holds both and which hfadapt.load reads; or "
            "requires_grad_(False) for parameters that were not trained",
        )
    require_in_place(model, chosen, folder)


def write(
    model: PreTrainedModel,
    folder: Path,
    names: Iterable[str] | None = None,
    *,
    extra: Mapping[str, Any] | None = None,
    extra_tensors: Mapping[str, Tensor] | None = None,
    weights: Mapping[str, Tensor] | None = None,
    weights_file: str = WEIGHTS_FILE,
) -> None:
    """Write what ``save`` writes into a folder that nobody reads yet.

    Args:
        model: An adapted model.
        folder: Which is there, and empty.
        names: The adapters; all by default.
        extra: Further keys of ``hfadapt_config.json``.
        extra_tensors: Further tensors.
        weights: Tensors to take in place of the model's, by the model's own names (gathered from shards).
        weights_file: Which of the two names that a folder's weights may have.
    """
    chosen = _chosen(model, names)
    config = {**describe(model, chosen), **(extra or {})}
    tensors = {**state_of(model, chosen, weights), **token_rows(model, weights), **(extra_tensors or {})}
    # AutoModel takes a folder without it for peft's and fails on it with errors that help nobody
    marker = HFAdaptConfig(config["base_model_name_or_path"], base_class=config["model_class"])
    marker.save_pretrained(folder)
    write_files(folder, config, {k: t.contiguous().cpu() for k, t in tensors.items()}, weights_file)
