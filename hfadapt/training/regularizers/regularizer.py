"""What a regularizer is: a frozen config of its options that says what is trained on one batch."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import ConfigError, did_you_mean
from ...errors.limits import require_number
from ...errors.names import names_of
from ...method.fields import KnownFields

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .proximal import Proximal
    from .step import Step
    from .update import Update

__all__ = ["Cost", "Regularizer", "no_regularizer"]


@dataclass(frozen=True)
class Cost:
    """What one micro-batch costs in passes; in units of a forward pass, back-propagation to parameters counts 2.

    Args:
        forwards: Forward passes, the clean one among them.
        searches: Backward passes that end at the word embeddings; each counts 1.
        backwards: Backward passes to the parameters.
    """

    forwards: int
    searches: int
    backwards: int

    @property
    def units(self) -> int:
        """Forward units of full fine-tuning; a step without a regularizer costs 3."""
        return self.forwards + self.searches + 2 * self.backwards


@dataclass(frozen=True)
class Regularizer(KnownFields, ABC):
    """Base of all regularizers: frozen, strict, and without state of their own.

    A plugin registers subclasses through the hook ``register_regularizers``. A subclass is a frozen dataclass that sets
    ``name``, checks its fields in ``__post_init__`` and writes ``loss``.

    Args:
        weight: Of what it adds to the loss; for those that train elsewhere than at the clean point, the share of that
            in the loss, at most 1. With 0 training is that without a regularizer, bit for bit.
    """

    weight: float = field(default=1.0, kw_only=True)

    #: By which it is registered.
    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    #: Whether it perturbs word embeddings, which the model must then have.
    perturbs_words: ClassVar[bool] = True
    #: Whether ``weight`` is a share of the loss, from 0 to 1.
    weight_is_share: ClassVar[bool] = False
    #: Whether it goes over all micro-batches of an update again, in ``update``; it then holds for all tasks.
    repeats_updates: ClassVar[bool] = False

    def __post_init__(self) -> None:
        most = 1 if self.weight_is_share else None
        require_number("weight", self.weight, where=f"{type(self).__name__}(weight=...)", least=0, most=most)

    @abstractmethod
    def loss(self, step: Step) -> Tensor:
        """Return what is trained on one micro-batch: a scalar, the mean over its rows.

        Args:
            step: The batch, and the passes over it.
        """

    @abstractmethod
    def cost(self) -> Cost:
        """Say what a micro-batch costs."""

    def update(self, update: Update) -> None:
        """Change the gradients of an update, before they are clipped; called where ``repeats_updates``.

        Args:
            update: The micro-batches of the update, whose gradients have been summed.
        """

    def after_update(self, module: nn.Module) -> None:
        """Change the model after the optimizer's step; torch's gradients are off.

        Args:
            module: The model without wrappers.
        """

    def proximal_point(self) -> Proximal | None:
        """The teacher whose answers ``step.teach()`` gives; None for none."""
        return None

    @property
    def radius(self) -> float | None:
        """The smallest perturbation that must not vanish in the model's dtype; None where nothing is so small."""
        return None

    def check_model(self, module: nn.Module) -> None:
        """Raise a ``ConfigError`` where this regularizer does not fit the model."""

    def check_run(self, updates: int, optimizer: Any) -> None:
        """Raise a ``ConfigError`` where this regularizer does not fit a run that is about to start.

        Args:
            updates: Steps of the optimizer.
            optimizer: Of the run.
        """

    def fail(self, name: str, got: object, allowed: object, try_: str = "") -> None:
        """Raise the ``ConfigError`` of the field ``name``."""
        where = f"{type(self).__name__}({name}=...)"
        raise ConfigError(f"bad {name}", where=where, got=repr(got), allowed=allowed, try_=try_)

    def require_positive(self, *names: str) -> None:
        """Raise ``ConfigError`` unless each named field is a finite number above 0."""
        for name in names:
            require_number(name, getattr(self, name), where=f"{type(self).__name__}({name}=...)", above=0)

    def require_count(self, *names: str) -> None:
        """Raise ``ConfigError`` unless each named field is a whole number of at least 1."""
        for name in names:
            require_number(name, getattr(self, name), where=f"{type(self).__name__}({name}=...)", whole=True, least=1)

    def require_one_of(self, name: str, allowed: str | Iterable[str]) -> None:
        """Raise ``ConfigError`` unless the named field is one of ``allowed``."""
        allowed, value = names_of(allowed), getattr(self, name)
        if not isinstance(value, str) or value not in allowed:
            self.fail(name, value, ", ".join(map(repr, allowed)), did_you_mean(str(value), allowed))

    def mixed_with_clean(self, step: Step, loss: Tensor) -> Tensor:
        """Return ``(1 - weight) * clean + weight * loss``; with weight 1 no clean pass is made."""
        return loss if self.weight == 1 else (1 - self.weight) * step.clean.loss + self.weight * loss

    def to_dict(self) -> dict[str, Any]:
        """Return the options as JSON data, with ``name`` first."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {"name": self.name, **{k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Regularizer:
        """Build a regularizer from ``to_dict``'s form.

        Raises:
            ConfigError: a field is unknown, or holds a value that is not allowed.
        """
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k != "name"}
        return cls(**given)


def no_regularizer(name: str, thing: object) -> str:
    """Say what a registered regularizer ought to be; "" where it is."""
    if not (isinstance(thing, type) and issubclass(thing, Regularizer) and dataclasses.is_dataclass(thing)):
        return "a dataclass that is a subclass of hfadapt.Regularizer"
    if thing.__abstractmethods__:
        return f"one that writes {', '.join(sorted(thing.__abstractmethods__))}"
    return "" if thing.name == name else f"one with name = {name!r}"
