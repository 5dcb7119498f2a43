"""``model.generate`` of an adapted model: adapters chosen by prompt, and ``Parallel``.

``generate`` counts its rows before it calls the model, so that neither can be left to the hooks of ``forward``: it
refuses arguments that ``forward`` does not name, and its rows must be repeated before the first step.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import RoutingError
from ..routing.choice import Choice, chosen
from ..routing.growth import copies, repeat_rows
from ..routing.task_ids import TaskIds, parse
from .call import cache_in
from .handing_on import hand_on
from .leaf_hooks import INPUTS

if TYPE_CHECKING:
    from .attachment import Attachment

__all__ = ["Generate", "Generation", "install", "prompts_in", "running", "uninstall"]

_STATE = threading.local()


@dataclass(frozen=True)
class Generation:
    """What the calls of one ``generate`` have in common.

    Args:
        token: Of the attachment.
        choice: What calls without ``task_ids`` use.
        task_ids: One a prompt, or one for all; None where ``choice`` says it.
        prompts: How many there are; before they were repeated under ``Parallel``.
        text: The prompts, ids or embeddings, as the model's calls repeat them; None where there are none.
        mask: Their attention mask, where one was given.
        scores: What routers made of the prompts, by key: later calls see new tokens alone.
    """

    token: object
    choice: Choice
    task_ids: TaskIds | None
    prompts: int
    text: Tensor | None = None
    mask: Tensor | None = None
    scores: dict[str, Tensor] = field(default_factory=dict)


def running(attachment: Attachment) -> Generation | None:
    """Return the ``generate`` that calls the model in this thread, or None."""
    found: Generation | None = getattr(_STATE, "generation", None)
    return found if found is not None and found.token is attachment.token else None


class Generate:
    """Stands in for ``generate`` of one adapted model.

    An object and not a closure, so that ``deepcopy`` and pickle take it along with its model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, inputs: Tensor | None = None, *args: Any, task_ids: Any = None, **kwargs: Any) -> Any:
        """Generate with the adapter of each prompt.

        Args:
            inputs: As of the stock method.
            args: As of the stock method.
            task_ids: As of the model's forward, one a prompt; by default what is active. Under ``Parallel`` every
                prompt goes through every child, and the results are stacked with the children outermost.
            kwargs: As of the stock method.

        Raises:
            RoutingError: there is not one id a prompt, or one is unknown; under ``Parallel``, there is no input to
                repeat, or a key-value cache is given along.
        """
        kind: Any = type(self.model)
        stock = kind.generate
        attachment: Attachment = self.model.__dict__["_hfadapt"]
        choice = chosen(attachment)
        prompts = prompts_in(inputs, kwargs)
        text = _text(inputs, kwargs)
        rows = None
        if task_ids is None and choice.parallel is not None:
            _check_parallel(prompts, kwargs)
            children = len(choice.parallel.children)
            inputs, kwargs = repeat_rows((inputs, kwargs), prompts, lambda tensor: copies(tensor, children))
            text = _text(inputs, kwargs)
        elif task_ids is None and (outer := _around(attachment, choice, text)) is not None:
            rows = outer.task_ids  # of the same prompts: a draft by the model's own first layers (assistant_early_exit)
        elif (given := choice.task_ids if task_ids is None else task_ids) is not None:
            # A model writes one row where it is given no prompt.
            rows = parse(given, attachment.routable, prompts or 1, getattr(self.model, "device", None))
        # Whisper calls its first argument by another name, under which it may be among the others.
        first = () if inputs is None and not args else (inputs,)
        before = getattr(_STATE, "generation", None)
        mask = kwargs.get("attention_mask")
        _STATE.generation = Generation(attachment.token, choice, rows, prompts, text, mask)
        try:
            return hand_on(stock, (self.model, *first, *args), kwargs)
        finally:
            _STATE.generation = before


def _text(inputs: Tensor | None, kwargs: dict[str, Any]) -> Any:
    return next((t for t in (inputs, kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if t is not None), None)


def _around(attachment: Attachment, choice: Choice, text: Any) -> Generation | None:
    """Return the ``generate`` that calls this one to go on with its own prompts, unless another choice was made inside.

    Args:
        attachment: Of the model.
        choice: The one that holds here.
        text: What this call is given to go on with.
    """
    outer = running(attachment)
    if outer is None or outer.choice is not choice:
        return None
    before = outer.text
    if not isinstance(text, Tensor) or not isinstance(before, Tensor) or text.dim() != before.dim():
        return None
    begins = text[:, : before.shape[1]]
    return outer if begins.shape == before.shape and torch.equal(begins, before) else None


def install(model: nn.Module) -> None:
    """Put `Generate` before the method of a model that has one."""
    if hasattr(type(model), "generate") and "generate" not in model.__dict__:
        model.__dict__["generate"] = Generate(model)


def uninstall(model: nn.Module) -> None:
    """Take it away again."""
    if isinstance(model.__dict__.get("generate"), Generate):
        del model.__dict__["generate"]


def prompts_in(inputs: Tensor | None, kwargs: dict[str, Any]) -> int:
    """Return the number of prompts before the model repeats them; 0 for none."""
    states = kwargs.get("encoder_outputs")
    given = (inputs, *[kwargs.get(name) for name in INPUTS], states[0] if states is not None else None)
    for value in (*given, *kwargs.values()):
        if isinstance(value, Tensor) and value.dim() > 1:
            return int(value.shape[0])
    return 0


def _check_parallel(prompts: int, kwargs: dict[str, Any]) -> None:
    """Raise unless there are prompts, and nothing else, to repeat."""
    cache = next((name for name, value in kwargs.items() if cache_in(value) is not None), None)
    if cache is not None:
        raise RoutingError(
            "generate under Parallel cannot go on from a key-value cache, whose rows are not repeated",
            where="generate",
            got=cache,
            allowed="the whole prompt",
            try_="repeat the prompts and give one name a row: generate(..., task_ids=[...])",
        )
    if not prompts:
        raise RoutingError(
            "generate under Parallel needs a prompt to repeat",
            where="generate",
            got=sorted(kwargs),
            allowed="input_ids, or what this model reads in their place, of one token or more",
            try_="input_ids of one token, the model's bos_token_id",
        )
