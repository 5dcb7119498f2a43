"""MultiTaskModel: one pretrained base, one adapter and one head a task, as a ``PreTrainedModel``."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..adapters.activate import compose_as
from ..adapters.attach import attach
from ..adapters.folder_config import HFAdaptConfig, MultiTaskOutput
from ..adapters.from_hub import local_folder, of_the_base
from ..adapters.model_source import name_to_save
from ..adapters.resume import require_same_shapes
from ..errors import TaskError
from ..errors.arguments import require_switches
from ..routing.composition import Composition, Node
from ..routing.task_ids import TaskIds, task_number
from ..runtime import loss_terms as penalties
from ..runtime.attachment import attachment, find_attachment
from ..runtime.zero_gradients import take_part
from . import auto
from .fit_heads import hidden_size, require_fresh, settle_pooling
from .generate import WritingTasks
from .heads import HeadFeatures, OwnHead, flatten_logits
from .heads.base import fit_labels
from .heads.run import run_heads
from .inputs import first_input
from .restore import load_base, load_multi_task, no_tasks, train_own_head
from .resume import require_same_tasks
from .save import apply, is_partial, is_saved, save_multi_task
from .task import Task, check_tasks

__all__ = ["HFAdaptConfig", "MultiTaskModel", "MultiTaskOutput"]


class MultiTaskModel(WritingTasks, PreTrainedModel):
    """A stock transformers model with an adapter and a head for each task.

    ``model.base`` is the stock model itself; ``model.heads[name]`` is the head of a task. Use ``from_pretrained`` or
    ``from_base``.

    Args:
        config: Describes the base and the tasks.
        base: The stock model, adapted already where a method is used.
        tasks: In the order of their ids.
    """

    config_class = HFAdaptConfig
    base_model_prefix = "base"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    # the loss is a mean of this batch: without this, Trainer scales gradients by the accumulation steps
    accepts_loss_kwargs = False

    def __init__(self, config: HFAdaptConfig, base: PreTrainedModel, tasks: Sequence[Task]) -> None:
        super().__init__(config)
        self.base = base
        self.tasks = tuple(tasks)
        self.ids = tuple(range(len(self.tasks)))
        attached = find_attachment(base)
        # the wrapper answers for its base: hfadapt.active(model, ...) and set_adapter_drop(model, ...) work on it
        if attached is not None:
            self.__dict__["_hfadapt"] = attached
            attached.inside = True
        first = self.tasks[0].head
        self._own_head = isinstance(first, OwnHead)
        if isinstance(first, OwnHead):
            self._own_kind = first.resolve(type(base).__name__, int(getattr(base.config, "num_labels", 0)))
        self.routes: dict[str, str] = {}
        self.heads = nn.ModuleDict()
        width = hidden_size(base)
        for task in self.tasks:
            head = task.head.build(width, settle_pooling(task, base), task.pair)
            if head is not None:
                self.heads[task.name] = head.to(next(base.parameters()).device)
        self._accepted = frozenset(inspect.signature(base.forward).parameters)
        self.post_init()

    @classmethod
    def from_base(
        cls,
        base: PreTrainedModel,
        tasks: Task | Iterable[Task],
        method: Any = None,
        *,
        train_base: bool = False,
        autocast_adapter_dtype: bool = True,
    ) -> MultiTaskModel:
        """Build a model on a stock model in memory.

        Args:
            base: A transformers model; its head, if it has one, is used by tasks with ``OwnHead`` only.
            tasks: In the order of their ids.
            method: What ``hfadapt.attach`` takes: one adapter a task is attached. ``None`` for heads alone.
            train_base: Train the base along; else it is frozen.
            autocast_adapter_dtype: As of ``hfadapt.attach``; the base's own head is meant too.

        Raises:
            TaskError: a head does not fit the base, or a task name is used twice.
            AttachError: the method does not fit the base, which may be no model at all.
        """
        tasks = check_tasks(tasks)
        require_switches(where="MultiTaskModel", train_base=train_base, autocast_adapter_dtype=autocast_adapter_dtype)
        require_fresh(base)
        own = isinstance(tasks[0].head, OwnHead)
        if method is None:
            base.requires_grad_(train_base)
            if own:
                train_own_head(base, autocast_adapter_dtype and not train_base)
        else:
            # the tasks of one model share the head that its base has
            attach(
                base,
                method,
                names=[task.name for task in tasks],
                freeze_base=not train_base,
                train_head=False,
                autocast_adapter_dtype=autocast_adapter_dtype,
            )
            train_own_head(base, autocast_adapter_dtype and not train_base)
        config = HFAdaptConfig(
            base_model_name_or_path=name_to_save(base),
            tasks=[task.to_dict() for task in tasks],
            base_class=type(base).__name__,
            train_base=train_base,
        )
        return cls(config, base, tasks)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        tasks: Task | Iterable[Task] | None = None,
        method: Any = None,
        train_base: bool = False,
        autocast_adapter_dtype: bool = True,
        base: PreTrainedModel | str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> MultiTaskModel:
        """Build a model on a pretrained base, or load one that was saved.

        Args:
            pretrained_model_name_or_path: Name or folder of a base, or of what ``save_pretrained`` wrote.
            tasks: Needed with a stock model; a saved folder knows its own.
            method: See ``from_base``.
            train_base: See ``from_base``.
            autocast_adapter_dtype: See ``from_base``; a saved folder's adapters keep the dtype they have.
            base: For a saved folder: the base to load it on, or its name, where the recorded one cannot be found.
            kwargs: Passed to the base's ``from_pretrained`` (``dtype``, ``attn_implementation``, ...). ``revision`` and
                ``subfolder`` are those of the name that is given, a base's or a saved folder's; ``token`` serves both.

        Raises:
            CheckpointError: the folder is damaged or belongs to another base, or the base is not to be found.
            TaskError: ``tasks`` is missing, or given for a saved folder.
        """
        if tasks is None and method is None:
            pretrained_model_name_or_path = local_folder(pretrained_model_name_or_path, kwargs)
        if is_saved(pretrained_model_name_or_path):
            if tasks is not None or method is not None:
                raise TaskError(
                    "a saved folder knows its own tasks and method",
                    where=str(pretrained_model_name_or_path),
                    got="tasks= or method=",
                    allowed="the folder alone",
                    try_="from_pretrained(folder) alone, or from_pretrained(base, tasks=..., method=...)",
                )
            return load_multi_task(cls, pretrained_model_name_or_path, base, of_the_base(kwargs))
        if tasks is None:
            raise no_tasks(pretrained_model_name_or_path)
        tasks = check_tasks(tasks)
        own = isinstance(tasks[0].head, OwnHead)
        stock = load_base(str(pretrained_model_name_or_path), own, kwargs)
        return cls.from_base(stock, tasks, method, train_base=train_base, autocast_adapter_dtype=autocast_adapter_dtype)

    def use(self, task: str, choice: Node | None) -> None:
        """Let the rows of a task go through a composition, or another adapter than its own, and then its own head.

        ``model.use("rte", hfadapt.Fuse("mnli", "rte"))`` is AdapterFusion for one task; add its layer first. Saved with
        the model.

        Args:
            task: Its name.
            choice: A composition, the name of an adapter or of a named composition; ``None`` for the task's own
                adapter.

        Raises:
            RoutingError: there is no such task.
            AttachError: the model has no adapters, or none of that name.
            CompositionError: the composition names adapters that are not attached, or cannot be chosen per row.
        """
        task = self.tasks[task_number(task, [one.name for one in self.tasks])].name
        if choice is None:
            self.routes.pop(task, None)
            return
        state = attachment(self.base)
        if isinstance(choice, Composition):
            named = next((k for k, node in state.compositions.items() if node == choice), None)
            others = {route for other, route in self.routes.items() if other != task}
            name = compose_as(self.base, f"{task}_route", choice, others) if named is None else named
        else:
            name = choice
            if name not in state.routable:
                state.require(name)
        self.routes[task] = name

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pair_input_ids: Tensor | None = None,
        pair_attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        input_features: Tensor | None = None,
        task_ids: Tensor | Sequence[str] | Sequence[int] | str | int | None = None,
        labels: Tensor | None = None,
    ) -> MultiTaskOutput:
        """Run the base once (twice for texts encoded separately) and each row's own head.

        Args:
            input_ids: int64 [B, T].
            attention_mask: [B, T].
            token_type_ids: [B, T]; ignored by bases that know none.
            pair_input_ids: Second texts of tasks with ``pair="separate"``, [B, T2].
            pair_attention_mask: [B, T2].
            inputs_embeds: In place of ``input_ids``.
            pixel_values: For vision bases.
            input_features: For speech bases.
            task_ids: Task of each row: int64 [B], names or numbers, or one for all rows; may be left out with one task.
            labels: float32 [B, label width] as ``MultiTaskCollator`` makes them, or the usual shapes for one task.

        Raises:
            RoutingError: several tasks and no ``task_ids``, or an unknown task.
            TaskError: an input is missing or no tensor.
        """
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "inputs_embeds": inputs_embeds,
            "pixel_values": pixel_values,
            "input_features": input_features,
        }
        first = first_input(inputs, labels=labels, pair_input_ids=pair_input_ids)
        rows = self.tasks_of(task_ids, first.shape[0], first.device)
        ids, present = rows.tensor(first.shape[0], first.device), rows.present
        if labels is not None and labels.dim() == 1:
            labels = labels[:, None]
        if self._own_head:
            return self._run_own_head(inputs, rows, ids, labels)
        penalised: dict[str, Any] = {}
        hidden, pooler = self._encode(inputs, rows, ids, penalised)
        mask = attention_mask if attention_mask is not None and attention_mask.shape == hidden.shape[:2] else None
        features = HeadFeatures(hidden, mask, pooler)
        if pair_input_ids is not None:
            pair = {"input_ids": pair_input_ids, "attention_mask": pair_attention_mask}
            second, second_pooler = self._encode(pair, rows, ids, penalised)
            features = HeadFeatures(hidden, mask, pooler, second, pair_attention_mask, second_pooler)
        loss, logits = run_heads(self.tasks, self.heads, features, ids, present, labels)
        if loss is not None and self.training and (penalty := penalties.total(penalised)) is not None:
            loss = loss + penalty
        if loss is not None and present is None and not torch.compiler.is_compiling():
            loss = take_part(loss, self.parameters())
        if labels is None and self.training and (penalised or any(task.loss_weight != 1 for task in self.tasks)):
            penalties.warn_of_other_losses("what loss weights and AdapterFusion add to it", "label_smoothing_factor=0")
        return MultiTaskOutput(loss=loss, logits=logits, task_ids=self.ids_of(ids))

    def logits_of(self, output: MultiTaskOutput, task: str) -> Tensor:
        """Return the logits of one task's rows without padding: [N, C], or [N, T, C] for token heads."""
        index = task_number(task, [t.name for t in self.tasks])
        head, number = self.tasks[index].head, self.ids[index]
        assert output.logits is not None and output.task_ids is not None  # only a caller's own output lacks them
        rows = output.logits[output.task_ids == number]
        if head.per_text:
            return rows[:, : head.num_outputs]
        tokens = rows.shape[1] // head.num_outputs
        return rows[:, : tokens * head.num_outputs].reshape(len(rows), tokens, head.num_outputs)

    def _base_inputs(self, inputs: dict[str, Tensor | None], rows: TaskIds) -> dict[str, Any]:
        given: dict[str, Any] = {k: v for k, v in inputs.items() if v is not None and k in self._accepted}
        if find_attachment(self.base) is not None:
            given["task_ids"] = self._adapters_of(rows)
        if "use_cache" in self._accepted:
            given["use_cache"] = False
        return given

    def _encode(
        self,
        inputs: dict[str, Tensor | None],
        rows: TaskIds,
        ids: Tensor,
        penalised: dict[str, Any],
    ) -> tuple[Tensor, Tensor | None]:
        given = self._base_inputs(inputs, rows)
        if "task_ids" in given:
            given["penalised"] = penalised
        if "decoder_input_ids" in self._accepted:
            start = self.base.config.decoder_start_token_id or 0
            if "input_ids" in given:
                given["decoder_input_ids"] = F.pad(given["input_ids"], (1, 0), value=start)[:, :-1]
            elif "input_features" in given:
                # the decoder reads the whole sound from its first token on
                given["decoder_input_ids"] = ids.new_full((len(ids), 1), start)
        output = self.base(**given, return_dict=True)
        return output[0], getattr(output, "pooler_output", None)

    def _run_own_head(
        self, inputs: dict[str, Tensor | None], rows: TaskIds, ids: Tensor, labels: Tensor | None
    ) -> MultiTaskOutput:
        given, present = self._base_inputs(inputs, rows), rows.present
        if labels is not None:
            native = self._own_kind.native_labels(labels)
            # the label matrix may be narrower or wider than the tokens; a decoder's labels have a length of their own
            align = self._own_kind.label_place == "token" and not self.base.config.is_encoder_decoder
            given["labels"] = fit_labels(native, given["input_ids"].shape[1]) if align else native
        output = self.base(**given, return_dict=True)
        loss = output.loss
        if loss is not None:
            weights = loss.new_tensor([task.loss_weight for task in self.tasks])[ids]
            same = len({task.loss_weight for task in self.tasks}) == 1 or (present is not None and len(present) == 1)
            shifted = type(self.base).__name__.endswith(("ForCausalLM", "LMHeadModel"))
            # the base's own loss knows no tasks
            own = self._own_kind
            loss = loss * weights[0] if same else own.weighted_loss(output.logits, given["labels"], weights, shifted)
        if loss is not None and present is None and not torch.compiler.is_compiling():
            loss = take_part(loss, self.parameters())
        return MultiTaskOutput(loss=loss, logits=flatten_logits(output.logits), task_ids=self.ids_of(ids))

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing random may touch the base, the adapters or the heads: they are initialised where they are made."""

    def get_input_embeddings(self) -> nn.Module:
        """The base's."""
        return self.base.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """The base's."""
        self.base.set_input_embeddings(value)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write adapters, heads and what was trained of the base; see ``multitask/save.py``."""
        if is_main_process:
            save_multi_task(self, save_directory, state_dict, push=bool(kwargs.get("push_to_hub")))

    def load_state_dict(self, state_dict: dict[str, Tensor], strict: bool = True, assign: bool = False) -> Any:
        """Load a full state dict, or the weights of a saved folder, which hold no frozen base weight.

        Raises:
            CheckpointError: the weights do not fit this model, or a Trainer resumes from a checkpoint of other tasks,
                heads or methods, or of another order; nothing is loaded then.
        """
        require_same_tasks(self.base, self.tasks, self.config.train_base)
        if not is_partial(self, state_dict):
            require_same_shapes(self.state_dict(), state_dict, "the state dict")
            return super().load_state_dict(state_dict, strict=strict, assign=assign)
        apply(self, state_dict, "the state dict")
        return nn.modules.module._IncompatibleKeys([], [])


auto.register()
