"""The ``forward`` of an adapted model's root, which turns ``task_ids`` into the routing of the forward pass."""

from __future__ import annotations

import functools
import inspect
from dataclasses import replace
from types import CodeType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hfadapt_kernels.errors import ShapeError

from ..errors import RoutingError
from ..routing.choice import Block, Choice, chosen
from ..routing.context import current, set_current
from ..routing.draws import draws_of_pass
from ..routing.forward_pass import Pass, StackInputs
from ..routing.routing import Routing, all_tasks_take_part
from ..routing.task_ids import TaskIds, Together, parse
from .beside_peft import notice_frozen
from .call import Call, parameters_of
from .checkpointing import CheckpointWithRouting
from .elsewhere import name_elsewhere
from .embedding_hooks import let_backward_stop
from .generate import running
from .handing_on import hand_on
from .kv_history import check_steps, tokens_in
from .leaf_hooks import tensor_batch_size
from .loss_terms import add_to_output, loss_share, notice_items
from .lost_column import check_column, check_that_something_trains, note_taken_column
from .own_forward import refuse_loss
from .parallel import check_output, fit_call, parallel_routing, together_routing
from .parallel_pieces import pieces_of
from .past_the_head import check_begin, head_runs
from .row_routing import weigh_rows
from .shard_gradients import let_shards_take_part
from .watch import require_intact, require_intact_in_graph
from .zero_gradients import take_part

if TYPE_CHECKING:
    from .attachment import Attachment

__all__ = ["Forward", "make_routing", "put_forward", "take_forward"]


