"""Tasks that come and go while a ``MultiTaskModel`` lives: the ids of the others stay what they are."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..adapters import files as adapter_files
from ..adapters.detach import detach
from ..adapters.folder_format import ReadOptions
from ..adapters.foreign import find_format, load_foreign
from ..adapters.load import load_adapters, put_back
from ..adapters.renaming import renamed
from ..adapters.restore import all_or_nothing, rehearsal
from ..adapters.saved_tensors import check_tensors, fill
from ..errors import RoutingError, TaskError
from ..errors.arguments import require_folder
from ..routing.choice import chosen
from ..routing.composition import adapter_names
from ..routing.task_ids import TaskIds, task_number, task_rows
from ..runtime.attachment import attachment, find_attachment
from ..runtime.parts import tensors_in
from .fit_heads import hidden_size, settle_pooling
from .heads import OwnHead
from .save import KEY
from .task import Task, check_tasks

__all__ = ["LiveTasks"]


class LiveTasks:
    """What `MultiTaskModel` is beside a ``PreTrainedModel``: tasks with ids, which can be added and removed."""

    base: PreTrainedModel
    heads: nn.ModuleDict
    routes: dict[str, str]
    config: Any
    tasks: tuple[Task, ...]
    ids: tuple[int, ...]
    """The number of each task in ``task_ids``: its place, until a task before it is removed."""

    def add_task(
        self,
        folder: str | os.PathLike[str],
        name: str | None = None,
        *,
        called: str | None = None,
        task: Task | None = None,
        format: str | None = None,
        weights: str = "safetensors",
    ) -> Task:
        """Add a task from a folder, behind the others: its adapter, and its head where the folder has one.

        Args:
            folder: That a ``MultiTaskModel`` on the same base saved; or an adapter's, hfadapt's or another library's.
            name: Which task of a folder with several; what to call the adapter of a folder without tasks.
            called: What to call it here, where it is called otherwise in the folder.
            task: Its head and metrics, for a folder of an adapter; its head starts anew. On a model whose tasks use the
                head of their base (``OwnHead``) it may be left out: the adapter then has its own copy of that head,
                with the folder's weights.
            format: See ``hfadapt.load``.
            weights: See ``hfadapt.load``.

        Returns:
            The task.

        Raises:
            CheckpointError: the folder is damaged or of another base; the model is as it was.
            TaskError: the name is taken or none of the folder's, or the folder has no head for this model.
        """
        path = require_folder(folder, where="MultiTaskModel.add_task")
        found = find_format(path, format)
        with self._kept():
            if found is None and KEY in adapter_files.read_config(path):
                return self._from_tasks(path, name, called, task)
            return self._from_adapter(path, called or name, task, found, ReadOptions(called or name, weights == "bin"))

    def remove_task(self, name: str) -> None:
        """Take a task off, its adapter and its head too. The ids of the others stay, and its own is not given again
        while a task behind it is there; a folder that is saved counts its tasks from 0.

        Raises:
            RoutingError: there is no such task.
            TaskError: it is the last one, or rows of another task go through its adapter.
        """
        names = [task.name for task in self.tasks]
        place = task_number(name, names)
        if len(names) == 1:
            raise TaskError(
                "a model has at least one task",
                where="MultiTaskModel.remove_task",
                got=f"remove_task({name!r})",
                allowed="a task beside others",
                try_="add_task(folder) first, or a model of its own",
            )
        state = find_attachment(self.base)
        for other, route in self.routes.items():
            node = route if state is None else state.compositions.get(route, route)
            if other != names[place] and names[place] in [str(one) for one in adapter_names(node)]:
                raise TaskError(
                    f"rows of the task {other!r} go through the adapter of {name!r}",
                    where="MultiTaskModel.remove_task",
                    got=repr(node),
                    allowed="a task whose adapter only its own rows use",
                    try_=f"model.use({other!r}, None) first",
                )
        self.routes.pop(names[place], None)
        if state is not None and names[place] in state.names:
            if len(state.names) == 1:
                raise TaskError(
                    "the model's only adapter",
                    where="MultiTaskModel.remove_task",
                    got=name,
                    allowed="an adapter beside others",
                    try_="hfadapt.detach(model.base)",
                )
            detach(self.base, names[place])
        if names[place] in self.heads:
            del self.heads[names[place]]
        self._set_tasks(
            [task for task in self.tasks if task.name != names[place]], [i for i in self.ids if i != self.ids[place]]
        )

    def tasks_of(self, task_ids: Any, size: int, device: torch.device) -> TaskIds:
        """Return the task of each row; without ``task_ids`` that of the active adapter, or the only one."""
        attached = find_attachment(self.base)
        if task_ids is None and attached is not None:
            task_ids = chosen(attached).shown
        if task_ids is None and len(self.tasks) == 1:
            task_ids = self.tasks[0].name
        return self.tasks_of_ids(task_ids, size, device)

    def tasks_of_ids(self, task_ids: Any, size: int, device: torch.device) -> TaskIds:
        """Return the place of each row's task among ``tasks``, of ids that may have gaps.

        Raises:
            RoutingError: see `task_rows`; or an id is that of a task that was removed.
        """
        names = [task.name for task in self.tasks]
        if self.ids == tuple(range(len(names))):
            return task_rows(task_ids, names, size, device)
        padded = [names[self.ids.index(i)] if i in self.ids else "" for i in range(self.ids[-1] + 1)]
        rows = task_rows(task_ids, padded, size, device)
        gone = [i for i in ((rows.uniform,) if rows.uniform is not None else rows.listed or ()) if i not in self.ids]
        if gone:
            allowed = ", ".join(f"{i} ({name})" for i, name in zip(self.ids, names, strict=True))
            raise RoutingError(
                "the task of this id was removed",
                where="task_ids",
                got=gone[0],
                allowed=allowed,
                try_="names, which stay what they are",
            )
        return rows.through([self.ids.index(i) if i in self.ids else -1 for i in range(self.ids[-1] + 1)])

    def _adapters_of(self, rows: TaskIds) -> TaskIds:
        """Return the adapter or composition of each row, as the base's slots count them."""
        routable = attachment(self.base).routable
        place = {name: number for number, name in enumerate(routable)}
        return rows.through([place[self.routes.get(task.name, task.name)] for task in self.tasks])

    def ids_of(self, places: Tensor) -> Tensor:
        """Return the ids of tasks given by their places ``[B]``."""
        if self.ids == tuple(range(len(self.ids))):
            return places
        return torch.tensor(self.ids, device=places.device)[places]

    def _set_tasks(self, tasks: list[Task], ids: list[int]) -> None:
        self.tasks, self.ids = tuple(tasks), tuple(ids)
        self.config.tasks = [task.to_dict() for task in tasks]

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Keep what trains and what is trained as it was; an adapter that comes freezes its base otherwise."""
        trains = [(tensor, tensor.requires_grad) for tensor in tensors_in(self.base)]
        with all_or_nothing(self.base):
            yield
            for tensor, trained in trains:
                tensor.requires_grad_(trained)

    def _check_new(self, task: Task, folder: Path) -> Task:
        state = find_attachment(self.base)
        taken = [one.name for one in self.tasks] + list(() if state is None else state.routable)
        if task.name in taken:
            raise TaskError(
                f"there is a task or an adapter {task.name!r}",
                where=str(folder),
                got=task.name,
                allowed=f"a name beside {', '.join(map(str, taken))}",
                try_="model.remove_task(name) first",
            )
        check_tasks([*self.tasks, task])
        return task

    def _join(self, task: Task, head: nn.Module | None) -> Task:
        if head is not None:
            parameter = next(self.base.parameters())
            self.heads[task.name] = head.to(parameter.device).train(self.base.training)
        self._set_tasks([*self.tasks, task], [*self.ids, self.ids[-1] + 1])
        return task

    def _from_tasks(self, folder: Path, name: str | None, called: str | None, given: Task | None) -> Task:
        data = adapter_files.read_config(folder)
        tensors = adapter_files.read_tensors(folder, data.get("weights_sha256"))
        with rehearsal(folder):
            tasks = {task.name: task for task in map(Task.from_dict, data[KEY]["tasks"])}
        if given is not None:
            raise TaskError(
                "the folder knows its tasks",
                where=str(folder),
                got="task=...",
                allowed="task=None",
                try_="name=...",
            )
        if (name is None and len(tasks) > 1) or (name is not None and name not in tasks):
            raise TaskError(
                "which task of the folder?",
                where=str(folder),
                got=name,
                allowed=", ".join(tasks),
                try_=f"add_task(folder, {next(iter(tasks))!r})",
            )
        saved = tasks[name or next(iter(tasks))]
        task = self._check_new(saved if called is None else dataclasses.replace(saved, name=called), folder)
        if data[KEY]["routes"].get(saved.name) or data[KEY]["train_base"] or isinstance(task.head, OwnHead):
            what = (
                "a composition" if data[KEY]["routes"].get(saved.name) else "a base that was trained along, or its head"
            )
            raise TaskError(
                f"the task needs {what}, which other tasks would get too",
                where=str(folder),
                got=saved.name,
                allowed="a task whose adapter and head are its own",
                try_="MultiTaskModel.from_pretrained(folder), a model of its own",
            )
        has = find_attachment(self.base) is not None
        if has != bool(data["adapters"]) or (has and saved.name not in data["adapters"]):
            got = ", ".join(data["adapters"]) or "heads alone"
            raise TaskError(
                "a model has an adapter for each of its tasks, or for none",
                where=str(folder),
                got=got,
                allowed=f"{'an adapter' if has else 'a head alone'}, as this model's tasks have",
                try_="MultiTaskModel.from_pretrained(folder), a model of its own",
            )
        described, tensors = renamed(data, tensors, saved.name, task.name)
        own = {key.removeprefix(f"heads.{task.name}."): t for key, t in tensors.items() if _starts(key, task.name)}
        head = task.head.build(hidden_size(self.base), settle_pooling(task, self.base), task.pair)
        assert head is not None  # OwnHead was refused
        targets: dict[str, Any] = {key: [tensor] for key, tensor in head.state_dict(keep_vars=True).items()}
        check_tensors(targets, own, folder)
        if has:
            parts = (f".adapters.{task.name}.", f"hfadapt_shared.{task.name}.", f".copies.{task.name}.")
            mine = {key: t for key, t in tensors.items() if any(part in f".{key}" for part in parts)}
            rest: Mapping[str, Any] = {
                **described,
                "adapters": {task.name: described["adapters"][task.name]},
                "own_modules": {},
                "fusions": [],
                "routers": [],
                "compositions": {},
                "active": None,
            }
            put_back(folder, rest, mine, self.base, whole=data)
        fill(targets, own)
        return self._join(task, head)

    def _from_adapter(
        self, folder: Path, name: str | None, task: Task | None, found: Any, options: ReadOptions
    ) -> Task:
        own = isinstance(self.tasks[0].head, OwnHead)
        if task is None and not own:
            raise TaskError(
                "the folder holds an adapter, and its task needs a head",
                where=str(folder),
                got="no task",
                allowed="task=Task(...) with its head",
                try_="add_task(folder, task=hfadapt.Task(name, hfadapt.Classification(n))); or a model whose tasks use "
                "the head of their base: MultiTaskModel.from_base(base, [Task(name, OwnHead())])",
            )
        before = attachment(self.base).names
        if found is not None:
            as_called = name or (task.name if task is not None else None)
            load_foreign(folder, self.base, found, ReadOptions(as_called, options.pickle))
        else:
            load_adapters(folder, self.base, name=name)
        new = [one for one in attachment(self.base).names if one not in before]
        if len(new) != 1 or (task is not None and task.name != new[0]):
            got, allowed = ", ".join(new), "one adapter, of the task's name"
            raise TaskError(
                "the folder's adapters are not one task's",
                where=str(folder),
                got=got,
                allowed=allowed,
                try_="add_task(folder, name), one adapter after the other",
            )
        made = Task(new[0], OwnHead()) if task is None else task
        names = [one.name for one in self.tasks]
        if made.name in names:
            raise TaskError(
                f"there is a task {made.name!r}",
                where=str(folder),
                got=made.name,
                allowed=f"a name beside {', '.join(names)}",
                try_="add_task(folder, called=...)",
            )
        check_tasks([*self.tasks, made])
        return self._join(made, made.head.build(hidden_size(self.base), settle_pooling(made, self.base), made.pair))


def _starts(key: str, task: str) -> bool:
    return key.startswith(f"heads.{task}.")
