"""Which deltas of a model a call does not run, and what that means."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from ..architecture.replaced import WITHOUT, replaced
from ..errors import AttachError
from ..runtime.attachment import copies_of, deltas_of
from .weight_reads import WeightReads

__all__ = ["Silence"]

logger = logging.getLogger(__name__)
_SHOWN = 3


class Silence:
    """Counts which deltas of some adapters run in the calls inside its block.

    Args:
        model: The adapted model.
        names: The adapters.
        copies: Adapters whose own copies of modules count as well.
    """

    def __init__(self, model: nn.Module, names: Iterable[str], copies: Iterable[str] = ()) -> None:
        self.model = model
        self.deltas: dict[int, tuple[str, nn.Module]] = {}
        for name in names:
            self.deltas.update({id(delta): (path, delta) for path, delta in deltas_of(model, name)})
        for name in copies:
            self.deltas.update({id(own): (f"{path} (its own copy)", own) for path, own in copies_of(model, name)})
        self.fired: set[int] = set()
        self.ran: set[str] = set()
        # The modules whose forward would call the deltas' leaves, in their order.
        self.around: dict[str | None, None] = {}
        self._hooks: list[Any] = []
        self._reads: WeightReads | None = None

    def undecided(self) -> dict[int, str]:
        """Return the deltas that did not run, that a map or a user named, and around which nothing ran either.

        A call need not reach them; or something else that holds their modules does their work. ``reads`` tells which.
        """
        wanted = ((path, delta) for path, delta in self.silent() if not self._is_wrong(path, delta))
        return {id(delta): path for path, delta in wanted if not _optional(delta)}

    def reads(self, deltas: Mapping[int, str]) -> WeightReads:
        """Return a block whose calls show which of these deltas' modules are bypassed: their weights are read."""
        leaves = [_leaf(self.model, path) for path in deltas.values()]
        self._reads = WeightReads(p for leaf in leaves for p in leaf.parameters(recurse=False))
        return self._reads

    def __enter__(self) -> Silence:
        for _, delta in self.deltas.values():
            self._hooks.append(delta.register_forward_hook(self._note))
        self.around = {_around(self.model, path, delta): None for path, delta in self.deltas.values()}
        for owner in self.around:
            if owner is not None:
                self._hooks.append(self.model.get_submodule(owner).register_forward_hook(self._note_around(owner)))
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _note(self, delta: nn.Module, *call: Any) -> None:
        self.fired.add(id(delta))

    def _note_around(self, path: str) -> Any:
        def hook(module: nn.Module, *call: Any) -> None:
            self.ran.add(path)

        return hook

    def silent(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the deltas and copies that did not run."""
        for key, (path, delta) in self.deltas.items():
            if key not in self.fired:
                yield path, delta

    def report(self) -> None:
        """Say which deltas did not run.

        Those that a map or a user named are an error where the module around them did run: it reads their weights and
        never calls them, or a fused kernel stands in its place; where their weights are another module's too; and where
        somebody computed with these weights. What a call does not reach (an image tower without an image, an expert
        without a token), and what was chosen with everything else, is a warning.

        Raises:
            AttachError: a delta would never run.
        """
        silent = list(self.silent())
        if not silent:
            return
        wrong = [path for path, delta in silent if self._is_wrong(path, delta)]
        if wrong:
            others = replaced(self.model)
            raise AttachError(
                "some deltas would never run in this model",
                where=type(self.model).__name__,
                got=f"{len(wrong)} silent, e.g. {wrong[0]}" + (others and f"; {others}"),
                allowed="every slot fires in a forward pass",
                try_="another method or other layers; fused kernels that bypass these modules must be switched off "
                f"({WITHOUT}); train_head=False where the model's head does not run",
            )
        fired = {_without_numbers(path) for key, (path, _) in self.deltas.items() if key in self.fired}
        paths = [path.partition(".hfadapt.")[0] for path, _ in silent if _without_numbers(path) not in fired]
        if paths:
            logger.warning(
                "%d of %d modules with an adapter did not run in %s, e.g. %s: what is trained there does nothing "
                "unless a call reaches them (other inputs), and never where only their weights are read",
                len(paths),
                len(self.deltas),
                type(self.model).__name__,
                ", ".join(paths[:_SHOWN]),
            )

    def _is_wrong(self, path: str, delta: nn.Module) -> bool:
        site = getattr(delta, "site", None)
        if site is None:
            return True
        return not site.optional and (
            _around(self.model, path, delta) in self.ran
            or _is_a_second_name(self.model, path)
            or self._is_bypassed(path)
        )

    def _is_bypassed(self, path: str) -> bool:
        """Say whether something computed with the weights of a silent delta's module."""
        read = () if self._reads is None else self._reads.read
        return any(id(p) in read for p in _leaf(self.model, path).parameters(recurse=False))


def _is_a_second_name(model: nn.Module, path: str) -> bool:
    """Say whether other modules hold the weights of a silent leaf: those are called (T5's ``shared`` never is)."""
    leaf = _leaf(model, path)
    own = {id(parameter) for parameter in leaf.parameters(recurse=False)}
    return any(
        module is not leaf and any(id(parameter) in own for parameter in module.parameters(recurse=False))
        for module in model.modules()
    )


def _optional(delta: Any) -> bool:
    return delta.site.optional


def _leaf(model: nn.Module, path: str) -> nn.Module:
    return model.get_submodule(path.partition(".hfadapt.")[0])


def _around(model: nn.Module, path: str, delta: nn.Module) -> str | None:
    """The path of the module whose forward would call a delta's leaf; None where nothing can be said.

    A model may skip any of its parts, save for those that a map says it runs.
    """
    from transformers import PreTrainedModel

    site = getattr(delta, "site", None)
    owner = path.partition(".hfadapt.")[0].rpartition(".")[0]
    while owner and isinstance(model.get_submodule(owner), (nn.ModuleList, nn.ModuleDict)):
        owner = owner.rpartition(".")[0]
    mapped = site is not None and site.rows_known
    return owner if mapped or not isinstance(model.get_submodule(owner), PreTrainedModel) else None


def _without_numbers(path: str) -> str:
    """A path in which all experts of a layer are one: numbers after the first, which is the layer's, say nothing."""
    parts = path.split(".")
    first = next((place for place, part in enumerate(parts) if part.isdigit()), len(parts))
    return ".".join("*" if place > first and part.isdigit() else part for place, part in enumerate(parts))
