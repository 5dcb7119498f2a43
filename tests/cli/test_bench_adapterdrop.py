"""``hfadapt bench adapterdrop`` prints the paper's three tables, and counts what back-propagation does not enter."""

from __future__ import annotations

import json

import pytest

SMALL = ("--layers", 3, "--hidden", 64, "--rows", 2, "--tokens", 4, "--repeats", 1)


def test_its_three_tables_stand_beside_the_papers_figures(hfadapt, tmp_path) -> None:
    chosen = ("--method", "lora", "--method", "bottleneck", "--drop", 2, "--tasks", 2, "--fused", 2)
    output = tmp_path / "figures.json"
    printed = hfadapt("bench", "adapterdrop", *SMALL, *chosen, "--output", output).output
    assert [f"Table {n}" in printed for n in (1, 2, 3)] == [True] * 3
    found = json.loads(output.read_text("utf-8"))
    assert {"device", "simd", "threads", "torch"} <= set(found["machine"])
    speed = {(row["method"], row.get("dropped")): row for row in found["table 1"]}
    for method in ("lora", "bottleneck"):
        none, two = speed[method, 0], speed[method, 2]
        # nothing below the lowest delta is differentiated, nor kept for it
        assert (none["layers with graph"], two["layers with graph"]) == (3, 1)
        assert two["products of full"] < none["products of full"] < 1
    assert speed["bottleneck", 0]["paper, train"] == 1.57
    shared = next(row for row in found["table 2"] if row["shared layers"])
    assert shared["at most"] == pytest.approx(1 / 6) and shared["paper"] == 0.043
    assert [(row["adapters"], row["dropped"]) for row in found["table 3"]] == [(2, 0), (2, 2)]


@pytest.mark.parametrize(
    ("option", "number", "allowed"), [("--drop", 3, "0 to 2"), ("--tasks", 1, "2 and more"), ("--fused", 0, "2 and")]
)
def test_depths_and_numbers_that_make_no_table_are_refused(hfadapt, option, number, allowed) -> None:
    result = hfadapt("bench", "adapterdrop", *SMALL, option, number, status=2)
    assert allowed in result.output and str(number) in result.output
    assert "Table" not in result.output, "a table was measured before"


def test_backpropagation_enters_no_layer_below_the_lowest_delta() -> None:
    from hfadapt.cli.adapterdrop_runs import Sizes, Subject

    subject = Subject(Sizes(3, 64, 2, 4), "bottleneck")
    assert [subject.count(drop)["backward"] for drop in range(4)] == [3, 2, 1, 0]
    assert Subject(Sizes(3, 64, 2, 4), None).count()["backward"] == 3