class Forward:
    """Stands in for ``forward`` of an adapted model, its base and the modules that hold its stacks.

    It decides which adapter each row uses, runs the stock method, and puts back what it found on every way out: hooks
    that torch calls also after an error are not called after ``KeyboardInterrupt``, ``SystemExit`` or a cancelled task.
    ``module.forward(...)`` called directly comes here as well. An object and not a closure, so that ``deepcopy`` and
    pickle take it along with its module.

    Args:
        module: Whose ``forward`` it is.
        path: Its path below the model that was adapted; "" is that model.
    """

    def __init__(self, module: nn.Module, path: str) -> None:
        self.module = module
        self.path = path
        self.token = _attachment_of(module).token
        self.choice: Choice | None = None
        # Whoever wrapped the method before (accelerate's device hooks) goes on doing so.
        self.wrapped = module.__dict__.get("forward")
        # The forms of call in which such a wrapper has run the whole model, and with which adapter.
        self.forms: set[tuple[bool, int, frozenset[str], str]] = set()
        # Read here and not in a call, which torch.compile may be tracing.
        self.parameters = parameters_of(type(module).forward.__get__(module))

    @property
    def __code__(self) -> CodeType:
        """The stock method's, whose name and line ``torch.export`` notes without asking whether there are any."""
        return type(self.module).forward.__code__

    @property
    def __signature__(self) -> inspect.Signature:
        """The stock method's, and ``task_ids`` for the model: Trainer keeps the columns that it finds here."""
        stock = inspect.signature(self.wrapped or type(self.module).forward.__get__(self.module))
        if self.path or "task_ids" in stock.parameters:
            return stock
        note_taken_column()
        parameters = list(stock.parameters.values())
        place = len(parameters) - any(p.kind is p.VAR_KEYWORD for p in parameters)
        parameters.insert(place, inspect.Parameter("task_ids", inspect.Parameter.KEYWORD_ONLY, default=None))
        return stock.replace(parameters=parameters)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the stock method with the adapters of each row.

        Raises:
            RoutingError: there are several adapters and nothing says which one, or the ids do not fit the rows.
            AttachError: an adapter stands on another device than what it changes.
        """
        # torch.compile traces this: plain attribute reads, no dictionary of modules, no weak references.
        attachment = getattr(self.module, "_hfadapt_of", None)
        if attachment is None or attachment.token is not self.token:
            return self._stock(args, kwargs)  # kept by a wrapper beyond detach
        before = current()
        # Wrappers of the model's forward (TRL's, for its loss) call the base alone: the pass begins there then.
        begins = not self.path or before is None or before.owner is not attachment.token
        if not self.path and self.wrapped is None and self.choice is None:
            pieces = pieces_of(attachment, self.module, args, kwargs, self.parameters)
            if pieces.choices:
                return pieces.join([self._piece(attachment, piece, args, kwargs) for piece in pieces.choices])
        if begins and torch.is_grad_enabled() and not torch.compiler.is_compiling() and all_tasks_take_part():
            let_shards_take_part(self.module)
        try:
            args, kwargs = self._enter(attachment, before, begins, args, kwargs)
            if self.path or torch.compiler.is_compiling() or (attachment.waiting is None and self.wrapped is None):
                return self._leave(attachment, begins, self._stock(args, kwargs))
            call = functools.partial(self._run, attachment, args, kwargs)
            return call() if attachment.waiting is None else attachment.waiting.run(current(), args, kwargs, call)
        except (RuntimeError, ShapeError) as error:
            if begins:
                name_elsewhere(self.module, error)
            raise
        finally:
            set_current(before)

    def _piece(self, attachment: Attachment, choice: Choice, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Run some children of a ``Parallel``."""
        with Block(attachment, choice):
            return self(*args, **kwargs)

    def replicate(self) -> nn.Module:
        """Copy the module as ``nn.DataParallel`` does; the copy's ``forward`` must not lead back to this module."""
        module: Any = self.module
        replica = type(module)._replicate_for_data_parallel(module)
        put_forward(replica, self.path)
        replica.__dict__["forward"].choice = chosen(_attachment_of(module))
        return replica

    def _run(self, attachment: Attachment, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Call the model's stock method; one that was wrapped shows in each form of call that it runs the head."""
        routing = current()
        forms: set[tuple[bool, int, frozenset[str], str]] = set()
        if self.wrapped is not None and routing is not None:
            given = frozenset(key for key, value in kwargs.items() if value is not None)
            forms = {(self.module.training, len(args), given, name) for name in routing.used_names()}
        if forms <= self.forms:
            return self._leave(attachment, True, self._stock(args, kwargs))
        output = head_runs(self.module, {form[-1] for form in forms}, lambda: self._stock(args, kwargs))
        self.forms |= forms
        return self._leave(attachment, True, output)

    def _stock(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        if self.wrapped is not None:
            return hand_on(self.wrapped, args, kwargs)
        return hand_on(type(self.module).forward, (self.module, *args), kwargs)

    def _enter(
        self, attachment: Attachment, before: Routing | None, begins: bool, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]]:
        """Set the routing, or fit the one that is set; return what the stock method is called with."""
        module = self.module
        task_ids = kwargs.pop("task_ids", None) if "task_ids" in kwargs else None
        penalised = kwargs.pop("penalised", None) if "penalised" in kwargs else None
        if task_ids is None and begins and not torch.compiler.is_compiling() and running(attachment) is None:
            check_column(attachment.names)
        call = Call(args, kwargs, self.parameters)
        routing = self._routing(attachment, before, task_ids, call)
        set_current(routing)
        if routing is None and begins and module.training and not torch.compiler.is_compiling():
            check_that_something_trains(attachment.watch)
        if routing is not None and not self.path and module.training:
            if not torch.compiler.is_compiling():
                notice_frozen(attachment)
            routing.state.loss_share, routing.state.items = loss_share(call), notice_items(kwargs)
            if penalised is not None:  # whoever computes the loss adds them
                routing.state.penalised = penalised
        if routing is not None and attachment.label_counts and not self.path and kwargs.get("labels") is not None:
            refuse_loss(routing, attachment.label_counts, type(module).__name__)
        if routing is not None and routing.state.growth is not None:
            args, kwargs = fit_call(routing, self.path, self.path in attachment.decoder_paths, call)
        if begins and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            _carry_routing_into_checkpoints(module)
        return args, kwargs

    def _routing(self, attachment: Attachment, before: Routing | None, task_ids: Any, call: Call) -> Routing | None:
        found = tensor_batch_size(call.args, call.kwargs)
        inherits = False
        if before is not None and before.owner is attachment.token and self.path and task_ids is None:
            inherits = True
            routing = before if found is None or before.state.growth is not None else before.for_batch(found[0])
        else:
            routing = make_routing(attachment, task_ids, found, call, self.choice)
        if routing is None:
            return None
        routing = replace(routing, given=self._given(attachment, routing, call, inherits))
        if not inherits:
            if torch.compiler.is_compiling():
                require_intact_in_graph(attachment, routing)
            else:
                require_intact(attachment, routing)
                if self.path and attachment.watch is not None:
                    check_begin(attachment.watch.model, self.path, routing.used_names())
            routing.state.draws = draws_of_pass(self.module.training, None if found is None else found[1])
            weigh_rows(attachment, routing)
            attachment.prepare(routing)
        for key in attachment.call_counters:
            # A part that runs several times in one pass (HRM's modules) goes on counting until all depths ran.
            depths = sum(stack.layer_paths.count(key) for stack in attachment.arch.stacks)
            inside = not self.path or key.startswith(self.path + ".")
            if inside and not (inherits and 0 < routing.state.calls.get(key, 0) < depths):
                routing.state.calls[key] = 0
        return routing

    def _given(self, attachment: Attachment, routing: Routing, call: Call, inherits: bool) -> StackInputs:
        """Return what the module is given, beside what the routing that it inherits knows of the modules around it."""
        growth = routing.state.growth
        changed: dict[str, Any] = {"tokens": call.tokens}
        decodes = self.path in attachment.decoder_paths
        mask, memory = call.get("attention_mask"), call.get("encoder_attention_mask")
        if growth is not None:
            mask, memory = growth.repeat((mask, memory))
        if isinstance(mask, Tensor) and mask.dim() == 2:
            changed |= {"mask": mask, "other_mask": None}
        elif decodes or (mask is not None and not inherits):
            # Below the root a model hands on masks of its own making, which say nothing new.
            changed |= {"mask": None, "other_mask": mask}
        if decodes or memory is not None:
            changed["memory_mask"] = memory
        cache = call.cache
        if cache is not None:
            changed |= {"cache": cache, "cached": tokens_in(cache)}
        elif other := call.other_past:
            changed["other_past"] = other
        if not inherits:
            asked, config = call.get("output_attentions"), getattr(self.module, "config", None)
            changed["attentions"] = bool(getattr(config, "output_attentions", False) if asked is None else asked)
            ids = call.get("input_ids")
            changed["text"] = call.get("inputs_embeds") if ids is None else ids
        return replace(routing.given, **changed)

    def _leave(self, attachment: Attachment, begins: bool, output: Any) -> Any:
        """Check and complete what the model returned."""
        module, routing = self.module, current()
        if routing is not None and routing.state.without_cache and not torch.compiler.is_compiling():
            check_steps(routing, output)
        if output is None or not begins or routing is None:
            return output
        if routing.state.growth is not None:
            check_output(routing.state.growth, output)
        if routing.state.penalised:
            output = add_to_output(output, routing, training=module.training and not attachment.inside)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling() and all_tasks_take_part():
            return output if attachment.inside else _with_every_gradient(module, output)
        return output


def put_forward(module: nn.Module, path: str) -> None:
    """Put `Forward` before the method of a module that is adapted."""
    forward = module.__dict__["forward"] = Forward(module, path)
    module.__dict__["_replicate_for_data_parallel"] = forward.replicate


def take_forward(module: nn.Module) -> None:
    """Take it away again; one that somebody wrapped stays, and only hands calls on."""
    forward = module.__dict__.get("forward")
    if isinstance(forward, Forward):
        del module.__dict__["forward"]
        if forward.wrapped is not None:
            module.__dict__["forward"] = forward.wrapped
    module.__dict__.pop("_replicate_for_data_parallel", None)


def _with_every_gradient(model: nn.Module, output: Any) -> Any:
    """Let every trainable parameter have a gradient, on the loss or, in a call without labels, on the first output."""
    if isinstance(output, Tensor):
        return take_part(output, model.parameters())
    items = output.items() if isinstance(output, dict) else enumerate(output) if isinstance(output, tuple) else ()
    for key, value in items:
        if isinstance(value, Tensor) and value.requires_grad:
            changed = take_part(value, model.parameters())
            if isinstance(output, tuple):
                return (*output[:key], changed, *output[key + 1 :])
            output[key] = changed
            return output
    return output


def _attachment_of(module: Any) -> Attachment:
    return module._hfadapt_of


def _carry_routing_into_checkpoints(model: nn.Module) -> None:
    """Wrap the checkpoint function of every layer that uses activation checkpointing.

    Raises:
        RoutingError: a layer checkpoints with a function of its own, whose re-run would be without adapters.
    """
    if not model.training:
        return
    wrapped = []
    for module in model.modules():
        function = module.__dict__.get("_gradient_checkpointing_func")
        if function is None and getattr(module, "gradient_checkpointing", False) is True:
            raise RoutingError(
                "activation checkpointing would run this layer again without its adapters",
                where=type(module).__name__,
                got="gradient_checkpointing without _gradient_checkpointing_func",
                allowed="layers that checkpoint through _gradient_checkpointing_func, as transformers' do",
                try_="training without activation checkpointing; or a release of transformers that the tests know, "
                "see hfadapt doctor",
            )
        if function is not None and not isinstance(function, CheckpointWithRouting):
            module.__dict__["_gradient_checkpointing_func"] = CheckpointWithRouting(function)
            wrapped.append(function)
    if wrapped and all(getattr(f, "keywords", {}).get("use_reentrant") is False for f in wrapped):
        let_backward_stop(model)


def make_routing(
    attachment: Attachment,
    task_ids: Any,
    found: tuple[int, Any] | None,
    call: Call,
    choice: Choice | None = None,
) -> Routing | None:
    """Build the routing of a call.

    Args:
        attachment: The adapters of the model.
        task_ids: What `hfadapt.routing.task_ids.parse` reads, or None for what is active.
        found: Batch size and device of the call's inputs.
        call: The call.
        choice: What is active, where it is not this thread's (``nn.DataParallel`` runs copies in threads of its own).

    Returns:
        The routing, or None when the model runs without adapters.

    Raises:
        RoutingError: there are several adapters and nothing says which one; an id or a name is unknown, or there is
            not one a row.
    """
    size, device = found if found is not None else (1, None)
    if isinstance(task_ids, Together):
        return together_routing(attachment, task_ids, found)
    generation = running(attachment) if task_ids is None else None
    if generation is not None:
        choice, task_ids = generation.choice, generation.task_ids
    names, steps = attachment.routable, attachment.steps
    own: dict[str, Any] = {"owner": attachment.token, "drop": attachment.drop}
    if task_ids is None:
        choice = chosen(attachment) if choice is None else choice
        if choice.base:
            return None
        if choice.node is not None:
            attachment.check_attached(choice.node)
            if choice.parallel is not None:
                prompts = generation.prompts if generation is not None else 0
                return parallel_routing(attachment, choice, found, call, prompts)
            return Routing((repr(choice.node),), choice.steps, None, 0, size, StackInputs(), Pass(), **own)
        if choice.task_ids is None:
            raise RoutingError(
                "the model has several adapters and none was chosen for this call",
                where="task_ids",
                got="no task_ids, and nothing active",
                allowed=", ".join(attachment.routable),
                try_="pass task_ids=..., or hfadapt.activate(model, name), or 'with hfadapt.active(model, name)'",
            )
        task_ids = choice.task_ids
    rows = parse(task_ids, names, None if found is None else size, device)
    if rows.uniform is not None:
        if rows.uniform < 0:  # a routing and not None, or the model's own stacks would look for one
            steps, rows = (), TaskIds(0)
        return Routing(names, steps, None, rows.uniform or 0, size, StackInputs(), Pass(), **own)
    assert rows.ids is not None
    routing = Routing(names, steps, rows.ids, 0, rows.ids.shape[0], StackInputs(), Pass(), rows.listed, **own)
    # generate repeats its prompts for beams and for several sequences of each
    return routing if generation is None else routing.for_batch(size)
