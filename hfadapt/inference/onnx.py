"""An adapted model as an ONNX graph: one task, or several whose ids are an input, for batches and lengths of any size.

``torch.export`` traces the model as ``torch.compile`` would, ops of ours are taken apart into plain PyTorch
(`hfadapt_kernels.exporting`), and ONNX Runtime must give what the model gives before anything is kept.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hfadapt_kernels.exporting import decompositions

from ..adapters.atomic import atomic_folder, target_folder, write_json
from ..adapters.detach import detach
from ..adapters.merge import merge
from ..errors import AttachError, CheckpointError, ConfigError, did_you_mean
from ..errors.names import names_of
from ..multitask.model import MultiTaskModel
from ..routing.composition import adapter_names
from ..runtime.attachment import adapted_model, attachment, find_attachment

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["DESCRIPTION", "GRAPH", "export_onnx"]

GRAPH = "model.onnx"
DESCRIPTION = "hfadapt_onnx.json"
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# Rows and tokens with which the graph is compared: others than those of the trace, one row and one token among them.
_SIZES = ((3, 5), (1, 7), (4, 1))
_CLOSE = 1e-4


def export_onnx(
    model: PreTrainedModel, folder: str | os.PathLike[str], tasks: str | Sequence[str] | None = None
) -> Mapping[str, Any]:
    """Write an adapted model as an ONNX graph, and show that ONNX Runtime computes the same.

    The graph reads ``input_ids``, ``attention_mask`` and, where the base has them, ``token_type_ids``, int64
    ``[batch, length]``; with several tasks also ``task_ids``, int64 ``[batch]``. It gives one float32 tensor: logits,
    or the hidden states of a base without a head. Heads of fewer outputs than the widest are filled up as the model
    does it. Every task computes every row there, and each row takes its own.

    Args:
        model: An adapted model that reads ``input_ids`` and is no encoder-decoder; it stays as it is.
        folder: Made if it is missing. ``model.onnx`` (with ``model.onnx.data`` where weights are large) and
            ``hfadapt_onnx.json``, the description, are written, all or none.
        tasks: One adapter or task, which is merged into the weights where its method allows it; or several, which
            ``task_ids`` counts in this order, from 0; another number is an error of ONNX Runtime. All by default.

    Returns:
        The description: inputs, output, tasks, whether one was merged, and the largest difference that was seen.

    Raises:
        ConfigError: the extra ``onnx`` is not installed, or a name is none of the model's.
        CheckpointError: the model or a method cannot be exported, or the graph computes something else.
    """
    _require_packages()
    target_folder(folder)
    if not isinstance(model, nn.Module):
        raise ConfigError(
            "no model to export",
            where="export_onnx",
            got=repr(model)[:80],
            allowed="an adapted model",
            try_="hfadapt.load(folder)",
        )
    names = _names(model, tasks)
    _require_text(adapted_model(model))
    twin = copy.deepcopy(model).eval().requires_grad_(False)
    merged = len(names) == 1 and _merge(twin, names[0])
    graph = _Graph(twin, names, merged)
    methods = _methods(model, names)
    with atomic_folder(folder, dropped=(f"{GRAPH}.data",)) as temporary:
        with _quiet():
            _write(graph, temporary / GRAPH, methods)
            error = _largest_difference(graph, copy.deepcopy(model).eval(), temporary / GRAPH, methods)
        described = {
            "inputs": list(graph.inputs),
            "output": graph.output,
            "tasks": list(names),
            "merged": merged,
            "base_model_type": adapted_model(model).config.model_type,
            "largest_difference": error,
        }
        write_json(temporary / DESCRIPTION, described)
    return described


class _Graph(nn.Module):
    """The model with inputs by position and one output.

    Args:
        model: The model.
        names: The adapters or tasks that the graph may run.
        merged: The only one stands in the model's weights.
    """

    numbers: Tensor

    def __init__(self, model: Any, names: tuple[str, ...], merged: bool) -> None:
        super().__init__()
        self.model = model
        self.names = names
        several = isinstance(model, MultiTaskModel)
        # What a call with one task is given: a stock model that holds its adapter takes no ids.
        self.only = names[0] if len(names) == 1 and (several or not merged) else None
        if len(names) > 1:
            known = _known(model)
            numbers = [model.ids[known.index(n)] if several else known.index(n) for n in names]
            self.register_buffer("numbers", torch.tensor(numbers), persistent=False)
        base = adapted_model(model)
        reads = inspect.signature(type(base).forward).parameters
        # GPT-2 reads them too, where nobody gives any: they would be looked up among its words.
        paired = getattr(base.config, "type_vocab_size", 0) > 1
        self.texts = tuple(n for n in _INPUTS if n in reads and (paired or n != "token_type_ids"))
        self.fixed = {"use_cache": False} if "use_cache" in reads and not several else {}
        self.output = "logits"

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of what ``forward`` takes, in order."""
        return (*self.texts, "task_ids") if len(self.names) > 1 else self.texts

    def forward(self, *given: Tensor) -> Tensor:
        """Return the model's output for ``inputs``."""
        called: dict[str, Any] = dict(zip(self.inputs, given, strict=True))
        if "task_ids" in called:
            ids = called["task_ids"]
            # ONNX counts negative numbers from the end, where -1 would be the last task; out of range is an error.
            called["task_ids"] = self.numbers[torch.where(ids < 0, len(self.names), ids)]
        elif self.only is not None:
            called["task_ids"] = self.only
        output = self.model(**called, **self.fixed)
        self.output = "logits" if "logits" in output else next(iter(output))
        return output[self.output].float()

    def sample(self, rows: int, tokens: int) -> tuple[Tensor, ...]:
        """Return inputs of a size, the same for the same size: all tasks in turn, and padding in every other row."""
        draws = torch.Generator().manual_seed(1000 * rows + tokens)
        config = adapted_model(self.model).config
        ids = torch.randint(3, max(4, config.vocab_size - 1), (rows, tokens), generator=draws)
        mask = torch.ones_like(ids)
        mask[1::2, tokens // 2 + 1 :] = 0
        pad = getattr(config, "pad_token_id", None)
        texts = {
            "input_ids": ids.masked_fill(mask == 0, 0 if pad is None else pad),
            "attention_mask": mask,
            "token_type_ids": torch.zeros_like(ids),
            "task_ids": torch.arange(rows) % len(self.names),
        }
        device = next(self.model.parameters()).device
        return tuple(texts[name].to(device) for name in self.inputs)


def _require_packages() -> None:
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            "what writes and checks ONNX graphs is not installed",
            where="export to onnx",
            got=f"no {', '.join(missing)}",
            allowed="the extra onnx",
            try_="pip install 'hfadapt[onnx]'",
        )


