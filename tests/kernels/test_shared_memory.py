"""The shared memory that launches take, as the ops read it, is that of the compiled table."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from hfadapt_kernels.triton import shared

TABLE = Path(__file__).parents[2] / "benchmarks" / "triton_static" / "table.json"
REMAKE = "run the command of benchmarks/triton_static/README.md"


def test_the_figures_are_those_of_the_table():
    rows = json.loads(TABLE.read_text("utf-8"))["rows"]
    assert json.loads(shared.FIGURES.read_text("utf-8")) == shared.figures_of(rows), REMAKE


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_every_committed_launch_has_its_figure(target):
    from hfadapt_kernels.triton import static

    rows = {row["key"]: row for row in json.loads(TABLE.read_text("utf-8"))["rows"]}
    for _, case in static.collect(target):
        row = rows[static._key(case, target)]
        launch = {**case.constants, **case.launch}
        found = shared.needs(row["kernel"], row["dtype"], launch, target)
        assert found is not None and found >= row["shared_bytes"], row


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_the_command_writes_the_figures_of_all_ops_or_none(tmp_path):
    from click.testing import CliRunner

    from hfadapt.cli.bench import bench

    table, figures = tmp_path / "table.json", tmp_path / "figures.json"
    table.write_text(TABLE.read_text("utf-8"), "utf-8")
    options = ["triton-static", "--table", str(table), "--shared", str(figures)]
    refused = CliRunner().invoke(bench, [*options, "--op", "pal_attention"])
    assert refused.exit_code == 2 and "leave out --op and --target" in refused.output
    assert not figures.exists()
    from hfadapt_kernels.triton import static

    if json.loads(TABLE.read_text("utf-8"))["versions"] != static.versions():
        pytest.skip("another Triton compiles every row again, which takes minutes")
    done = CliRunner().invoke(bench, options)
    assert done.exit_code == 0, done.output
    assert json.loads(figures.read_text("utf-8")) == json.loads(shared.FIGURES.read_text("utf-8"))


def test_narrow_heads_take_no_more_than_the_narrowest_of_the_table():
    from hfadapt_kernels.prefix_attention.triton_configs import config

    for kernel in ("fwd", "dq", "dkv", "dprefix"):
        narrow, known = (config(kernel, dim, torch.float16, "sm_80") for dim in (24, 64))
        name = f"prefix_attention_{kernel}_kernel"
        found = shared.needs(name, "bf16", narrow, "sm_80")
        assert narrow["BD"] == 32
        assert found is not None and found == shared.needs(name, "bf16", known, "sm_80")


def test_a_configuration_that_is_not_committed_is_left_to_triton(monkeypatch):
    launch = {"BM": 512, "BI": 512, "num_warps": 4, "num_stages": 9}
    assert shared.needs("lora_rows_kernel", "bf16", launch, "sm_80") is None
    monkeypatch.setattr(shared, "has", lambda device: 1024)
    chosen = shared.fitting("lora_rows_kernel", torch.device("cpu"), [launch], torch.bfloat16)
    assert chosen == launch


def test_cards_that_hold_every_configuration_look_nothing_up(monkeypatch):
    def asked(*arguments):
        raise AssertionError(arguments)

    monkeypatch.setattr(shared, "needs", asked)
    for size in (None, 99 * 1024, 227 * 1024):
        monkeypatch.setattr(shared, "has", lambda device, size=size: size)
        assert shared.fitting("lora_rows_kernel", torch.device("cpu"), [{"BM": 1}], torch.float32) == {"BM": 1}
