"""The method table, generated from what is registered: for the terminal and the docs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..recipes.report.table import to_markdown

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["MARKDOWN_COLUMNS", "default_configs", "markdown_methods", "method_rows", "page_of"]

MARKDOWN_COLUMNS = ("method", "what it adds", "added", "mixed batch", "merges", "kernels", "paper", "tests")


def method_rows() -> list[dict[str, Any]]:
    """One row a method or preset, built-in families first to last by name."""
    from .. import plugins

    rows = []
    counted = _bert_base()
    for name, entry in sorted(plugins.methods().items(), key=lambda item: (item[1].family, item[0])):
        configs = default_configs(entry)
        capabilities = [plugins.methods()[config.method].capabilities for config in configs or ()]
        ops = sorted({op for one in capabilities for op in one.ops})
        rows.append(
            {
                "method": name,
                "family": entry.family,
                "what it adds": entry.summary,
                "added": _added(configs, counted),
                "mixed batch": _all(capabilities, "mixed_batch"),
                "merges": _all(capabilities, "mergeable"),
                "kernels": ", ".join(ops) or "-",
                "paper": entry.paper,
                "page": page_of(name),
                "tests": entry.tests or "-",
            }
        )
    return rows


def markdown_methods(root: str = "") -> str:
    """The table as Markdown; names link to the method's own page in the repository, and to its tests.

    Args:
        root: From the file that holds the table to the repository's root, e.g. ``"../"``.
    """
    lines = []
    for row in method_rows():
        name, tests = f"`{row['method']}`", row["tests"]
        linked = f"[{name}]({root}{row['page']})" if row["page"] else name
        lines.append([linked, *(row[column] for column in MARKDOWN_COLUMNS[1:-1]), _test_link(tests, root)])
    return to_markdown(MARKDOWN_COLUMNS, lines)


def _test_link(path: str, root: str = "") -> str:
    return path if path == "-" else f"[{path.rpartition('/test_')[2].removesuffix('.py')}]({root}{path})"


def page_of(name: str) -> str:
    """The path of a method's README from the repository's root, or "" where its module has none beside it."""
    from .. import plugins

    entry = plugins.methods()[name]
    module = getattr(entry, "build", type(entry)).__module__
    spec = importlib.util.find_spec(module.rpartition(".")[0] if "." in module else module)
    for place in spec.submodule_search_locations or () if spec else ():
        page = Path(place) / "README.md"
        if page.is_file() and "plugins" in page.parts:
            return "/".join(page.parts[page.parts.index("plugins") :])
    return ""


def default_configs(entry: Any) -> tuple[Any, ...] | None:
    """Configs of a method with every option at its default; ``None`` when some option must be given."""
    try:
        built = entry.config_class() if hasattr(entry, "config_class") else entry.build()
    except TypeError:
        return None
    return built if isinstance(built, tuple) else (built,)


def _all(capabilities: list[Any], name: str) -> str:
    return "-" if not capabilities else "yes" if all(getattr(one, name) for one in capabilities) else "no"


def _bert_base() -> PreTrainedModel:
    """BERT-base without storage: to count what adapters add."""
    import torch
    from transformers import BertConfig, BertModel

    with torch.device("meta"):
        return BertModel(BertConfig())


def _added(configs: tuple[Any, ...] | None, model: PreTrainedModel) -> str:
    """What one adapter adds to ``model``, as a share of it: what stays, and what is there in training alone."""
    from .. import plugins
    from ..errors import AttachError

    if configs is None:
        return "-"
    base = model.num_parameters()
    try:
        trained = _count(configs, model)
        left = tuple(plugins.methods()[config.method].kept(config) for config in configs)
        kept = trained if left == configs else _count(left, model)
    except AttachError:
        return "-"
    return f"{kept / base:.2%}" + (f", +{(trained - kept) / base:.2%} in training" if trained != kept else "")


def _count(configs: tuple[Any, ...], model: PreTrainedModel) -> int:
    """Parameters of one adapter on ``model``, which is handed back as it was."""
    import torch

    from .. import attach

    with torch.device("meta"):  # nothing to fill with initial values
        handle = attach(model, configs, verify=False)
    count = handle.num_parameters()
    handle.detach()
    return count