def _known(model: Any) -> list[str]:
    """What ``task_ids`` may name."""
    if isinstance(model, MultiTaskModel):
        return [task.name for task in model.tasks]
    return list(attachment(model).routable)


def _names(model: Any, tasks: str | Sequence[str] | None) -> tuple[str, ...]:
    known = _known(model)
    names = tuple(known) if tasks is None else names_of(tasks)
    unknown = [name for name in names if name not in known]
    if unknown or not names or len(set(names)) < len(names):
        raise ConfigError(
            "bad tasks",
            where="export to onnx",
            got=", ".join(map(repr, names)) or "none",
            allowed=f"some of {', '.join(known)}, each once",
            try_=did_you_mean(unknown[0], known) if unknown else "leave it out for all of them",
        )
    return names


def _require_text(base: Any) -> None:
    read = getattr(base, "main_input_name", "")
    if read != "input_ids" or base.config.is_encoder_decoder:
        raise CheckpointError(
            "models of this kind are not exported to ONNX",
            where=type(base).__name__,
            got="an encoder-decoder" if read == "input_ids" else f"a model of {read or 'other inputs'}",
            allowed="encoders and decoders of input_ids",
            try_="--format merged, and that model through optimum",
        )


def _merge(twin: Any, name: str) -> bool:
    """Fold the adapter that ``name`` uses into the weights of a model of its own; say whether its method allowed it."""
    base = adapted_model(twin)
    adapter = twin.routes.get(name, name) if isinstance(twin, MultiTaskModel) else name
    state = find_attachment(base)
    if state is None or adapter not in state.adapters:
        return False
    try:
        spare: Any = copy.deepcopy(base)
        others = [one for one in state.names if one != adapter]
        for model in (spare, base):  # tried on a copy, for a refusal comes after the others are gone
            if others:
                detach(model, others)
            merge(model, adapter, keep_original=False)
    except AttachError:
        return False
    return True


