"""What a run found, as data: written to ``results.json``, read by tables, plots and the report."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..adapters.atomic import write_json
from ..errors import DataError
from ..errors.version import __version__
from ..multitask.metrics import find_metric, metric_names

if TYPE_CHECKING:
    from ..multitask.task import Task

__all__ = ["FORMAT_VERSION", "RESULTS_FILE", "ArmResult", "RunResult", "directions", "machine"]

RESULTS_FILE = "results.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class ArmResult:
    """One way to solve the tasks: the adapted model, or a baseline.

    Args:
        name: ``adapted``, ``frozen_head`` or ``full_finetuning``.
        title: For tables.
        scores: Task to metric name to value, on the run's ``split``.
        macro: Mean of the tasks' first metrics, of those that can be averaged.
        parameters_total: Parameters needed to serve all tasks, the base included.
        parameters_task: Parameters that belong to each task alone, on average, heads included.
        trained: Parameters that were trained.
        steps: Optimizer steps, all tasks together.
        seconds: Of training, evaluations during training left out.
        tokens: Real tokens trained on, padding left out.
        history: Trainer's log: one dict a log line, with ``epoch`` and ``step``; for separate models with ``task``.
    """

    name: str
    title: str
    scores: Mapping[str, Mapping[str, float]]
    macro: float
    parameters_total: int
    parameters_task: int
    trained: int
    steps: int
    seconds: float
    tokens: int
    history: tuple[Mapping[str, Any], ...] = ()

    @property
    def tokens_per_second(self) -> float:
        """Real tokens trained on a second."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def curve(self, task: str, metric: str) -> tuple[list[float], list[float]]:
        """Epochs, and a task's metric on its validation split after each."""
        key = f"eval_{task}_{metric}"
        lines = [line for line in self.history if key in line and line.get("task", task) == task]
        return [float(line["epoch"]) for line in lines], [float(line[key]) for line in lines]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ArmResult:
        """The inverse of ``dataclasses.asdict``, after a way through JSON."""
        return cls(**{**values, "history": tuple(values["history"])})


@dataclass(frozen=True)
class RunResult:
    """A whole run.

    Args:
        model: The base, as the recipe names it.
        base_parameters: Parameters of the base.
        tasks: Task to the name of its first metric.
        arms: The adapted model first.
        sampling: The schedule, as ``TaskMixture.preview().to_dict()`` gives it.
        proof: What was checked after training; see ``hfadapt.recipes.checks``.
        seconds: Of the whole run; of one that was cut off, since its last start.
        machine: Device, threads and versions.
        recipe: The recipe's text.
        overrides: What ``--fast`` and the command line changed in it.
        resolved: The recipe with these changes made, as YAML; results of older versions lack it.
        working_folder: Where the run was started, from which relative paths in the recipe count.
        fast: Whether the recipe's ``fast`` overrides were in force.
        split: Split of the scores; a task without labelled rows there is scored on its validation split.
        splits: Task to the split that it was scored on.
        held_out: Task without a validation split to the rows of its training split that took its place, and to how
            many that had.
        directions: Metric to whether more of it is better.
        untrained: Tasks that were never drawn.
        depths: Number of lowest layers without deltas, as a text, to the adapted model's ``scores`` and ``macro``.
        search: What was searched before the run: ``metric``, ``direction``, ``trials`` (``values`` and ``score`` of
            each), the number of the ``best`` and its ``values``.
        macro: What the macro average holds, as ``hfadapt.training.Macro`` has it.
    """

    model: str
    base_parameters: int
    tasks: Mapping[str, str]
    arms: tuple[ArmResult, ...]
    sampling: Mapping[str, Any]
    proof: Mapping[str, Any]
    seconds: float
    machine: Mapping[str, Any] = field(default_factory=dict)
    recipe: str = ""
    overrides: Sequence[str] = ()
    resolved: str = ""
    working_folder: str = ""
    fast: bool = False
    split: str = "test"
    splits: Mapping[str, str] = field(default_factory=dict)
    held_out: Mapping[str, Sequence[int]] = field(default_factory=dict)
    directions: Mapping[str, bool] = field(default_factory=dict)
    macro: Mapping[str, Any] = field(default_factory=dict)
    untrained: Sequence[str] = ()
    depths: Mapping[str, Any] = field(default_factory=dict)
    search: Mapping[str, Any] = field(default_factory=dict)

    def greater_is_better(self, metric: str) -> bool:
        """Whether more of a metric, or of ``"macro"``, is better; results of older versions do not say."""
        if metric == "macro":
            return bool(self.macro.get("greater_is_better", True))
        known = self.directions.get(metric)
        return (metric not in metric_names() or find_metric(metric).greater_is_better) if known is None else known

    def write(self, folder: Path | str) -> Path:
        """Write ``results.json`` into a folder, whole or not at all."""
        path = Path(folder) / RESULTS_FILE
        write_json(path, {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)})
        return path

    @classmethod
    def read(cls, folder: Path | str) -> RunResult:
        """Read what ``write`` wrote.

        Raises:
            DataError: no run was finished there, or by another version.
        """
        path = Path(folder) / RESULTS_FILE
        if not path.is_file():
            raise DataError(
                "no finished run",
                where=str(folder),
                got=f"no {RESULTS_FILE}",
                allowed="a folder that a run filled to its end",
                try_="hfadapt train RECIPE --output FOLDER",
            )
        values = json.loads(path.read_text("utf-8"))
        found = values.pop("format_version", None)
        if found != FORMAT_VERSION:
            raise DataError(
                "unknown format version",
                where=str(path),
                got=found,
                allowed=FORMAT_VERSION,
                try_="train again, or read it with the release of hfadapt that wrote it",
            )
        arms = tuple(ArmResult.from_dict(arm) for arm in values.pop("arms"))
        return cls(arms=arms, **values)


def directions(tasks: Sequence[Task]) -> dict[str, bool]:
    """Each metric of the tasks, and whether more of it is better."""
    return {metric: find_metric(metric).greater_is_better for task in tasks for metric in task.metrics}


def machine() -> dict[str, Any]:
    """Device, threads and versions: what every number must carry."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    found = {"hfadapt": __version__}
    for package in ("torch", "transformers", "datasets"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return {
        "device": device,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "dtype": "float32",
        "python": platform.python_version(),
        **found,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
