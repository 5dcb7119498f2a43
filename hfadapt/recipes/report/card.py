"""The model card of a saved adapter: ``README.md`` in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ... import plugins
from ..config import read_recipe
from .table import conditions, legend, markdown_table, proof_lines

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from ..results import RunResult

__all__ = ["model_card"]


def model_card(
    result: RunResult, sections: Iterable[str] = (), pairs: Collection[str] = (), plot: str | None = None
) -> str:
    """The card as Markdown, with the metadata that the Hugging Face Hub reads.

    Args:
        result: Of the run that made the adapter.
        sections: Further sections, from plugins.
        pairs: The tasks that read two texts.
        plot: Name of a picture beside the card, of scores against what they cost.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    adapted = result.arms[0]
    scores = [
        EvalResult(
            task_type="text-classification",
            dataset_type=task,
            dataset_name=task,
            dataset_split=result.splits.get(task, result.split),
            metric_type=metric,
            metric_value=round(value, 4),
        )
        for task, values in adapted.scores.items()
        for metric, value in values.items()
    ]
    data = ModelCardData(
        base_model=None if result.model.startswith("package:") else result.model,
        library_name="hfadapt",
        tags=["hfadapt", "adapter", "multi-task"],
        model_name="adapter",
        eval_results=scores,
    )
    first = next(iter(result.tasks))
    return (
        str(
            ModelCard.from_template(
                data,
                template_path=str(Path(__file__).with_name("card_template.md")),
                tasks=", ".join(f"`{task}`" for task in result.tasks),
                title=adapted.title,
                base=result.model,
                added=f"{adapted.parameters_task:,}",
                times=f"{adapted.parameters_total / result.base_parameters:.3f}",
                first=first,
                texts='"a text" --pair "its pair"' if first in pairs else '"a text"',
                table=markdown_table(result),
                plot=plot,
                legend=f"{legend(result)} {conditions(result)}",
                proof=proof_lines(result),
                papers=_papers(result),
                sections=[section.strip("\n") for section in sections],
            )
        ).rstrip()
        + "\n"
    )


def _papers(result: RunResult) -> list[str]:
    """Where the methods of the adapter come from, each once; nothing for heads alone."""
    text = result.resolved or result.recipe
    configs = read_recipe(text, source="the run's recipe").method if text else ()
    used = dict.fromkeys((one.name, one.paper) for one in (plugins.methods()[c.method] for c in configs) if one.paper)
    return [f"{paper} (`{name}`)" for name, paper in used]
