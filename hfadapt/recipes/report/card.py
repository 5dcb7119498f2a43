"""The model card of a saved adapter: ``README.md`` in its folder."""

from __future__ import annotations

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
    tasks = ", ".join(f"`{task}`" for task in result.tasks)
    first = next(iter(result.tasks))
    texts = '"a text" --pair "its pair"' if first in pairs else '"a text"'
    picture = f"\n![Macro average against parameters]({plot})\n" if plot else ""
    body = f"""# Adapter for {tasks}

{adapted.title}, on `{result.model}`. Adds {adapted.parameters_task:,} parameters a task; base and adapter together are
{adapted.parameters_total / result.base_parameters:.3f}x the base.

## Use

```python
import hfadapt

model = hfadapt.MultiTaskModel.from_pretrained("path/to/this/folder")
```

```sh
hfadapt predict path/to/this/folder --task {first} {texts}
```

## Results

{markdown_table(result)}
{picture}
\\{legend(result)} {conditions(result)}

{chr(10).join("- " + line for line in proof_lines(result))}
{_papers(result)}"""
    # through the hub's own class, which reads the metadata as the hub will
    return str(ModelCard("\n".join([f"---\n{data.to_yaml()}\n---\n", body, *sections]).rstrip() + "\n"))


def _papers(result: RunResult) -> str:
    """A section on where the methods of the adapter come from, each once; "" for heads alone."""
    text = result.resolved or result.recipe
    configs = read_recipe(text, source="the run's recipe").method if text else ()
    used = dict.fromkeys((one.name, one.paper) for one in (plugins.methods()[c.method] for c in configs) if one.paper)
    lines = [f"- {paper} (`{name}`)" for name, paper in used]
    return "\n".join(["", "## Papers", "", *lines, ""]) if lines else ""
