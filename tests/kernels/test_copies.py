"""Copies of the package, each with names of its own for its ops, run in one process and compute the same."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hfadapt_kernels import namespace, native
from tools.kernel_hub import PACKAGE, name_library, write_package

LIBRARY = PACKAGE / "_C.abi3.so"
needs_library = pytest.mark.skipif(not native.available(), reason=str(native.why_not()))

COMPARE = """
import importlib.util, sys, torch

def load(name, folder):
    spec = importlib.util.spec_from_file_location(name, folder + "/__init__.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

def results(hk, backend):
    torch.manual_seed(0)
    def leaf(*shape):
        return torch.randn(shape, requires_grad=True)
    x, weight, bias = leaf(4, 3, 32), torch.randn(48, 32), leaf(48)
    down, up = [leaf(8, 32) for _ in range(2)], [leaf(32, 8) for _ in range(2)]
    batch = hk.TaskBatch.from_ids([1, 0, -1, 1], 2)
    with hk.use_backend(backend):
        normed = hk.parallel_adapter_norm(x, x, down, up, batch, norm="layer")
        lora = hk.grouped_lora(x, down, up, [1.0, 2.0], batch)
        linear = hk.frozen_linear(x, hk.PackedLinear(weight), bias)
        loss = normed.square().sum() + lora.square().sum() + linear.square().sum()
    return [normed, lora, linear, *torch.autograd.grad(loss, [x, bias, *down, *up])]

def same(left, right):
    assert len(left) == len(right) and all(map(torch.equal, left, right))
"""


def run(code: str, *arguments: object, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", COMPARE + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=PACKAGE.parent,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_library
def test_copies_beside_the_installed_package_give_the_same_bits_and_gradients(tmp_path: Path) -> None:
    with_library = write_package(tmp_path / "one", "cpu", LIBRARY)
    without = write_package(tmp_path / "two", "cpu", None)
    code = """
import hfadapt_kernels as ours
one, two = load("_made_up_1", sys.argv[1]), load("_made_up_2", sys.argv[2])
assert ours.native.available() and one.native.available() and not two.native.available()
assert "this build variant holds" in two.native.why_not() and "backend='cpu'" in two.native.why_not()
same(results(ours, "cpu"), results(one, "cpu"))
same(results(ours, "reference"), results(two, "reference"))
print(ours.namespace.NAMESPACE, one.namespace.NAMESPACE, two.namespace.NAMESPACE)
for copy in (ours, one, two):
    assert hasattr(getattr(torch.ops, copy.namespace.NAMESPACE), "grouped_lora")
    assert hasattr(copy.namespace.cpu_ops, "grouped_lora_forward") is copy.native.available()
"""
    printed = run(code, tmp_path / "one", tmp_path / "two")
    assert printed.split() == ["hfadapt", f"hfadapt{with_library}", f"hfadapt{without}"]


@needs_library
def test_a_copy_runs_where_nothing_is_installed_and_before_what_is(tmp_path: Path) -> None:
    write_package(tmp_path / "alone", "cpu", LIBRARY)
    # as the Hub's cache holds files: links to what is named by its content
    (tmp_path / "alone" / "_C.abi3.so").rename(tmp_path / "5f2a")
    (tmp_path / "alone" / "_C.abi3.so").symlink_to(tmp_path / "5f2a")
    code = """
paths, sys.path[:] = sys.path[:], [path for path in sys.path if not path.endswith("kernels") and path]
alone = load("_made_up", sys.argv[1])
found = results(alone, "cpu")
assert not [name for name in sys.modules if name.startswith("hfadapt")]
sys.path[:] = paths
import hfadapt_kernels
same(found, results(hfadapt_kernels, "cpu"))
"""
    run(code, tmp_path / "alone")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
def test_the_triton_kernels_of_a_copy_run_beside_those_of_the_installed_package(tmp_path: Path) -> None:
    write_package(tmp_path / "copy", "cuda", None)
    code = """
import hfadapt_kernels as ours
same(results(ours, "triton"), results(load("_made_up", sys.argv[1]), "triton"))
"""
    run(code, tmp_path / "copy", TRITON_INTERPRET="1")


def test_names_follow_from_the_content(tmp_path: Path) -> None:
    assert namespace.SUFFIX == ""
    names = [write_package(tmp_path / name, "cpu", None) for name in ("first", "again")]
    assert names[0] == names[1] != write_package(tmp_path / "cuda", "cuda", None)
    assert f'SUFFIX = "{names[0]}"' in (tmp_path / "first" / "namespace.py").read_text("utf-8")
    assert not list((tmp_path / "first").rglob("bench"))


def test_a_library_without_a_place_for_a_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.so").write_bytes(b"\x7fELF hfadapt_cpu")
    with pytest.raises(ValueError, match="has 0 places for the name of its ops, not one: build it again"):
        name_library(tmp_path / "old.so", tmp_path / "new.so", "_x")
    (tmp_path / "built.so").write_bytes(b"\x7fELF" + b"HFK_NAMESPACE=hfadapt_cpu".ljust(96, b"\0") + b"\0\1")
    with pytest.raises(ValueError, match="longer than the place for it"):
        name_library(tmp_path / "built.so", tmp_path / "new.so", "_" + "x" * 80)
    assert not (tmp_path / "new.so").exists()
    name_library(tmp_path / "built.so", tmp_path / "new.so", "_x")
    assert (tmp_path / "new.so").read_bytes() == b"\x7fELF" + b"HFK_NAMESPACE=hfadapt_cpu_x".ljust(96, b"\0") + b"\0\1"
