"""``save_pretrained`` of an adapted stock model, as Trainer and other libraries call it: what it writes loads again.

The folder holds what transformers writes, which is the base and the adapters' weights, and in ``hfadapt/`` an
adapter folder: ``hfadapt.load(folder)`` brings both back. Stock ``from_pretrained`` reads the base alone; an
empty tensor, whose name stands in its report, says so.
"""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..errors.arguments import require_switches
from ..runtime.hook_tables import remove_load_hooks
from ..runtime.shards import gathered, is_sharded, whole
from .atomic import atomic_folder, target_folder
from .base_identity import TOKENS
from .files import (
    CONFIG_FILE,
    OLD_CONFIG_FILE,
    TRAINER_FILE,
    config_path,
    outdated,
    read_config,
    settle_for_reading,
)
from .freeze import is_adapter, trained_base
from .occupied import refuse_foreign
from .saved_tensors import apart

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["SIDE_FOLDER", "SavePretrained", "base_beside", "install", "is_whole", "slim_checkpoints", "uninstall"]

SIDE_FOLDER = "hfadapt"
_LEFT_OUT = "ADAPTERS_ARE_LEFT_OUT.load_this_folder_with.hfadapt_load"
# In a slim checkpoint, under a beginning that no reader of such a folder takes for an adapter's.
_SLIM = f"{TOKENS}the_base_is_left_out"
_OF_THE_MODEL = f"{TOKENS}of_the_model."
_INDEX = "model.safetensors.index.json"
_PARTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


