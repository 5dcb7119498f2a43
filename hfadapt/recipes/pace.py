"""How long a run will take on this machine: a dry run makes a few of its updates, and throws them away.

A base whose weights do not fit into memory is stood for by its first layer and by its first two, with random weights:
what the second adds, each further one adds too.
"""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import TrainerCallback

from .arm import make_trainer, pack_frozen
from .build import training_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..data.schedule import Schedule
    from .run import Run

__all__ = ["Pace", "available_bytes", "grown", "measure_pace", "shallow_models"]

#: Updates that are timed behind one that is not, and after how many seconds no further one is made.
UPDATES, ENOUGH_SECONDS = 3, 20.0

_KEEPS_NOTHING = {
    "eval_strategy": "no",
    "save_strategy": "no",
    "logging_strategy": "no",
    "load_best_model_at_end": False,
    "metric_for_best_model": None,
    "report_to": [],
    "push_to_hub": False,
    "disable_tqdm": True,
}


@dataclass(frozen=True)
class Pace:
    """The time of training, without evaluations and baselines.

    Args:
        update: Seconds of an update whose rows are as long as those of the first epoch are on average.
        updates: How many of them were timed; of these is the estimate.
    """

    update: float
    updates: int


def available_bytes() -> float:
    """What the memory of the device that trains has room for now; without end where the system does not say."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        return math.inf
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), math.inf)


def measure_pace(run: Run, model: PreTrainedModel) -> Pace:
    """Make a few updates as the run would, optimizer, regularizers and precision included.

    Args:
        run: Whose recipe is followed; nothing is written in its folder.
        model: As `Run.build_model` makes it; it is trained and packed, and of no use afterwards.
    """
    from ..training import RobustAdapterDrop

    recipe = run.recipe
    clock = _Few()
    pack_frozen(model)
    drop = [] if recipe.adapter_drop is None else [RobustAdapterDrop(recipe.adapter_drop)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(recipe, Path(folder), _KEEPS_NOTHING)
        trainer = make_trainer(
            model,
            run.mixture,
            arguments,
            callbacks=[*drop, clock],
            head_learning_rate=recipe.head_learning_rate,
            task_rates=recipe.task_rates,
            regularizer=recipe.regularizers,
        )
        trainer.train()
    tokens = _tokens_of_updates(run.mixture.schedule)
    # the first update makes what all others use; a run of one update has no other
    first = min(1, len(clock.seconds) - 1)
    timed = clock.seconds[first:]
    longer = 1.0
    if tokens is not None:
        longer = float(tokens.mean() / tokens[first : len(clock.seconds)].mean())
    return Pace(sum(timed) / len(timed) * longer, len(timed))


class _Few(TrainerCallback):
    """Ends a training when enough of its updates are timed."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self._start)
        if len(self.seconds) > UPDATES or sum(self.seconds) > ENOUGH_SECONDS:
            control.should_training_stop = True


def _tokens_of_updates(schedule: Schedule) -> np.ndarray | None:
    """Padded tokens of every update of the first epoch; None where rows are no texts, or nobody knows their lengths."""
    if schedule.lengths is None or schedule.streams:
        return None
    tasks, rows = schedule.index(0)
    texts = max(lengths.reshape(len(lengths), -1).shape[1] for lengths in schedule.lengths)
    widths = np.zeros((len(tasks), texts), np.int64)
    for task, lengths in enumerate(schedule.lengths):
        mine, own = tasks == task, lengths.reshape(len(lengths), -1)
        widths[mine, : own.shape[1]] = own[rows[mine]]
    layout = schedule.layout
    micro = widths.reshape(-1, layout.batch_size, texts)
    padded = micro.max(1).sum(1) * layout.batch_size
    return padded.reshape(schedule.steps, -1).sum(1)


def shallow_models(run: Run) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The recipe's model on a base of one layer and on one of two, both with random weights."""
    from transformers import AutoModel, set_seed

    from .. import MultiTaskModel

    models = []
    for layers in (1, 2):
        config = copy.deepcopy(run.config)
        text = config.get_text_config()
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None):
            text.layer_types = list(text.layer_types[:layers])
        set_seed(run.recipe.seed)
        base = AutoModel.from_config(config)
        models.append(MultiTaskModel.from_base(base, run.tasks, run.recipe.method, train_base=run.recipe.train_base))
    return models[0], models[1]


def grown(values: Sequence[Any], layers: int) -> Any:
    """What ``layers`` layers come to, by what one and two come to."""
    one, two = values
    return one + (layers - 1) * (two - one)