def _methods(model: Any, names: tuple[str, ...]) -> str:
    """Name the methods of what the graph runs, for errors."""
    state = find_attachment(adapted_model(model))
    if state is None:
        return "none"
    found: dict[str, None] = {}
    for name in names:
        route = model.routes.get(name, name) if isinstance(model, MultiTaskModel) else name
        for one in adapter_names(state.compositions.get(route, route)):
            found.update(dict.fromkeys(config.method for config in state.require(one).configs))
    return ", ".join(found)


def _write(graph: _Graph, path: Path, methods: str) -> None:
    inputs = graph.sample(2, 8)
    # Not named dimensions, for which every length would have to be allowed: a base has only so many positions.
    free = torch.export.Dim.DYNAMIC
    shapes = tuple({0: free} if name == "task_ids" else {0: free, 1: free} for name in graph.inputs)
    try:
        with torch.no_grad():
            graph(*inputs)  # which shows the output's name; what a traced call assigns is taken back
            traced = torch.export.export(graph, inputs, dynamic_shapes=(shapes,), strict=False)
            traced = traced.run_decompositions(decompositions())
            ours = {str(node.target) for node in traced.graph.nodes if str(node.target).startswith("hfadapt.")}
            if ours:
                raise ValueError(f"ops that only torch knows: {', '.join(sorted(ours))}")
            program = torch.onnx.export(
                traced, inputs, dynamo=True, input_names=list(graph.inputs), output_names=[graph.output], verbose=False
            )
            assert program is not None
            program.save(str(path))
    except Exception as error:
        # torch.export and the exporter raise errors of many kinds of their own
        raise CheckpointError(
            "the model cannot be written as an ONNX graph of any batch and length",
            where=f"{type(adapted_model(graph.model)).__name__} with {methods}",
            got=f"{type(error).__name__}: {error}"[:300],
            allowed="methods and models that torch.export traces with dynamic sizes: see docs/formats.md",
            try_="--format merged for LoRA; or serve it with hfadapt.Engine",
        ) from error


def _largest_difference(graph: _Graph, original: Any, path: Path, methods: str) -> float:
    """Return how far ONNX Runtime is from the model, as a part of the largest number of the output if that is above 1.

    Raises:
        CheckpointError: further than rounding.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    truth, worst = _Graph(original, graph.names, False), 0.0
    for rows, tokens in _SIZES:
        inputs = graph.sample(rows, tokens)
        (found,) = session.run(None, {n: t.cpu().numpy() for n, t in zip(graph.inputs, inputs, strict=True)})
        got = torch.from_numpy(found)
        with torch.no_grad():
            want = truth(*inputs).cpu()
        if graph.output == "last_hidden_state":  # what stands in padding is nobody's
            real = inputs[graph.inputs.index("attention_mask")].cpu().bool()
            got, want = got[real], want[real]
        if got.shape == want.shape:
            finite = want.isfinite()
            scale = max(1.0, float(want[finite].abs().max()) if finite.any() else 1.0)
            error = float((got - want)[finite].abs().max()) / scale if finite.any() else 0.0
            same = torch.equal(got[~finite], want[~finite])
        else:
            error, same = float("inf"), False
        worst = max(worst, error)
        if not same or not error <= _CLOSE:
            raise CheckpointError(
                "ONNX Runtime computes something else than the model",
                where=f"{type(adapted_model(original)).__name__} with {methods}, {rows} rows of {tokens} tokens",
                got=f"a difference of {error:.1e}, shape {list(got.shape)}",
                allowed=f"{_CLOSE:.0e} and shape {list(want.shape)}",
                try_="--format merged, or serve it with hfadapt.Engine",
            )
    return worst


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporter says of packages that it could use to itself."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
