"""One training batch, and the passes that a regularizer makes over it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...architecture.modes import evaluating
from ...errors import ConfigError
from ...runtime.embedding_noise import Perturbation, perturbed
from .answers import Answers, answers_of
from .geometry import Deltas
from .noise import Law, Noise
from .passes import Stopped, first_outputs, frozen, full_precision, random_state, set_random_state

__all__ = ["Pass", "Step"]

#: Inputs that word embeddings look up, and the mask of each.
_MASKS = {"input_ids": "attention_mask", "pair_input_ids": "pair_attention_mask"}


class Pass:
    """What one forward pass gave.

    Args:
        module: The model without wrappers.
        inputs: What it was called with.
        loss: Of the task, as Trainer would train it.
        output: What the model returned.
        deltas: What was added to the word embeddings, call by call; empty for a pass at the clean point.
        masks: Real tokens of each delta, [B, T]; None where nothing is padded.
    """

    def __init__(
        self,
        module: nn.Module,
        inputs: Mapping[str, Any],
        loss: Tensor,
        output: Any,
        deltas: Deltas = (),
        masks: tuple[Tensor | None, ...] = (),
    ) -> None:
        self.module = module
        self.inputs = inputs
        self.loss = loss
        self.output = output
        self.deltas = deltas
        self.masks = masks

    @functools.cached_property
    def answers(self) -> Answers:
        """What the model says, with its graph; looked at only by regularizers that compare answers."""
        return answers_of(self.module, self.output, self.inputs)

    def gradients(self) -> Deltas:
        """What backward passes left on the deltas; zeros where the loss does not depend on one."""
        return tuple(torch.zeros_like(one) if one.grad is None else one.grad for one in self.deltas)


class Step:
    """A micro-batch of training, as a regularizer sees it.

    Every pass sees the dropout masks of the first one, so that passes differ in nothing but what a regularizer changes,
    and torch's random state afterwards is that of a step without a regularizer.

    Args:
        module: The model without wrappers.
        inputs: Of the model.
        compute: ``(model, inputs)`` to the loss and output of a pass, as Trainer computes them.
        noise: The draws of this step.
        wrapped: The model as Trainer calls it, compiled or data-parallel; one pass of a step goes through it.
        leaves: The word embeddings.
        backward: Back-propagates a loss of ``compute`` before the step's last one, scaled as Trainer scales it.
        mixed: Passes run under autocast or compiled, so what compares small differences runs again without either.
        teacher: Puts the teacher's weights in, as a context.
        term_scale: Factor of a mean over this batch that is added to the loss, where Trainer sums losses up.
    """

    def __init__(
        self,
        module: nn.Module,
        inputs: Mapping[str, Any],
        compute: Callable[[nn.Module, dict[str, Any]], tuple[Tensor, Any]],
        *,
        noise: Noise,
        wrapped: nn.Module | None = None,
        leaves: Sequence[nn.Module] = (),
        backward: Callable[[Tensor], None] = Tensor.backward,
        mixed: bool = False,
        teacher: Callable[[], contextlib.AbstractContextManager[None]] | None = None,
        term_scale: float = 1.0,
    ) -> None:
        self.module = module
        self.inputs = dict(inputs)
        self.noise = noise
        self.leaves = tuple(leaves)
        self.mixed = mixed
        self.term_scale = term_scale
        self.backward = backward
        #: What a regularizer that sees one batch several times keeps between them.
        self.memory: dict[str, Any] = {}
        self.device = next((p.device for p in module.parameters()), torch.device("cpu"))
        self._compute = compute
        self._teacher = teacher
        self._wrapped = self._unused = wrapped
        self._before = random_state(self.device)
        self._after: tuple[Tensor, Tensor | None] | None = None
        self._clean: Pass | None = None
        self._reference: Answers | None = None
        #: What the model returned in the first pass.
        self.output: Any = None

    def again(self) -> None:
        """Forget the passes made: the model has changed, and the same batch is trained on once more."""
        self._clean, self._reference, self._unused = None, None, self._wrapped

    @property
    def clean(self) -> Pass:
        """The pass at the clean point, made once; its loss is that of training without a regularizer."""
        if self._clean is None:
            self._clean = self.train()
        return self._clean

    @property
    def reference(self) -> Answers:
        """The answers at the clean point that others are compared with, with their graph.

        Those of the clean pass itself; under autocast those of one in full precision, because the roundings of the
        first are larger than what a small perturbation changes, and where the clean pass is compiled those of an eager
        one, because its dropout masks are others.
        """
        if self._reference is None:
            self._reference = self.clean.answers
            if self.mixed:
                with self._precise():
                    self._reference = self._run(self.module).answers
        return self._reference

    def train(self, at: Deltas | Perturbation | None = None, *, last: bool = True) -> Pass:
        """Make a pass to train on, in the run's own precision.

        Args:
            at: Added to the word embeddings; a backward pass gives the deltas of the pass a gradient.
            last: Whether its loss is part of the step's last backward pass, in which ranks wait for each other.
        """
        model = self.module
        if last and self._unused is not None:
            model, self._unused = self._unused, None
        return self._run(model, at)

    def perturb(self, at: Deltas | Perturbation, *, words: bool = True) -> Pass:
        """Make a pass to train on whose answers are compared with ``reference``, in full precision.

        Args:
            at: Added to the word embeddings.
            words: Whether the word embeddings get a gradient from this pass.
        """
        with self._precise():
            return self._run(self.module, at, gradient=False, words=words)

    def search(self, at: Deltas | Perturbation, objective: Callable[[Pass], Tensor]) -> tuple[Pass, Deltas]:
        """Return a pass at a perturbation, and the gradient of ``objective`` with respect to that.

        No parameter gets a gradient, no graph of one is built, and nothing is reduced over ranks. The pass is in full
        precision.

        Args:
            at: The perturbation, or what decides it once the word embeddings are known.
            objective: What is to grow, of the pass.
        """
        with self._precise(), frozen(self.module):
            found = self._run(self.module, at)
            value = objective(found)
            if value.requires_grad:
                value.backward()
        return found, found.gradients()

    def search_below(self, block: nn.Module, at: Deltas, costates: Deltas) -> Deltas:
        """Return the gradient of ``<costate, output of block>`` at a perturbation; nothing above the block runs.

        Args:
            block: A layer; its first output of each text counts.
            at: The perturbation.
            costates: Gradient of the loss with respect to the block's output, [B, T, D] for each text.
        """
        adding = _Adding(self, at, True)
        ends = first_outputs(block, self.leaves, last=len(costates))
        with self._precise(), frozen(self.module), ends as found:
            with contextlib.suppress(Stopped), perturbed(self.leaves, adding):
                self._passing(lambda: self._compute(self.module, dict(self.inputs)))
            torch.stack([(one * costate).sum() for one, costate in zip(found, costates, strict=True)]).sum().backward()
        return tuple(torch.zeros_like(one) if one.grad is None else one.grad for one in adding.deltas)

    def drawn(self, law: Law, size: float, *, padding: bool = False) -> Perturbation:
        """Return noise to start from: normal with deviation ``size`` or uniform in ``(-size, size)``.

        Args:
            law: Of the noise.
            size: Of the noise.
            padding: Whether padded positions get some too.
        """
        return _Drawn(self, law, size, padding)

    def teach(self) -> Answers:
        """Return the answers of the teacher: in evaluation mode, in full precision, without a graph."""
        if self._teacher is None:
            raise ConfigError(
                "this regularizer names no proximal point, so there is no teacher",
                where="step.teach()",
                got="proximal_point() gives None",
                allowed="a regularizer whose proximal_point() names a teacher",
                try_="return a Proximal from proximal_point()",
            )
        state = random_state(self.device)
        try:
            with torch.no_grad(), self._teacher(), evaluating(self.module), self._precise():
                loss, output = self._compute(self.module, dict(self.inputs))
            return Pass(self.module, self.inputs, loss, output).answers
        finally:
            set_random_state(state, self.device)

    def other_dropout(self) -> Pass:
        """Make a pass to train on whose dropout masks are not those of the clean pass."""
        _ = self.clean  # draws the masks that a step without a regularizer would draw
        state = random_state(self.device)
        try:
            torch.manual_seed(self.noise.seed())
            loss, output = self._compute(self.module, dict(self.inputs))
            return Pass(self.module, self.inputs, loss, output)
        finally:
            set_random_state(state, self.device)

    def mask_of(self, embedded: Tensor, input_ids: Tensor | None) -> Tensor | None:
        """Return which tokens of one call of the word embeddings are real, [B, T]: the mask of the text looked up."""
        texts = [(self.inputs.get(words), self.inputs.get(mask)) for words, mask in _MASKS.items()]
        fitting = [(w, m) for w, m in texts if isinstance(w, Tensor) and w.numel() == embedded.shape[:-1].numel()]
        if len(fitting) > 1 and input_ids is not None:
            fitting = [(w, m) for w, m in fitting if torch.equal(w.reshape(input_ids.shape), input_ids)] or fitting
        mask = fitting[0][1] if fitting else None
        # multiple choice puts the choices of a row among the rows
        return mask.reshape(embedded.shape[:-1]) if isinstance(mask, Tensor) else None

    def _precise(self) -> contextlib.AbstractContextManager[None]:
        return full_precision(self.module, self.device) if self.mixed else contextlib.nullcontext()

    def _run(
        self, model: nn.Module, at: Deltas | Perturbation | None = None, *, gradient: bool = True, words: bool = True
    ) -> Pass:
        adding = None if at is None else _Adding(self, at, gradient)
        with contextlib.nullcontext() if adding is None else perturbed(self.leaves, adding, words=words):
            loss, output = self._passing(lambda: self._compute(model, dict(self.inputs)))
        if self.output is None:
            self.output = output
        if adding is None:
            return Pass(self.module, self.inputs, loss, output)
        return Pass(self.module, self.inputs, loss, output, tuple(adding.deltas), tuple(adding.masks))

    def _passing(self, run: Callable[[], tuple[Tensor, Any]]) -> tuple[Tensor, Any]:
        """Make a pass with the random numbers of the first, and leave the random state as the first left it."""
        if self._after is not None:
            set_random_state(self._before, self.device)
        try:
            return run()
        finally:
            if self._after is None:
                self._after = random_state(self.device)
            else:
                set_random_state(self._after, self.device)


class _Adding:
    """The perturbation of one pass, whose deltas can get gradients of their own."""

    def __init__(self, step: Step, at: Deltas | Perturbation, gradient: bool) -> None:
        self.step = step
        self.at = at
        self.gradient = gradient
        self.deltas: list[Tensor] = []
        self.masks: list[Tensor | None] = []

    def __call__(self, call: int, embedded: Tensor, input_ids: Tensor | None) -> Tensor:
        given = self.at[call] if isinstance(self.at, tuple) else self.at(call, embedded.detach(), input_ids)
        # a leaf of its own, which holds no gradient yet
        delta = given.detach().clone().requires_grad_(self.gradient)
        self.deltas.append(delta)
        self.masks.append(self.step.mask_of(embedded, input_ids))
        return delta


class _Drawn:
    """Noise, drawn when the word embeddings are known."""

    def __init__(self, step: Step, law: Law, size: float, padding: bool) -> None:
        self.step = step
        self.law: Law = law
        self.size = size
        self.padding = padding

    def __call__(self, call: int, embedded: Tensor, input_ids: Tensor | None) -> Tensor:
        drawn = self.step.noise.draw(self.law, self.size, embedded)
        mask = None if self.padding else self.step.mask_of(embedded, input_ids)
        return drawn if mask is None else torch.where(mask.bool().unsqueeze(-1), drawn, 0.0)
