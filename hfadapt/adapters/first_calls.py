"""What calls of the model show of adapters, where no input could be made up or nothing was to run at attach."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..errors import HFAdaptError
from ..runtime.attachment import attachment
from .row_proof import prove_rows, slots_to_prove
from .silence import Silence
from .weight_reads import holds_compiled_code

if TYPE_CHECKING:
    from ..routing.routing import Routing

__all__ = ["FirstCalls", "wait_for_calls"]

logger = logging.getLogger(__name__)


class FirstCalls:
    """Stands between an adapted model and its calls until they have shown what is to be shown.

    Args:
        model: The adapted model.
        names: Adapters of which no call has shown yet that they run.
    """

    def __init__(self, model: nn.Module, names: Iterable[str] = ()) -> None:
        self.model = model
        self.names = set(names)
        # A module that did not run in one call will not in the next of the same form.
        self.tried: set[frozenset[Any]] = set()

    def run(self, routing: Routing | None, args: tuple, kwargs: dict[str, Any], run: Callable[[], Any]) -> Any:
        """Make a call of the model, and see what it shows.

        Raises:
            AttachError: a delta of an adapter that is used, and of which no call has been seen, does not run.
        """
        if routing is None:
            return run()
        if routing.ids is not None:
            self._prove_rows(args, kwargs)
        unseen = self.names.intersection(routing.used_names())
        if not unseen:
            self._end()
            return run()
        with Silence(self.model, sorted(unseen)) as silence, self._reads(silence):
            output = run()
        if not silence.fired and "" in silence.around:  # the model itself, whose hooks run when this has returned
            silence.ran.add("")
        if not silence.fired and not silence.ran:  # a call that reached no layer of theirs shows nothing
            return output
        self.names -= unseen
        self._end()
        silence.report()
        return output

    def _reads(self, silence: Silence) -> AbstractContextManager[Any]:
        """A call is made once: what it reads is noted in the same one."""
        return nullcontext() if holds_compiled_code(self.model) else silence.reads(silence.undecided())

    def _prove_rows(self, args: tuple, kwargs: dict[str, Any]) -> None:
        form = frozenset((*range(len(args)), *(key for key, value in kwargs.items() if value is not None)))
        slots = dict(slots_to_prove(self.model))
        sizes = form | {value.shape for value in (*args, *kwargs.values()) if isinstance(value, Tensor)}
        if not slots or not self.tried.isdisjoint((form, sizes)):
            return
        try:
            prove_rows(self.model, attachment(self.model), slots, args, kwargs)
            self.tried.add(form)
        except HFAdaptError:
            raise
        except Exception as error:  # the call itself will show what is wrong with it; one of other sizes may be right
            self.tried.add(sizes)
            logger.debug("rows could not be told apart: %s: %s", type(error).__name__, error)

    def _end(self) -> None:
        self.names &= set(attachment(self.model).names)
        if not self.names and not any(True for _ in slots_to_prove(self.model)):
            attachment(self.model).waiting = None


def wait_for_calls(model: nn.Module, unseen: Iterable[str] = ()) -> None:
    """Let the calls of an adapted model show what nothing has shown yet.

    Args:
        model: The adapted model.
        unseen: Adapters of which nobody knows yet whether they run.
    """
    state = attachment(model)
    waiting = state.waiting
    names = {*unseen, *(waiting.names if isinstance(waiting, FirstCalls) else ())} & set(state.names)
    rows = any(True for _ in slots_to_prove(model))
    state.waiting = FirstCalls(model, names) if names or rows else None
