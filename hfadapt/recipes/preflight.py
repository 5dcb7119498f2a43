"""What a run will need when it has trained, asked for before: trackers, the hub, an output folder, room on the disk."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import ConfigError, did_you_mean, raise_all
from .arm import count_parameters

if TYPE_CHECKING:
    from torch import nn
    from transformers import TrainingArguments

    from ..multitask.task import Task
    from ..training import TaskMixture

__all__ = ["Disk", "estimate_disk", "no_checkpoint", "require_room", "require_services"]

_FLOAT = 4
# Where transformers asks for another package than the tracker's name says.
_ASKED = {"azure_ml": "azureml", "comet_ml": "comet", "flyte": "flytekit"}


def no_checkpoint(folder: str) -> ConfigError:
    """A run is to go on from a folder in which none was saved."""
    return ConfigError(
        "there is no checkpoint to go on from",
        where=folder,
        got="no folder checkpoint-N",
        allowed="a run that was cut off behind its first checkpoint",
        try_="a recipe with training.save_strategy=epoch writes them; leave --resume out to start anew",
    )


class Planned(Protocol):
    """What is asked of a run, which is `Run`."""

    output: Path
    tasks: list[Task]
    arguments: TrainingArguments

    @property
    def mixture(self) -> TaskMixture: ...

    @property
    def epochs(self) -> int: ...

    def baseline_arguments(self) -> Sequence[tuple[str, TrainingArguments]]: ...


@dataclass(frozen=True)
class Disk:
    """Bytes that a run writes, estimated, and what is free where it writes them.

    Args:
        adapter: Adapters and heads.
        tokens: The tokenised data.
        checkpoints: Weights, and AdamW's two numbers for each that trains, of every checkpoint that is kept.
        free: On the disk of the output folder.
    """

    adapter: int
    tokens: int
    checkpoints: int
    free: int

    @property
    def total(self) -> int:
        """All that is written."""
        return self.adapter + self.tokens + self.checkpoints


def require_services(run: Planned) -> None:
    """Ask for the trackers and the hub that the run's arguments name, and for a folder that can be written.

    Raises:
        ConfigError: lists everything that is missing.
    """
    arms = {"training": run.arguments, **{f"baselines.{name}": found for name, found in run.baseline_arguments()}}
    found = [error for where, one in arms.items() for error in (*_trackers(where, one), *_hub(where, one))]
    # baselines have most arguments of the adapted run
    different = {(error.what, str(error.got)): error for error in reversed([*found, *_folder(run.output)])}
    raise_all(reversed(different.values()), ConfigError, "things that the run needs are not there")


def _trackers(where: str, arguments: TrainingArguments) -> Iterator[ConfigError]:
    """What is wrong with ``report_to``: Trainer would say so when it is made, which is after the data are tokenised."""
    import transformers.integrations.integration_utils as integrations

    known = list(integrations.INTEGRATION_TO_CALLBACK)
    for name in arguments.report_to or ():
        place = f"{where}.report_to"
        if name not in known:
            yield ConfigError(
                "no such tracker", where=place, got=repr(name), allowed=", ".join(known), try_=did_you_mean(name, known)
            )
            continue
        available = getattr(integrations, f"is_{_ASKED.get(name, name)}_available", None)
        if available is not None and not available():
            yield ConfigError(
                "the tracker's package is not installed",
                where=place,
                got=repr(name),
                allowed="trackers that can be imported here",
                try_=f"pip install {name.replace('_', '-')}, or leave it out",
            )


def _hub(where: str, arguments: TrainingArguments) -> Iterator[ConfigError]:
    """What speaks against an upload: a name that the hub refuses, no token, no network."""
    if not arguments.push_to_hub:
        return
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    name = arguments.hub_model_id
    try:
        validate_repo_id(name or "")
    except HFValidationError as error:
        yield ConfigError(
            "not a name of the hub",
            where=f"{where}.hub_model_id",
            got=repr(name),
            allowed="NAME or OWNER/NAME of letters, digits, '-', '_' and '.'",
            try_=str(error).splitlines()[0],
        )
    if constants.HF_HUB_OFFLINE:
        yield ConfigError(
            "the hub is switched off",
            where=f"{where}.push_to_hub",
            got="HF_HUB_OFFLINE",
            allowed="a hub that can be reached",
            try_="unset HF_HUB_OFFLINE, or push_to_hub: false",
        )
    elif not (arguments.hub_token or get_token()):
        yield ConfigError(
            "no token of the hub",
            where=f"{where}.push_to_hub",
            got="nothing in HF_TOKEN or the token file",
            allowed="a token that may write",
            try_="hf auth login",
        )


def _folder(folder: Path) -> Iterator[ConfigError]:
    """Whether the output folder can be made and written, found without writing."""
    place = _there(folder)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        yield ConfigError(
            "the output folder cannot be written",
            where="output",
            got=f"{folder}, with no right to write in {place}"
            if place.is_dir()
            else f"{folder}, and {place} is a file",
            allowed="a folder of yours",
            try_="--output FOLDER",
        )


def _there(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    place = Path(os.path.abspath(folder))
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    return place


def require_room(run: Planned, disk: Disk) -> None:
    """Refuse a run that will write more than is free, by what `estimate_disk` found.

    Raises:
        ConfigError: less than that is free.
    """
    if disk.total > disk.free:
        raise ConfigError(
            "the disk is too full for what the run will write",
            where="output",
            got=f"{disk.free / 2**20:,.0f} MiB free at {_there(run.output)}",
            allowed=f"{disk.total / 2**20:,.0f} MiB: "
            + ", ".join(f"{f.name} {getattr(disk, f.name) / 2**20:,.0f}" for f in dataclasses.fields(disk)[:3]),
            try_="--output on another disk, or training.save_total_limit",
        )


def estimate_disk(run: Planned, model: nn.Module) -> Disk:
    """Estimate what the run will write, arm by arm.

    Args:
        run: With its mixture tokenised.
        model: The adapted one.
    """
    own = sum(p.numel() for p in model.parameters() if p.requires_grad) * _FLOAT
    rows = run.mixture.schedule.lengths or ()
    tokens = sum(int(lengths.sum()) for lengths in rows) * 2 * _FLOAT  # ids and, at most, types or labels
    steps = run.mixture.preview().schedule.steps
    checkpoints = own * 3 * _kept(run.arguments, steps, run.epochs)
    for name, arguments in run.baseline_arguments():
        whole = name == "full_finetuning"
        size = count_parameters(model) * _FLOAT if whole else own
        each = len(run.tasks) if whole else 1
        epochs = max(1, math.ceil(arguments.num_train_epochs))
        checkpoints += size * 3 * each * _kept(arguments, max(1, steps // each), epochs)
    free = shutil.disk_usage(_there(run.output)).free
    # the weights stand in a folder once, under two names
    return Disk(adapter=own, tokens=tokens, checkpoints=checkpoints, free=free)


def _kept(arguments: Any, steps: int, epochs: int) -> int:
    """How many checkpoints an arm leaves."""
    strategy = str(getattr(arguments.save_strategy, "value", arguments.save_strategy))
    if strategy == "no":
        return 0
    total = arguments.max_steps if arguments.max_steps > 0 else steps * epochs
    every = arguments.save_steps if strategy == "steps" else steps
    every = every if every >= 1 else max(1, math.ceil(total * every))
    made = max(1, math.ceil(total / every))
    return min(made, arguments.save_total_limit or made)
