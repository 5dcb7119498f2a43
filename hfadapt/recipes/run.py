"""A whole run: the adapted model, the baselines, the checks, the report."""

from __future__ import annotations

import copy
import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..adapters.model_source import model_path, read_pretrained
from ..data.tokenizer import load_tokenizer
from ..training import MultiTaskMetrics
from ..training.checks import settle_best_metric
from .build import build_mixture, build_tasks, check_scorable, hold_out, training_arguments
from .config import Baseline, Recipe
from .depths import require_depths, score_depths
from .finished_arms import EndedArms
from .finished_run import ADAPTER_FOLDER
from .from_plugins import callbacks_of_plugins, card_sections
from .output import OutputFolder
from .preflight import estimate_disk, no_checkpoint, require_room, require_services
from .results import ArmResult, RunResult, directions, machine
from .search import require_search, run_search

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainingArguments

    from ..multitask.task import Task
    from ..training import TaskMixture
    from .arm import Trained

__all__ = ["ADAPTER_FOLDER", "Run"]

logger = logging.getLogger(__name__)

TITLES = {"frozen_head": "frozen encoder + heads", "full_finetuning": "full fine-tuning"}
ALONE = ("full_finetuning",)  # whole, a model a task


class Run:
    """Builds a recipe's parts once, and trains them.

    Args:
        recipe: What to do.
        say: Called with a line for each stage.
    """

    def __init__(self, recipe: Recipe, say: Callable[[str], None] = logger.info) -> None:
        from transformers import AutoConfig
        from transformers.utils import logging as transformers_logging

        # Its bars for reading and writing weights would stand between the lines of progress.
        transformers_logging.disable_progress_bar()
        self.recipe = recipe
        self.say = say
        self.output = Path(recipe.output)
        self.folder: OutputFolder | None = None
        self.config = read_pretrained(AutoConfig.from_pretrained, recipe.model, where="model")
        self.base = model_path(recipe.model)
        self.tokenizer = load_tokenizer(self.base)
        self.tasks: list[Task]
        self.tasks, self.held_out = hold_out(build_tasks(recipe), recipe.seed)
        check_scorable(self.tasks)
        self.arguments = training_arguments(recipe, self.output / "checkpoints" / "adapted")
        self._check_baselines()
        require_depths(self)
        require_search(self)
        self._mixture: TaskMixture | None = None
        self._card_sections: tuple[str, ...] = ()

    def _check_baselines(self) -> None:
        """Refuse what a baseline's training would refuse, before the arm that is trained first has trained."""
        for name, arguments in self.baseline_arguments():
            if arguments.metric_for_best_model:
                for tasks in [[task] for task in self.tasks] if name in ALONE else [self.tasks]:
                    settle_best_metric(arguments, MultiTaskMetrics(tasks))

    def baseline_arguments(self) -> list[tuple[Baseline, TrainingArguments]]:
        """Each baseline with its arguments."""
        return [(name, self._baseline_arguments(name, name)) for name in self.recipe.baselines]

    def _baseline_arguments(self, name: Baseline, key: str) -> TrainingArguments:
        own = {field: value for field, value in self.recipe.baselines[name].items() if field != "head_learning_rate"}
        return training_arguments(self.recipe, self.output / "checkpoints" / key, own)

    @property
    def mixture(self) -> TaskMixture:
        """The mixture of all tasks, tokenised on first use."""
        if self._mixture is None:
            self._mixture = build_mixture(
                self.recipe, self.tasks, self.tokenizer, epochs=self.epochs, cache=self._token_cache
            )
        return self._mixture

    @property
    def _token_cache(self) -> Path | None:
        # A dry run writes nothing; the folder exists once prepare_output's manager is entered.
        return self.output / "tokens" if self.output.is_dir() else None

    @property
    def epochs(self) -> int:
        return max(1, math.ceil(self.arguments.num_train_epochs))

    @functools.cached_property
    def scored(self) -> dict[str, list[str]]:
        """Split to the tasks whose final scores are of it.

        Raises:
            DataError: a task has labelled rows in neither the recipe's split nor validation.
        """
        from .arm import by_split

        return by_split(self.mixture, self.recipe.score_split)

    @property
    def stand_ins(self) -> list[str]:
        """A line for each task that is scored on other rows than the recipe asks for."""
        from .arm import stand_ins

        return stand_ins(self.scored, self.recipe.score_split, self.held_out)

    def prepare_output(
        self, *, overwrite: bool = False, resume: bool = False, recipe_file: Path | None = None
    ) -> OutputFolder:
        """Check the output folder; the context manager that comes back makes it.

        Args:
            overwrite: Put this run in place of the one that is there, when it has ended.
            resume: Go on with the one that was cut off.
            recipe_file: Is not to be overwritten.

        Raises:
            ConfigError: it holds an earlier run, and neither ``overwrite`` nor ``resume`` was asked for, or what no
                run wrote; or a tracker, the hub or a folder that can be written is not there.
        """
        self.folder = OutputFolder(self.recipe, recipe_file, overwrite=overwrite, resume=resume)
        self.output = self.folder.place
        require_services(self)
        self.arguments = training_arguments(self.recipe, self.output / "checkpoints" / "adapted")
        return self.folder

    def with_recipe(self, recipe: Recipe) -> Run:
        """This run with another recipe on the same tasks, and with a mixture of its own."""
        other = copy.copy(self)
        other.recipe, other._mixture = recipe, None
        return other

    def build_model(
        self, *, adapted: bool = True, train_base: bool | None = None, tasks: Any = None
    ) -> PreTrainedModel:
        """A fresh model on the base.

        Args:
            adapted: With the recipe's method, or heads alone.
            train_base: In place of the recipe's.
            tasks: In place of the recipe's.
        """
        from transformers import set_seed

        from .. import MultiTaskModel

        set_seed(self.recipe.seed)
        return MultiTaskModel.from_pretrained(
            self.base,
            tasks=tasks or self.tasks,
            method=self.recipe.method if adapted else None,
            train_base=self.recipe.train_base if train_base is None else train_base,
        )

    def train(self, *, resume: bool = False, fast: bool = False) -> RunResult:
        """Train the adapted model and the baselines, check them, save everything but the report.

        Each arm's result is kept when it ends: ``resume`` trains none of them again.
        """
        from ..training import last_checkpoint, macro_of

        start = time.perf_counter()
        scored = self.scored
        for line in self.stand_ins:
            self.say(line)
        resume_adapted = resume
        if (found := run_search(self, resume=resume)) is not None:
            self.recipe = found.recipe
            # of its own: more trials may find another best, which goes on from no checkpoint of this one
            checkpoints = self.output / "checkpoints" / f"adapted-{found.key}"
            self.arguments = training_arguments(self.recipe, checkpoints)
            resume_adapted = resume and last_checkpoint(str(checkpoints)) is not None
        ended = EndedArms(self.recipe, self.output, resume=resume)
        adapted, proof, depths = self._adapted_arm(ended, resume=resume_adapted)
        arms = [adapted, *(self.train_baseline(name, ended) for name in self.recipe.baselines)]
        result = RunResult(
            model=self.recipe.model,
            base_parameters=self.base_parameters,
            tasks={task.name: task.metrics[0] for task in self.tasks},
            arms=tuple(arms),
            sampling=self.mixture.preview().to_dict(),
            proof=proof,
            seconds=time.perf_counter() - start,
            machine=machine(),
            recipe=self.recipe.source,
            overrides=self.recipe.overrides,
            resolved=self.recipe.resolved,
            working_folder=str(Path.cwd()),
            fast=fast,
            split=self.recipe.score_split,
            splits={task: split for split, tasks in scored.items() for task in tasks},
            held_out=self.held_out,
            directions=directions(self.tasks),
            macro=dataclasses.asdict(macro_of(self.tasks)),
            untrained=self.mixture.untrained(adapted.steps),
            depths=depths,
            search=found.record if found is not None else {},
        )
        result.write(self.output)
        return result

    def _adapted_arm(self, ended: EndedArms, *, resume: bool) -> tuple[ArmResult, dict[str, Any], dict[str, Any]]:
        """The adapted model's result, what was checked on the model, and its scores by dropped layers."""
        kept = ended.find("adapted") if (self.output / ADAPTER_FOLDER).is_dir() else None
        if kept is not None:
            self.say(f"{kept[0].title}: trained before")
            self._card_sections = tuple(kept[1]["card_sections"])
            return kept[0], kept[1]["proof"], kept[1].get("depths", {})
        trained = self.train_adapted(resume=resume)
        proof = self._save_and_check(trained.model)
        beside = {"proof": proof, "card_sections": self._card_sections}
        beside["depths"] = score_depths(self, trained.model, trained.result)
        return ended.keep("adapted", trained.result, **beside), proof, beside["depths"]

    def train_adapted(self, *, resume: bool = False) -> Trained:
        """Train the tasks together with the recipe's method; the model comes back with its base unpacked.

        Raises:
            ConfigError: ``resume`` was asked for, and there is no checkpoint.
        """
        from ..inference import unpack
        from .arm import pack_frozen, train_arm

        checkpoint = self._checkpoint() if resume else None
        model = self.build_model()
        require_room(self, estimate_disk(self, model))
        method = " + ".join(config.method for config in self.recipe.method)
        pack_frozen(model)
        self.say(f"Training {len(self.tasks)} tasks together with {method}")
        trained = train_arm(
            "adapted",
            f"{method} + heads",
            model,
            self.mixture,
            self.arguments,
            base_parameters=self.base_parameters,
            head_learning_rate=self.recipe.head_learning_rate,
            task_rates=self.recipe.task_rates,
            regularizer=self.recipe.regularizers,
            split=self.recipe.score_split,
            callbacks=self.callbacks_for(model),
            tokenizer=self.tokenizer,
            resume=checkpoint,
        )
        # Saved and compared on the base as it came: packed products sum in another order.
        unpack(model)
        return trained

    def _save_and_check(self, model: PreTrainedModel) -> dict[str, Any]:
        from .. import MultiTaskModel
        from .checks import check_mixed_batch, check_reload

        folder = self.output / ADAPTER_FOLDER
        model.save_pretrained(folder)
        self._card_sections = card_sections(model)
        self.tokenizer.save_pretrained(folder)
        self.say(f"Saved {folder}; loading it into a fresh base")
        found = check_reload(model, folder, MultiTaskModel.from_pretrained, self.mixture)
        return {
            # for readers of the report: by then a folder that overwrites another has its name
            "reload": {**found, "folder": str((self.folder.named if self.folder else self.output) / ADAPTER_FOLDER)},
            "mixed_batch": check_mixed_batch(model, self.mixture),
        }

    def _checkpoint(self) -> str:
        from ..training import last_checkpoint

        folder = str(self.arguments.output_dir)
        found = last_checkpoint(folder)
        if found is None:
            raise no_checkpoint(folder)
        return found

    def callbacks_for(self, model: PreTrainedModel) -> list[Any]:
        """What plugins and the recipe add to the training of the adapted model."""
        from ..training import RobustAdapterDrop, TaskEarlyStopping

        callbacks = callbacks_of_plugins(self.arguments, model, self.tasks)
        if self.recipe.adapter_drop is not None:
            callbacks.append(RobustAdapterDrop(self.recipe.adapter_drop))
        if (stopping := self.recipe.early_stopping) is not None:
            callbacks.append(
                TaskEarlyStopping(
                    self.mixture, stopping.patience, threshold=stopping.threshold, metrics=stopping.metrics
                )
            )
        return callbacks

    @functools.cached_property
    def base_parameters(self) -> int:
        """Parameters of the base alone."""
        import torch
        from transformers import AutoModel

        with torch.device("meta"):
            base = AutoModel.from_config(self.config)
        return sum(parameter.numel() for parameter in base.parameters())

    def train_baseline(self, name: Baseline, ended: EndedArms | None = None) -> ArmResult:
        """Train one baseline with the steps that the adapted run gives each task.

        Full fine-tuning is a model a task, and each of them ends on its own.

        Args:
            name: Of the baseline.
            ended: Where results are kept, and looked for before anything is trained; nowhere by default.
        """
        from .arm import merge

        self.say(f"Baseline: {TITLES[name]}")
        if name == "frozen_head":
            return self._train_or_find(name, self.tasks, None, ended)
        parts = {}
        sampling = self.mixture.preview().to_dict()
        for index, task in enumerate(self.tasks):
            rows = sum(epoch[index] for epoch in sampling["rows"])
            steps = max(1, round(rows / sampling["rows_per_step"] / sampling["epochs"]))
            parts[task.name] = self._train_or_find(name, [task], steps, ended)
        return merge(name, TITLES[name], parts, self.tasks)

    def _train_or_find(
        self, name: Baseline, tasks: list[Task], epoch_steps: int | None, ended: EndedArms | None
    ) -> ArmResult:
        """Train one model of a baseline, whole where it is for one task alone, unless that was done before."""
        from .arm import pack_frozen, train_arm

        alone = name in ALONE
        key, title = (f"{name}-{tasks[0].name}", f"{TITLES[name]}: {tasks[0].name}") if alone else (name, TITLES[name])
        changes = dict(self.recipe.baselines[name])
        kept = ended.find(key, changes) if ended is not None else None
        if kept is not None:
            self.say(f"{title}: trained before")
            return kept[0]
        model = self.build_model(adapted=False, train_base=alone, tasks=tasks)
        pack_frozen(model)
        result = train_arm(
            name,
            title,
            model,
            build_mixture(self.recipe, tasks, self.tokenizer, epoch_steps=epoch_steps, cache=self._token_cache),
            self._baseline_arguments(name, key),
            base_parameters=self.base_parameters,
            head_learning_rate=changes.get("head_learning_rate", self.recipe.head_learning_rate),
            split=self.recipe.score_split,
        ).result
        return result if ended is None else ended.keep(key, result, changes)

    def finish(self, result: RunResult) -> list[Path]:
        """Write tables, plots, ``report.html`` and the adapter's model card; returns the files.

        A run that overwrites another takes its place here, when its checks have passed.

        Raises:
            CheckpointError: the saved adapter is not the trained one; everything is written before.
            RoutingError: mixed batches are answered otherwise than each task alone.
        """
        from ..inference.predict import takes_pairs
        from .checks import require_proof
        from .report import write_report

        pairs = [task.name for task in self.tasks if takes_pairs(task)]
        files = write_report(result, self.output, self.output / ADAPTER_FOLDER, self._card_sections, pairs)
        reload = {**result.proof["reload"], "folder": str(self.output / ADAPTER_FOLDER)}
        require_proof({**result.proof, "reload": reload})
        if self.folder is not None:
            self.folder.end()
            files = [self.folder.place / file.relative_to(self.output) for file in files]
            self.output = self.folder.place
        return files
