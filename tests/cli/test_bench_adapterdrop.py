"""``hfadapt bench adapterdrop`` prints the paper's three tables, and counts what back-propagation does not enter."""

from __future__ import annotations

import json

import pytest

from hfadapt.cli.adapterdrop_runs import Sizes, Subject
from hfadapt.errors import ConfigError

SMALL = ("--layers", 3, "--hidden", 64, "--rows", 2, "--tokens", 4, "--repeats", 1)


def test_its_three_tables_stand_beside_the_papers_figures(hfadapt, tmp_path) -> None:
    chosen = ("--method", "lora", "--method", "bottleneck", "--drop", 2, "--tasks", 2, "--fused", 2)
    output = tmp_path / "figures.json"
    printed = hfadapt("bench", "adapterdrop", *SMALL, *chosen, "--output", output).output
    assert [f"Table {n}" in printed for n in (1, 2, 3)] == [True] * 3
    found = json.loads(output.read_text("utf-8"))
    assert {"device", "simd", "threads", "torch"} <= set(found["machine"])
    tables = {table: [row for rows in parts.values() for row in rows] for table, parts in found["tables"].items()}
    assert [*found["tables"]["1"]] == ["lora", "bottleneck"] and [*found["tables"]["3"]] == ["2"]
    speed = {(row["method"], row["dropped"]): row for row in tables["1"]}
    for method in ("lora", "bottleneck"):
        none, two = speed[method, 0], speed[method, 2]
        # nothing below the lowest delta is differentiated, nor kept for it
        assert (none["layers with graph"], two["layers with graph"]) == (3, 1)
        assert two["products of full"] < none["products of full"] < 1
    assert "paper, train" not in speed["bottleneck", 0], "the paper has no figure for 2 rows of 4 tokens"
    shared = next(row for row in tables["2"] if row["shared layers"])
    assert shared["at most"] == pytest.approx(1 / 6) and shared["paper"] == 0.043
    assert [(row["adapters"], row["dropped"]) for row in tables["3"]] == [(2, 0), (2, 2)]
    assert [tables["3"][0][f"paper, {kind}, single"] for kind in ("train", "infer")] == [0.57, 0.68]


def test_the_papers_figures_are_those_of_its_batches() -> None:
    from hfadapt.cli.bench_adapterdrop import _speed

    full = Subject(Sizes(1, 64, 16, 128), None)
    (row,) = _speed(Sizes(1, 64, 16, 128), "bottleneck", [0], 1, lambda: full)
    assert (row["paper, train"], row["paper, infer"]) == (1.57, 0.95)


def test_a_run_that_was_cut_off_goes_on_with_the_parts_that_it_lacks(hfadapt, tmp_path) -> None:
    output = tmp_path / "figures.json"
    asked = ("bench", "adapterdrop", *SMALL, "--method", "lora", "--drop", 2, "--tasks", 2, "--fused", 2, "--output")
    cut = hfadapt(*asked, output, "--minutes", 0).output
    assert "Not begun: table 1, lora; table 2, lora; table 3, 2" in cut and not output.exists()
    hfadapt(*asked, output, "--table", 1)
    first = json.loads(output.read_text("utf-8"))["tables"]
    assert "Not begun: table 2, lora; table 3, 2" in hfadapt(*asked, output, "--resume", "--minutes", 0).output
    hfadapt(*asked, output, "--resume")
    found = json.loads(output.read_text("utf-8"))["tables"]
    assert found["1"] == first["1"] and found["2"]["lora"] and found["3"]["2"]
    with pytest.raises(ConfigError, match="repeats: 1 there, 2 here"):
        hfadapt(*asked, output, "--resume", "--repeats", 2)
    assert "--output" in hfadapt("bench", "adapterdrop", *SMALL, "--resume", status=2).output


@pytest.mark.parametrize(
    ("option", "number", "allowed"), [("--drop", 3, "0 to 2"), ("--tasks", 1, "2 and more"), ("--fused", 0, "2 and")]
)
def test_depths_and_numbers_that_make_no_table_are_refused(hfadapt, option, number, allowed) -> None:
    result = hfadapt("bench", "adapterdrop", *SMALL, option, number, status=2)
    assert allowed in result.output and str(number) in result.output
    assert "Table" not in result.output, "a table was measured before"


def test_backpropagation_enters_no_layer_below_the_lowest_delta() -> None:
    subject = Subject(Sizes(3, 64, 2, 4), "bottleneck")
    assert [subject.count(drop)["backward"] for drop in range(4)] == [3, 2, 1, 0]
    assert Subject(Sizes(3, 64, 2, 4), None).count()["backward"] == 3
