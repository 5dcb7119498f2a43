"""The notebooks of examples/ are whole, have been run, and run: cell by cell, as who opens one would have it."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from hfadapt.data import bundled
from tests.docs.project import ROOT, first_rows_of

NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))


def code_cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_every_cell_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and data are cut short, as on the pages of docs/."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bundled, "load", first_rows_of(bundled.load))
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(code_cells(path), 1):
        source = re.sub(r"(max_steps|epoch_steps)=\d+", r"\1=2", "".join(cell["source"]))
        tree = ast.parse(source)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"{path.name}, cell {number}", "exec"), names)
        if last is not None:  # which a notebook shows
            shown = eval(compile(ast.Expression(last.value), f"{path.name}, cell {number}", "eval"), names)
            assert not hasattr(shown, "_repr_html_") or shown._repr_html_()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_what_it_shows_is_what_was_run(path: Path) -> None:
    book = json.loads(path.read_text("utf-8"))
    assert (book["nbformat"], book["metadata"]["kernelspec"]["name"]) == (4, "python3")
    assert book["cells"][0]["cell_type"] == "markdown"
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
    texts = json.dumps([cell["outputs"] for cell in cells])
    assert not re.search(r"/site-packages/|/(?:home|root|tmp|work)/", texts), "a folder of the machine that ran it"
