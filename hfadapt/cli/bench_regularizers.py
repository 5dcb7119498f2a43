"""``hfadapt bench regularizers``: what a training step costs with each regularizer, beside the theory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..adapters.atomic import write_json
from .bench_bert import bert_config
from .output import json_option, print_json, print_table
from .timing import medians_in_turn

__all__ = ["regularizers"]

_HEADS = {
    "regularizer": "regularizer",
    "ms": "ms a step",
    "ratio": "of the plain step",
    "units": "forward units",
    "theory": "theory",
    "theory_ratio": "theory, of a plain step",
}


@click.command()
@click.option("--name", "names", multiple=True, help="Only this regularizer (may be repeated); default: all.")
@click.option("--method", default="lora", show_default=True, help="Adaptation method over a frozen base, or none.")
@click.option("--layers", default=4, show_default=True, help="Layers of BERT-base size.")
@click.option("--rows", default=32, show_default=True, help="Rows a batch.")
@click.option("--tokens", default=64, show_default=True, help="Tokens a row.")
@click.option("--hidden", default=768, show_default=True, help="Width; heads of 64, feed-forward four times.")
@click.option("--repeats", default=5, show_default=True, help="Steps measured of each, in turn.")
@click.option("--output", type=click.Path(path_type=Path), help="Write the figures to this JSON.")
@json_option
def regularizers(
    names: tuple[str, ...],
    method: str,
    layers: int,
    rows: int,
    tokens: int,
    hidden: int,
    repeats: int,
    output: Path | None,
    as_json: bool,
) -> None:
    """Time training steps with and without each regularizer, in turn, at BERT-base width.

    A forward unit is the forward pass of a step without a regularizer, with its graph. The theory counts 1 for a
    forward pass and for a backward pass to the word embeddings, and 2 for one to the parameters, as full fine-tuning
    has it; over a frozen base a backward pass to the parameters is as cheap as one to the embeddings.
    """
    import torch

    from .. import plugins

    wanted = list(names or plugins.regularizers())
    steps = {name: _Steps(name, method, layers, rows, tokens, hidden) for name in ("none", *wanted)}
    seconds = medians_in_turn({**{n: one.run for n, one in steps.items()}, "unit": steps["none"].forward}, repeats)
    plain, unit = seconds["none"], seconds["unit"]
    figures = [_figure(name, seconds[name], plain, unit, steps[name].theory) for name in steps]
    setting = {
        "method": method, "layers": layers, "rows": rows, "tokens": tokens, "hidden": hidden, "repeats": repeats,
        "device": str(steps["none"].device), "threads": torch.get_num_threads(), "torch": torch.__version__,
        "dtype": "float32",
    }  # fmt: skip
    result = {"setting": setting, "figures": figures}
    if output is not None:
        write_json(output, result)
    if as_json:
        print_json(result)
        return
    print_table([*_HEADS.values()], [[_shown(row[key]) for key in _HEADS] for row in figures])


def _figure(name: str, taken: float, plain: float, unit: float, theory: int) -> dict[str, Any]:
    return {
        "regularizer": name,
        "ms": 1000 * taken,
        "ratio": taken / plain,
        "units": taken / unit,
        "theory": theory,
        "theory_ratio": theory / 3,
    }


def _shown(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


class _Steps:
    """Training steps of one regularizer on a model of its own."""

    def __init__(self, name: str, method: str, layers: int, rows: int, tokens: int, hidden: int) -> None:
        import torch
        from transformers import BertForSequenceClassification, set_seed

        import hfadapt

        from ..training.regularizers import Teacher, make_regularizer, word_embeddings

        set_seed(0)
        config = bert_config(layers, hidden)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model: Any = BertForSequenceClassification(config).to(self.device)  # pyright: ignore[reportArgumentType]
        if method != "none":
            hfadapt.attach(self.model, method)
        self.model.train()
        self.inputs = {
            "input_ids": torch.randint(4, 1000, (rows, tokens), device=self.device),
            "attention_mask": torch.ones(rows, tokens, dtype=torch.long, device=self.device),
            "labels": torch.randint(0, 2, (rows,), device=self.device),
        }
        self.regularizer = None if name == "none" else make_regularizer(name)
        self.leaves = word_embeddings(self.model)
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-4)
        self.theory = 3 if self.regularizer is None else self.regularizer.cost().units
        proximal = None if self.regularizer is None else self.regularizer.proximal_point()
        self.teacher = None if proximal is None else Teacher(self.model, proximal, 100)

    def forward(self) -> None:
        """Make the forward pass of a step."""
        self._compute(self.model, self.inputs)
        self._wait()

    def run(self) -> None:
        """Make a whole step, the optimizer's included."""
        from ..training.regularizers import MicroBatch, Noise, Step, Update

        if self.regularizer is None:
            self._compute(self.model, self.inputs)[0].backward()
        else:
            regularizer = self.regularizer
            step = Step(
                self.model,
                self.inputs,
                self._compute,
                noise=Noise((0,), range(len(self.inputs["labels"]))),
                leaves=self.leaves,
                teacher=None if self.teacher is None else self.teacher.teaching,
            )

            def again() -> None:
                step.again()
                regularizer.loss(step).backward()

            regularizer.loss(step).backward()
            if regularizer.repeats_updates:
                import contextlib

                regularizer.update(Update(self.model, [MicroBatch(again, step)], contextlib.nullcontext, self._apply))
            if self.teacher is not None:
                self.teacher.follow()
        self._apply()
        self._wait()

    def _apply(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _compute(self, model: Any, inputs: dict[str, Any]) -> tuple[Any, Any]:
        output = model(**inputs)
        return output.loss, output

    def _wait(self) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
