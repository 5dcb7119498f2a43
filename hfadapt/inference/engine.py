"""The engine: many tasks on one packed base, served from several threads while tasks come and go."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..adapters.saved_tensors import require_finite
from ..errors import CheckpointError, ConfigError, did_you_mean
from ..errors.limits import require_number
from ..multitask.beside import forget_tasks, model_beside, take_over
from ..runtime.packing import pack_served, packed_as
from .answers import readable
from .changes import Change, Served, served_tasks
from .every_task import EveryTaskAtOnce
from .folders import Source, add_folder, model_of, named_folders, source_of, tasks_in
from .given import require_names
from .isolated import Changed, Planned
from .predict import MAX_CHARACTERS, Prediction, Request, tokenizer_of
from .refused import name_taken, no_such_task, nobody_reads, tasks_keep_changing, which_task
from .same_base import require_same_base
from .writing import writes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..multitask.model import MultiTaskModel
    from ..multitask.task import Task

__all__ = ["Engine"]

logger = logging.getLogger(__name__)

ISOLATION = ("bits", "rounding")
# A request is read anew where its task was replaced while it waited; nobody replaces a task so often.
_ATTEMPTS = 8


class Engine(EveryTaskAtOnce):
    """Many adapted tasks on one base, packed for this machine.

    It may be called from several threads at once. Rows of any tasks share a forward. With ``isolation="bits"`` the
    answer for a text has the same bits whatever else is asked at the time, of whichever task: a row is padded to a
    length that follows from its own, and a shape of batch is used once it has been shown here, by the first rows that
    come in it, that each of its places gives a row the bits that it has alone.

    Args:
        model: A ``MultiTaskModel``, whose weights do not train here; it is changed in place.
        tokenizer: Of its base.
        dtype: What the frozen linears multiply with; see ``hfadapt.pack``.
        token_budget: Padded tokens a forward.
        isolation: ``"bits"``; or ``"rounding"``, which proves nothing and lets a row's last bits hang on its
            neighbours.
        max_characters: The longest text that is read at all; what fits no model is cut by the tokenizer.
        max_new_tokens: How many tokens a base that writes may write.

    Raises:
        ConfigError: an argument holds a value that is not allowed.
        CheckpointError: weights of the model are not finite numbers.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        dtype: str = "float32",
        token_budget: int = 4096,
        isolation: str = "bits",
        max_characters: int = MAX_CHARACTERS,
        max_new_tokens: int = 64,
    ) -> None:
        where = "Engine"
        require_number("token_budget", token_budget, where=where, whole=True, least=1)
        require_number("max_characters", max_characters, where=where, whole=True, least=1)
        require_number("max_new_tokens", max_new_tokens, where=where, whole=True, least=1)
        if isolation not in ISOLATION:
            allowed, near = ", ".join(ISOLATION), did_you_mean(str(isolation), ISOLATION)
            raise ConfigError("bad isolation", where=where, got=repr(isolation), allowed=allowed, try_=near)
        require_finite({k: p for k, p in model.named_parameters() if p.is_floating_point()}, "the engine's model")
        super().__init__(model, tokenizer, max_characters=max_characters, max_new_tokens=max_new_tokens)
        self.dtype = dtype
        self.token_budget = token_budget
        self._inner: dict[str, str] = {}
        self._sources: dict[str, Source] = {}
        self._loading: dict[str, Any] = {}
        self._made = 0
        self._compares_bases = True
        self._changes = threading.Lock()
        self._start(isolation)
        self._take_up(model, model.tasks)
        self._serve(self._tasks_of(model, {task.name: task.name for task in model.tasks}))

    @classmethod
    def from_pretrained(
        cls,
        folders: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Mapping[str, str | os.PathLike[str]],
        *,
        base: PreTrainedModel | str | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        weights: str = "safetensors",
        **options: Any,
    ) -> Engine:
        """Load adapted tasks onto their base.

        Args:
            folders: A folder, or several of one base: of a ``MultiTaskModel``, of ``hfadapt.save``, of peft or of
                AdapterHub. A mapping says what the only task of each is called here.
            base: The base, where no folder names it; its name or folder will do for a folder of tasks.
            tokenizer: Of the base; by default the first folder's, or the base's own.
            weights: ``"bin"`` opens pickle files of other libraries too; see ``hfadapt.load``.
            options: Arguments of the engine itself.

        Raises:
            CheckpointError: a folder is damaged, or of another base.
            TaskError: a name stands twice, or an adapter has no head whose answer could be read.
        """
        given = named_folders(folders)
        (name, first), rest = given[0], given[1:]
        loading = {} if weights == "safetensors" else {"weights": weights}
        source = source_of(first)
        model = model_of(first, base, loading)
        engine = cls(model, tokenizer or tokenizer_of(first, model), **options)
        if name is not None:
            engine._call_only(name, first)
        engine._loading = loading
        engine._compares_bases = base is None  # what the caller names is what the caller wants
        engine._sources = dict.fromkeys(engine._inner, source)
        for called, folder in rest:
            engine.add(folder, called=called)
        return engine

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks, under the names that they have here."""
        return self._named

    def predict(  # type: ignore[override]  # how many rows share a forward follows from the token budget
        self,
        texts: str | Sequence[str],
        tasks: str | Sequence[str],
        pairs: str | Sequence[str | None] | None = None,
    ) -> list[Prediction]:
        """One prediction a text, in order; see ``Predictor.predict``.

        Raises:
            DataError: see ``Predictor.predict``. The engine goes on.
        """
        return self._answered(lambda: self._requests(texts, tasks, pairs), self._planned)

    def predict_all(
        self, text: str, tasks: str | Sequence[str] | None = None, pair: str | None = None
    ) -> list[Prediction]:
        """The answers of several tasks (all by default) for one text; see ``Predictor.predict_all``.

        What lies below the lowest delta of a task runs once for all of those that begin there or above it. The answers
        have the bits that each task alone gives.

        Raises:
            DataError: as of ``Predictor.predict_all``. The engine goes on.
        """
        return self._answered(lambda: self._requests(*self._for_all(text, tasks, pair)), self._planned_at_once)

    def _answered(self, requests_of: Callable[[], list[Request]], planned: Planned) -> list[Prediction]:
        for _ in range(_ATTEMPTS):
            with self._lock.shared():
                known = self.model.tasks
                requests = requests_of()
            with contextlib.suppress(Changed):
                return self._answers(requests, self._outputs(requests, functools.partial(planned, known)))
        raise tasks_keep_changing(_ATTEMPTS)

    def check(
        self,
        texts: str | Sequence[str],
        tasks: str | Sequence[str],
        pairs: str | Sequence[str | None] | None = None,
    ) -> None:
        """Raise what `predict` would raise for these texts, without running any.

        Raises:
            DataError: see ``Predictor.predict``.
        """
        with self._lock.shared():
            self._requests(texts, tasks, pairs)

    def add(
        self,
        folder: str | os.PathLike[str],
        name: str | None = None,
        *,
        called: str | None = None,
        task: Task | None = None,
    ) -> list[str]:
        """Add the tasks of a folder while others are served; their answers keep their bits.

        Args:
            folder: On the engine's base; see `from_pretrained`.
            name: Which task of a folder with several; by default all.
            called: What to call it here.
            task: Its head, for an adapter without one; see ``MultiTaskModel.add_task``.

        Returns:
            The names of what was added.

        Raises:
            CheckpointError: the folder is damaged, holds NaN, is of another base, or is written while it is read; the
                engine is as it was.
            TaskError: a name is taken, or the folder has no head that answers.
        """
        require_names("Engine.add", name=name, called=called)
        with self._changes:
            source = source_of(folder)
            for one in (called, name if called is None else None):
                if one is not None and one in self._inner:
                    raise name_taken(one, folder, self._inner)
            with self._changed() as change:
                added = self._added(change.model, source, name, called, task)
                change.inner |= {one: one for one in added}
                change.sources |= dict.fromkeys(added, source)
            return added

    def replace(
        self, task: str, folder: str | os.PathLike[str], name: str | None = None, *, head: Task | None = None
    ) -> None:
        """Serve a task from another folder, or from a new version of its own, from one batch to the next.

        Args:
            task: Its name here.
            folder: On the engine's base.
            name: Which task of a folder with several; by default the one of that name, or the only one.
            head: As ``task`` of `add`.

        Raises:
            CheckpointError: as of `add`; the task is served as before.
            TaskError: as of `add`.
            DataError: there is no such task.
        """
        require_names("Engine.replace", name=name)
        with self._changes:
            old, source = self._of(task), source_of(folder)
            self._made += 1
            inner = f"{task}_{self._made}"
            while inner in self._inner.values():
                inner += "_"
            wanted = task if name is None and task in tasks_in(source.folder) else name
            with self._changed() as change:
                (change.inner[task],) = self._added(change.model, source, wanted, inner, head)
                change.model.remove_task(old)
                change.sources[task] = source

    def remove(self, task: str) -> None:
        """Take a task off; texts that wait for it get the error of an unknown task.

        Raises:
            DataError: there is no such task.
            TaskError: it is the last one, or others go through its adapter.
        """
        with self._changes:
            inner = self._of(task)
            with self._changed() as change:
                change.model.remove_task(inner)
                del change.inner[task]
                change.sources.pop(task, None)

    def changed(self) -> tuple[str, ...]:
        """Return the tasks whose folders no longer hold what is served: the engine serves what it has read.

        `replace` takes up what is there now.
        """
        sources = dict(self._sources)
        holds = {source: source.holds() for source in {*sources.values()}}
        return tuple(name for name, source in sources.items() if not holds[source])

    def shapes(self) -> list[dict[str, Any]]:
        """Return the shapes of batch that were tried, and whether each place of them keeps a row's bits."""
        return [{**one, "writes": bool(text)} for text, proof in enumerate(self._proofs) for one in proof.shown()]

    def _of(self, task: str) -> str:
        if not isinstance(task, str) or task not in self._inner:
            raise no_such_task(task, self._inner, "Engine")
        return self._inner[task]

    @contextlib.contextmanager
    def _changed(self) -> Iterator[Change]:
        """Change the tasks on a copy of the model beside the rows that are served; of the changes each has its turn.

        What takes time happens beside them: reading and checking a folder, building its adapter. They wait while what
        is ready is put in the place of what was served, and no longer. Where anything fails, nothing has changed.
        """
        change = Change(model_beside(self.model), dict(self._inner), dict(self._sources))
        yield change
        served = self._tasks_of(change.model, change.inner)
        base, heads = self.model.base, self.model.heads
        gone = {*self._inner.values()} - {*change.inner.values()}
        with self._lock.alone():
            take_over(self.model, change.model)
            self._serve(served)
            self._sources = change.sources
        forget_tasks(base, heads, gone)

    def _tasks_of(self, model: MultiTaskModel, inner: dict[str, str]) -> Served:
        return served_tasks(model, inner, self.tokenizer, self._limit)

    def _serve(self, served: Served) -> None:
        self._inner, self._named, self._collates = served.inner, served.named, served.collates
        self._known_reaches = {}

    def _call_only(self, name: str, folder: Path) -> None:
        names = [task.name for task in self.model.tasks]
        if name in names:
            return
        if len(names) > 1:
            raise which_task(name, folder, names)
        self._serve(self._tasks_of(self.model, {name: names[0]}))

    def _added(
        self, model: MultiTaskModel, source: Source, name: str | None, called: str | None, task: Task | None
    ) -> list[str]:
        """Add a folder's tasks to a model, ready to be served, and return their names in it.

        Raises:
            CheckpointError: as of `add`; or somebody wrote the folder while it was read.
        """
        added = add_folder(model, source.folder, name, called, task, self._loading)
        if not source.holds():
            raise CheckpointError(
                "the folder changed while it was read",
                where=str(source.folder),
                got="files that were written meanwhile",
                allowed="a folder that is whole",
                try_="write a new folder beside it, and rename that one when it is whole",
            )
        if self._compares_bases:
            require_same_base(source.folder, model.base)
        self._take_up(model, added)
        return [one.name for one in added]

    def _take_up(self, model: MultiTaskModel, tasks: Sequence[Task]) -> None:
        """Freeze and pack what tasks brought along.

        Raises:
            TaskError: nobody can read the answer of one.
        """
        for task in tasks:
            if readable(task, model) is None and not writes(task, model):
                got = f"head {task.head.kind!r} on {type(model.base).__name__}"
                raise nobody_reads(task.name, got)
        model.requires_grad_(False).eval()
        pack_served(model, model.base, self.dtype)
        self.dtype = packed_as(model) or self.dtype  # "fastest" is measured once