class SavePretrained:
    """Stands in for ``save_pretrained`` of one adapted model; an object, so that copies and pickles take it along.

    Args:
        model: The adapted model.
        slim: Leave out a frozen base.
    """

    def __init__(self, model: nn.Module, slim: bool = False) -> None:
        # `Any`: what `install` asks of it is a method that nn.Module lacks
        self.model: Any = model
        self.slim = slim

    def __call__(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Save as the stock method does, with what ``hfadapt.load`` needs beside it, whole or not at all.

        Raises:
            CheckpointError: the files cannot be written, or a frozen base would be left out of a folder that holds one.
        """
        model = self.model
        stock = type(model).save_pretrained
        options = {**dict(zip(list(inspect.signature(stock).parameters)[2:], args, strict=False)), **kwargs}
        push = options.pop("push_to_hub", False)
        given = options.pop("state_dict", None)
        main = options.get("is_main_process", True)
        if given is None and is_sharded(model):
            # every process gathers, and the first one writes
            given = {key: whole(tensor) for key, tensor in model.state_dict().items()}
            with gathered(model, ()) as main:
                if main:
                    self._write(save_directory, given, options, main)
        else:
            self._write(save_directory, given, options, main)
        if push and main:
            self._push(save_directory, options)

    def _write(
        self,
        save_directory: str | os.PathLike[str],
        given: Mapping[str, Tensor] | None,
        options: Mapping[str, Any],
        main: bool,
    ) -> None:
        from .save import save

        model = self.model
        stock = type(model).save_pretrained
        if self.slim and not trained_base(model):
            if main:
                _save_slim(model, target_folder(save_directory), given)
        elif not main or options.get("distributed_checkpoint"):
            # every rank writes its part into the one folder, which therefore cannot be swapped
            stock(model, save_directory, state_dict=given, **options)
            if main:
                save(model, Path(save_directory) / SIDE_FOLDER)
        else:
            _save_whole(model, target_folder(save_directory), given, options)

    def _push(self, save_directory: str | os.PathLike[str], options: dict[str, Any]) -> None:
        from transformers.utils import PushToHubMixin

        # the stock method would upload before the adapters are beside the model
        of_the_push = inspect.signature(PushToHubMixin.push_to_hub).parameters
        of_the_save = inspect.signature(type(self.model).save_pretrained).parameters
        options = {key: value for key, value in options.items() if key in of_the_push or key not in of_the_save}
        self.model.push_to_hub(**{"repo_id": Path(save_directory).name, **options})


def _save_whole(model: Any, folder: Path, given: Mapping[str, Tensor] | None, options: Mapping[str, Any]) -> None:
    from .save import write

    weights = model.state_dict() if given is None else given
    # the stock method refuses parameters that adapters share, as it would not tie them again; loading the adapters does
    separate = apart({key: tensor for key, tensor in weights.items() if is_adapter(key)})
    marked: Mapping[str, Tensor] | None = {**weights, **separate, _LEFT_OUT: torch.zeros(0)}
    if getattr(model, "hf_quantizer", None) is not None:
        shared = [key for key, tensor in separate.items() if tensor is not weights[key]]
        if shared:
            raise CheckpointError(
                "a quantised model writes its weights itself, and takes no two names for one parameter",
                where=str(folder),
                got=f"{len(shared)} parameters that adapters share, such as {shared[0]}",
                allowed="adapters that share none, or a base that is not quantised",
                try_="hfadapt.save(model, folder), which writes the adapters and names the base",
            )
        marked = given  # a quantizer takes no state dict, and makes its own
    with atomic_folder(folder, dropped=_older_save(folder)) as temporary:
        type(model).save_pretrained(model, temporary, state_dict=marked, **options)
        (temporary / SIDE_FOLDER).mkdir()
        write(model, temporary / SIDE_FOLDER, weights=given)


def _older_save(folder: Path) -> tuple[str, ...]:
    """Names in ``folder`` that would be read in place of a whole model's files, or as parts of it."""
    if not folder.is_dir():
        return ()
    parts = [name for name in os.listdir(folder) if _PARTS.fullmatch(name)]
    return (*outdated(folder), *parts)


class _TakeUp:
    """Lets a state dict that such a folder holds into the model it came from: a hook of ``load_state_dict``."""

    def __call__(self, module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *others: Any) -> None:
        note = state_dict.pop(f"{prefix}{_LEFT_OUT}", None)
        slim = state_dict.pop(f"{prefix}{_SLIM}", None)
        if slim is not None:
            _to_own_names(module, state_dict, prefix)
        if slim is not None or (note is not None and note.numel()):  # the second of releases up to 0.2
            # Of a slim checkpoint: the frozen base is the one that is here.
            for key, tensor in _frozen_base(module).items():
                state_dict.setdefault(f"{prefix}{key}", tensor)


def _to_own_names(model: Any, state_dict: dict[str, Tensor], prefix: str) -> None:
    """Give the tensors of an adapter folder's file the names that they have in the model, tied ones each of theirs."""
    from .save import file_names

    own = model.state_dict(keep_vars=True)
    names: dict[int, list[str]] = {}
    for key, tensor in own.items():
        names.setdefault(id(tensor), []).append(key)
    given = {key: state_dict.pop(key) for key in list(state_dict) if key.startswith(prefix)}
    known = {f"{prefix}{key}": names.get(id(own[of_model]), [of_model]) for key, of_model in file_names(model).items()}
    for key, tensor in given.items():
        in_file = key.removeprefix(prefix)
        if in_file.startswith(_OF_THE_MODEL):
            state_dict[f"{prefix}{in_file.removeprefix(_OF_THE_MODEL)}"] = tensor
        elif not in_file.startswith(TOKENS):
            # what this model lacks is named as an adapter's, for whoever refuses those
            for name in known.get(key, [f"hfadapt_shared.{in_file}"]):
                state_dict[f"{prefix}{name}"] = tensor


def _beside_adapters(model: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What neither the base nor the adapters' file brings when Trainer resumes: a head that adapters have copies of."""
    from .save import file_names

    own = model.state_dict(keep_vars=True)
    written = {id(own[name]) for name in file_names(model).values()}
    left_out = _frozen_base(model)
    return {
        f"{_OF_THE_MODEL}{key}": weights.get(key, tensor).detach()
        for key, tensor in own.items()
        if key not in left_out and id(tensor) not in written
    }


def install(model: nn.Module) -> None:
    """Put `SavePretrained` before the method of a model that has one."""
    if hasattr(type(model), "save_pretrained") and "save_pretrained" not in model.__dict__:
        model.__dict__["save_pretrained"] = SavePretrained(model)
        model.register_load_state_dict_pre_hook(_TakeUp())


def uninstall(model: nn.Module) -> None:
    """Take it away again."""
    if isinstance(model.__dict__.get("save_pretrained"), SavePretrained):
        del model.__dict__["save_pretrained"]
    remove_load_hooks(model, _TakeUp)


def slim_checkpoints(model: PreTrainedModel, slim: bool = True) -> None:
    """Leave a frozen base out of what ``save_pretrained`` and Trainer's checkpoints of an adapted model hold.

    Trainer resumes from them, and ``hfadapt.load(folder)`` reads them, on the base that the folder names. As long as
    the base trains, it is saved all the same. ``MultiTaskModel`` does so by itself.

    Raises:
        AttachError: nothing is attached.
    """
    from ..runtime.attachment import attachment

    attachment(model)
    require_switches(where="hfadapt.slim_checkpoints", slim=slim)
    found = model.__dict__.get("save_pretrained")
    if isinstance(found, SavePretrained):
        found.slim = slim


def _head_keys(model: Any) -> tuple[str, ...]:
    from ..runtime.attachment import attachment

    return tuple(f"{path}." for path in attachment(model).head_paths)


def _frozen_base(model: Any) -> dict[str, Tensor]:
    heads = _head_keys(model)
    return {key: t for key, t in model.state_dict().items() if not is_adapter(key) and not key.startswith(heads)}


def _save_slim(model: Any, folder: Path, given: Mapping[str, Tensor] | None) -> None:
    from .save import write

    dropped = outdated(folder)
    if is_whole(folder):
        _keep_own_base(model, folder)
        dropped = (*_older_save(folder), SIDE_FOLDER)
    else:
        refuse_foreign(folder)
    more = {_SLIM: torch.ones(1), **_beside_adapters(model, {} if given is None else given)}
    with atomic_folder(folder, dropped=dropped) as temporary:
        # the only file from which Trainer resumes, which hands its tensors to `_TakeUp`
        write(model, temporary, weights=given, extra_tensors=more, weights_file=TRAINER_FILE)


def _keep_own_base(model: Any, folder: Path) -> None:
    name = getattr(model.config, "_name_or_path", "")
    if name and target_folder(name) == folder:
        raise CheckpointError(
            "the folder holds the base of this very model, which slim_checkpoints leaves out",
            where=str(folder),
            got=f"base {name!r}",
            allowed="a folder other than the base's",
            try_="another folder, or hfadapt.slim_checkpoints(model, False)",
        )


def is_whole(folder: str | os.PathLike[str]) -> bool:
    """Say whether ``folder`` is what ``save_pretrained`` of an adapted model wrote, base included."""
    settle_for_reading(folder)
    path = Path(folder)
    beside = any((path / name).exists() for name in (CONFIG_FILE, OLD_CONFIG_FILE))
    return not beside and config_path(path / SIDE_FOLDER).is_file()


def base_beside(folder: str | os.PathLike[str], model: PreTrainedModel | None) -> PreTrainedModel:
    """Return the base of a folder of which ``is_whole`` holds: the one in its files, or ``model`` if that is the same.

    Raises:
        CheckpointError: the files are missing or damaged, or ``model`` has other weights.
    """
    import transformers

    where = Path(folder)
    data = read_config(where / SIDE_FOLDER)
    weights = _weights(where)
    if model is not None:
        _check_same_base(weights, model, data, folder)
        return model
    del weights
    kind = getattr(transformers, str(data.get("model_class")), None)
    if kind is None:
        got = data.get("model_class")
        raise CheckpointError(
            "the base's class is not in transformers",
            where=str(folder),
            got=got,
            allowed="a class that this release of transformers has",
            try_=f"hfadapt.load(folder + '/{SIDE_FOLDER}', model=base), with the base made by code of your own",
        )
    return _base_of(kind, folder)


def _weights(folder: Path) -> dict[str, Tensor]:
    """Read the model's files.

    Raises:
        CheckpointError: they are missing or damaged, or were saved without the adapters that lie beside them.
    """
    names = [TRAINER_FILE]
    # as from_pretrained: the single file first
    if not (folder / TRAINER_FILE).is_file() and (folder / _INDEX).is_file():
        try:
            names = sorted(set(json.loads((folder / _INDEX).read_text("utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise CheckpointError(
                f"{_INDEX} is damaged",
                where=str(folder),
                got=str(error),
                allowed="a JSON object with the files of the weights under 'weight_map'",
                try_="copy or save the checkpoint again; the index was cut off or changed",
            ) from None
    found: dict[str, Tensor] = {}
    for name in names:
        found |= _read(folder, name)
    if _LEFT_OUT not in found and not any(is_adapter(key) for key in found):
        raise CheckpointError(
            f"the adapters in {SIDE_FOLDER}/ are of an earlier save than the model, which was saved without any",
            where=str(folder),
            got=f"{len(found)} tensors of the model, and no sign of an adapter among them",
            allowed="a model that was saved together with its adapters",
            try_=f"hfadapt.load(folder + '/{SIDE_FOLDER}', model=base), if they still belong to it",
        )
    return found


def _base_of(kind: Any, folder: str | os.PathLike[str]) -> PreTrainedModel:
    """Load the base alone; that the adapters are left out is no news here."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return kind.from_pretrained(folder)
    finally:
        logging.set_verbosity(level)


def _check_same_base(
    weights: Mapping[str, Tensor], model: PreTrainedModel, data: Mapping[str, Any], folder: str | os.PathLike[str]
) -> None:
    """Refuse a base with other weights than those beside which the adapters were saved."""
    heads = tuple(f"{path}." for path in data.get("head", ()))
    own = model.state_dict()
    differing = [
        key
        for key, saved in weights.items()
        if key in own and not is_adapter(key) and not key.startswith(heads) and not _equal(own[key], saved)
    ]
    if differing:
        raise CheckpointError(
            "the folder holds another base than this one",
            where=str(folder),
            got=f"{len(differing)} tensors differ, such as {differing[0]}",
            allowed="the weights beside which the adapters were saved",
            try_="hfadapt.load(folder), which takes the base from the folder",
        )


def _equal(here: Tensor, saved: Tensor) -> bool:
    here = here.detach().to(saved.device)
    return here.shape == saved.shape and (
        torch.equal(here, saved.to(here.dtype)) or torch.equal(here.to(saved.dtype), saved)
    )


def _read(folder: Path, name: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(folder / name))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{name} is missing or damaged",
            where=str(folder),
            got=str(error),
            allowed="the whole safetensors file of that part of the model",
            try_="copy or save the checkpoint again; every part that the index names is needed",
        ) from None
