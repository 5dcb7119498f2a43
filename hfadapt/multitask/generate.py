"""``MultiTaskModel.generate``: the base writes after each prompt with the adapter of the prompt's task."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import GenerationConfig

from ..errors import TaskError
from ..runtime.attachment import find_attachment
from ..runtime.generate import prompts_in
from .inputs import MAIN_INPUTS, require_rows
from .live import LiveTasks

__all__ = ["WritingTasks", "can_write"]

_WHERE = "MultiTaskModel.generate"


def can_write(base: Any) -> bool:
    """Say whether a base has a head that writes text.

    One whose head looks words up, such as ``BertForMaskedLM``, has the method ``generate`` too and cannot.
    """
    return hasattr(base, "generate") and bool(getattr(base, "can_generate", lambda: False)())


class WritingTasks(LiveTasks):
    """What `MultiTaskModel` is beside a ``PreTrainedModel`` where its base writes text."""

    _own_head: bool
    _accepted: frozenset[str]
    _modules: dict[str, Any]

    @property
    def generation_config(self) -> GenerationConfig | None:
        """The base's; None where it writes nothing."""
        return getattr(self._modules.get("base"), "generation_config", None)

    @generation_config.setter
    def generation_config(self, value: GenerationConfig | None) -> None:
        base: Any = self._modules.get("base")
        if base is not None:  # a PreTrainedModel sets one of its own before it has a base
            base.generation_config = value

    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        task_ids: Any = None,
        **options: Any,
    ) -> Any:
        """Let the base write after prompts of several tasks in one batch, each what it writes alone.

        ``model.generate(**tokenizer(prompts, return_tensors="pt"), task_ids=["chat", "code"], max_new_tokens=20)``.
        A decoder's prompts are padded at the left.

        Args:
            inputs: The prompts, as the base's own ``generate`` takes them: int64 [B, T], or by name (``input_ids``,
                ``inputs_embeds``, ``input_features``, ...).
            generation_config: As of the base's own.
            task_ids: Task of each prompt, or one for all, as of ``forward``; beams and several sequences a prompt are
                its task's too. May be left out with one task.
            options: As of the base's own: ``attention_mask``, ``max_new_tokens``, ``num_beams``, ``streamer``, ...
                ``token_type_ids`` are ignored by bases that know none, as in ``forward``.

        Returns:
            What the base's own returns: int64 [B, T], with the prompts of a decoder.

        Raises:
            TaskError: the base writes no text, the tasks have heads of their own, or a prompt is no tensor.
            RoutingError: several tasks and no ``task_ids``, or an unknown task.
        """
        if not self._own_head or not can_write(self.base):
            heads = "the base's own head" if self._own_head else "heads of the tasks' own"
            raise TaskError(
                "the model writes no text",
                where=_WHERE,
                got=f"{type(self.base).__name__}, {heads}",
                allowed="tasks with OwnHead() on a base with a language-model head",
                try_="MultiTaskModel.from_base(AutoModelForCausalLM.from_pretrained(name), [Task(..., OwnHead())]); "
                "model(...) for what the heads answer",
            )
        given = {name: options.get(name) for name in MAIN_INPUTS}
        first = str(self.base.main_input_name)
        require_rows({**given, first: options.get(first) if inputs is None else inputs}, where=_WHERE)
        if not isinstance(generation_config, GenerationConfig | None):
            raise TaskError(
                "bad generation_config",
                where=_WHERE,
                got=repr(generation_config)[:80],
                allowed="transformers.GenerationConfig",
                try_="model.generate(..., max_new_tokens=20)",
            )
        if "token_type_ids" not in self._accepted:
            options.pop("token_type_ids", None)
        # without a prompt a decoder writes one text from its first token on
        prompts = prompts_in(inputs, options) or 1
        rows = self.tasks_of(task_ids, prompts, next(self.base.parameters()).device)
        if find_attachment(self.base) is not None:
            options["task_ids"] = self._adapters_of(rows)
        if generation_config is not None:
            options["generation_config"] = generation_config
        base: Any = self.base
        # Whisper calls its first argument by another name, under which it may be among the others.
        return base.generate(*(() if inputs is None else (inputs,)), **options)
