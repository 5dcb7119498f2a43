"""Every committed configuration of every Triton kernel compiles for every card family, spills nothing and fits.

``benchmarks/triton_static/table.json`` holds a row for each: source, configuration and target make its key. A change of
either leaves a configuration without a row, and `test_every_committed_configuration_has_its_row` asks for a new table.
One case of every kernel is compiled here again for two targets, and with ``-m triton`` all cases for all.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
TABLE = Path(__file__).parents[2] / "benchmarks" / "triton_static" / "table.json"
REMAKE = f"run the command of benchmarks/{TABLE.parent.name}/README.md"
READ_OFF = ("registers", "spills", "shared_bytes", "tensor_columns", "product")
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")


@pytest.fixture(scope="module")
def table():
    return json.loads(TABLE.read_text("utf-8"))


def test_every_committed_configuration_has_its_row(table):
    from hfadapt_kernels.triton import static

    assert not static.missing(table["rows"]), REMAKE


def test_all_six_ops_are_covered_on_every_target(table):
    ops = {"parallel_adapter_norm", "grouped_lora", "prefix_attention", "pal_attention", "adapter_fusion"}
    ops |= {"frozen_linear", "every op"}
    for target in TARGETS:
        assert {row["op"] for row in table["rows"] if row["target"] == target} == ops


def test_nothing_spills_and_everything_fits(table):
    from hfadapt_kernels.triton import static

    assert static.problems(table["rows"]) == []


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("rows", ["sample", pytest.param("all", marks=pytest.mark.triton)])
def test_a_fresh_compilation_gives_the_rows_of_the_table(table, target, rows):
    from hfadapt_kernels.triton import static

    chosen = [row for row in table["rows"] if row["target"] == target]
    if rows == "sample":
        # Every second kernel: each is compiled for two of the four targets.
        chosen = static.sample(chosen)[int(target in ("sm_90", "sm_100")) :: 2]
    fresh = static.run([target], only=[row["key"] for row in chosen], jobs=1)
    assert static.problems(fresh) == []
    if table["versions"] == static.versions():  # another compiler may allocate other registers
        for before, now in zip(sorted(chosen, key=_key), sorted(fresh, key=_key), strict=True):
            assert {name: now[name] for name in READ_OFF} == {name: before[name] for name in READ_OFF}, now


def test_a_configuration_that_spills_is_caught():
    from hfadapt_kernels.prefix_attention import triton_configs
    from hfadapt_kernels.triton import static
    from hfadapt_kernels.triton.compile import compile_case

    case = triton_configs.case("dkv", 64, "bf16", triton_configs.launch("dkv", (128, 64, 4, 1), 64, 2))
    row = static.describe("prefix_attention", case, "sm_80") | compile_case(case, "sm_80")
    assert row["spills"] > 0
    assert any("spills" in line for line in static.problems([row]))
    assert static.missing([row], ["sm_80"])[-1].startswith("in the table, no longer committed")


@pytest.mark.parametrize(
    ("field", "value"),
    [("spills", 4), ("registers", 256), ("shared_bytes", 64 * 1024 + 1), ("tensor_columns", 1), ("error", "refused")],
)
def test_what_a_card_lacks_is_a_problem(table, field, value):
    from hfadapt_kernels.triton import static

    row = next(row for row in table["rows"] if row["target"] == ("sm_80" if field == "registers" else "gfx942"))
    assert static.problems([row]) == []
    assert len(static.problems([row | {field: value}])) == 1


@pytest.mark.parametrize(
    ("capability", "target"),
    [((8, 0), "sm_80"), ((8, 9), "sm_80"), ((9, 0), "sm_90"), ((10, 0), "sm_100"), ((12, 0), "sm_80")],
)
def test_a_device_takes_the_configurations_of_its_family(monkeypatch, capability, target):
    import torch

    from hfadapt_kernels.triton.targets import target_of

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    assert target_of.__wrapped__(torch.device("cuda")) == target
    assert target_of(torch.device("cpu")) == "sm_80"


def test_the_command_takes_unchanged_rows_from_the_table_and_prints_them(table, tmp_path):
    from click.testing import CliRunner

    from hfadapt.cli.bench import bench

    copy = tmp_path / "table.json"
    copy.write_text(TABLE.read_text("utf-8"), "utf-8")
    options = ["triton-static", "--op", "pal_attention", "--target", "sm_90", "--table", str(copy), "--json"]
    result = CliRunner().invoke(bench, options)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert [row["kernel"] for row in rows] == ["pal_linear_kernel"] * len(rows)
    assert {"kernel", "target", "registers", "spills", "shared_bytes", "flops", "bytes"} <= set(rows[0])
    written = json.loads(copy.read_text("utf-8"))
    if table["versions"] == written["versions"]:
        assert written["rows"] == table["rows"]
    else:  # rows of another compiler are made anew, and what it was asked for alone is written
        assert {row["target"] for row in written["rows"]} == {"sm_90"}


def _key(row):
    return row["key"]
