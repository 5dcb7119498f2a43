"""Models for the tables of AdapterDrop, and what one of their steps or passes goes through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .bench_bert import bert_config

__all__ = ["Sizes", "Subject"]


@dataclass(frozen=True)
class Sizes:
    """Of a BERT and of its batch.

    Attributes:
        layers: Of the model.
        hidden: Its width; heads of 64, feed-forward four times.
        rows: Of a batch.
        tokens: Of a row.
    """

    layers: int
    hidden: int
    rows: int
    tokens: int


class Subject:
    """A BERT that is fine-tuned in full, or adapted over a frozen base, with an optimizer and a batch.

    Args:
        sizes: Of the model and of the batch.
        method: Of the adapters; None trains the whole model.
        names: Of the adapters; the first is active, or all of them where ``fused``.
        fused: AdapterFusion over all of ``names``, which alone is trained then, with the head.
    """

    def __init__(self, sizes: Sizes, method: str | None, names: Sequence[str] = ("one",), fused: bool = False) -> None:
        import torch
        from transformers import BertForSequenceClassification, set_seed

        import hfadapt

        set_seed(0)
        config = bert_config(sizes.layers, sizes.hidden, max(64, sizes.tokens))
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model: Any = BertForSequenceClassification(config).to(self.device)  # pyright: ignore[reportArgumentType]
        self.names = tuple(names)
        self.adapted = method is not None
        if method is not None:
            hfadapt.attach(self.model, method, names=self.names)
            hfadapt.activate(self.model, self.names[0])
        if fused:
            hfadapt.add_fusion(self.model, self.names)
        self.layers = self.model.bert.encoder.layer
        self.inputs = {
            "input_ids": torch.randint(4, 1000, (sizes.rows, sizes.tokens), device=self.device),
            "attention_mask": torch.ones(sizes.rows, sizes.tokens, dtype=torch.long, device=self.device),
        }
        self.labels = torch.randint(0, 2, (sizes.rows,), device=self.device)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5)

    def train(self, drop: int = 0) -> None:
        """Make a whole training step, the optimizer's included, without deltas in the lowest layers."""
        self._drop(drop)
        self.model.train()
        self.model(**self.inputs, labels=self.labels).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._wait()

    def infer(self, drop: int = 0, tasks: int = 1) -> None:
        """Make a pass without gradients: one task's, or several tasks' on the same rows."""
        import torch

        import hfadapt

        self._drop(drop)
        self.model.eval()
        with torch.no_grad():
            if tasks == 1:
                self.model(**self.inputs)
            else:
                with hfadapt.active(self.model, hfadapt.Parallel(*self.names[:tasks])):
                    self.model(**self.inputs)
        self._wait()

    def count(self, drop: int = 0) -> dict[str, int]:
        """Count what a training step does.

        Returns:
            ``flops``: of its products, by the PyTorch reference of the ops. ``with_graph``: layers whose forward pass
            keeps a graph. ``backward``: layers that back-propagation enters.
        """
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        from hfadapt_kernels import use_backend

        entered: set[int] = set()
        kept: set[int] = set()

        def watch(number: int) -> Any:
            def hook(module: Any, args: tuple, output: Any) -> None:
                states = output[0] if isinstance(output, tuple) else output
                if states.requires_grad:
                    kept.add(number)
                    states.register_hook(lambda gradient: entered.add(number))

            return hook

        hooks = [layer.register_forward_hook(watch(number)) for number, layer in enumerate(self.layers)]
        counter = FlopCounterMode(display=False)
        try:
            with torch.random.fork_rng(devices=[]), use_backend("reference"), counter:
                self.train(drop)
        finally:
            for hook in hooks:
                hook.remove()
        return {"flops": counter.get_total_flops(), "with_graph": len(kept), "backward": len(entered)}

    def _drop(self, layers: int) -> None:
        import hfadapt

        if self.adapted:
            hfadapt.set_adapter_drop(self.model, layers)

    def _wait(self) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
