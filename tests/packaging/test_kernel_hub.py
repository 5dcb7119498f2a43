"""The folder of ``make kernel-hub`` is a kernel repository to Hugging Face's ``kernels``, which loads and uses it."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hfadapt_kernels
from hfadapt_kernels import native
from tools.kernel_hub import KERNEL_VERSION, NAME, PACKAGE, ROOT, VARIANTS, write_repository

# Not importorskip: the repository's own folder kernels/ is a namespace package of that name.
_installed = [found for found in importlib.metadata.distributions(name="kernels")]
pytestmark = [
    pytest.mark.skipif(not _installed, reason="Hugging Face's kernels is not installed"),
    pytest.mark.skipif(not native.available(), reason=str(native.why_not())),
    pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump, of binutils"),
]
STABLE = "torch-stable-abi210-cpu-x86_64-linux"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "hfadapt-kernels"
    write_repository(folder, PACKAGE / "_C.abi3.so")
    return folder


def child(hub: Path, code: str) -> str:
    """Run code in a process of its own: a kernel registers its ops once."""
    paths = os.pathsep.join(str(ROOT / path) for path in ("", "kernels", "plugins"))
    done = subprocess.run(
        [sys.executable, "-c", "import sys, torch\nfrom pathlib import Path\nhub = Path(sys.argv[1])\n" + code, hub],
        capture_output=True,
        text=True,
        cwd=hub,
        # Python's own cache of bytecode would be files that the digest does not know.
        env={**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_variant_has_a_name_and_metadata_that_kernels_reads(hub: Path) -> None:
    from kernels._rust import Digest
    from kernels.variants import parse_variant

    from kernels import Metadata

    folders = {path.name: path for path in (hub / "build").iterdir()}
    assert set(folders) == set(VARIANTS)
    ids = set()
    for name, path in folders.items():
        assert parse_variant(name).variant_str == name
        metadata = Metadata.read_from_file(path / "metadata.json")
        assert (str(metadata.name), metadata.version, metadata.license) == (NAME, KERNEL_VERSION, "Apache-2.0")
        assert str(metadata.backend.backend_type) == VARIANTS[name][0]
        assert metadata.id.isidentifier() and f'"{metadata.id.removeprefix("_hfadapt_kernels")}"' in (
            path / "namespace.py"
        ).read_text("utf-8")
        ids.add(metadata.id)
        assert metadata.digest is not None
        (path / "metadata.json").rename(hub / "aside")
        metadata.digest.validate(Digest.hash_variant(metadata.digest.algorithm, path))
        (hub / "aside").rename(path / "metadata.json")
        assert (path / "_C.abi3.so").is_file() is VARIANTS[name][1]
    assert len(ids) == len(VARIANTS)
    card = (hub / "README.md").read_text("utf-8")
    public = {name: getattr(hfadapt_kernels, name) for name in hfadapt_kernels.__all__}
    ops = [name for name, one in public.items() if getattr(one, "__module__", "").endswith(".op")]
    layers = ["AdapterNorm", "FrozenLinear", "FrozenLinearInt8"]
    assert len(ops) == 7 and all(f"`{name}`" in card for name in (*ops, *layers)), card
    assert (hub / "LICENSE").is_file()
    assert all((path / "triton" / "shared_memory.json").is_file() for path in folders.values())


def test_get_local_kernel_takes_the_variant_with_the_library_and_runs_beside_the_installed_package(hub: Path) -> None:
    code = """
import hfadapt_kernels as ours
from kernels import get_loaded_kernels, get_local_kernel
theirs = get_local_kernel(hub)
assert theirs is not ours and theirs.native.available() and ours.native.available()
results = []
for hk in (ours, theirs):
    torch.manual_seed(0)
    x, a, b = (torch.randn(shape, requires_grad=True) for shape in ((4, 3, 32), (8, 32), (32, 8)))
    with hk.use_backend("cpu"):
        out = hk.grouped_lora(x, [a], [b], [2.0], hk.TaskBatch.from_ids([0, -1, 0, 0], 1))
    results.append([out, *torch.autograd.grad(out.square().sum(), (x, a, b))])
assert all(map(torch.equal, *results))
(loaded,) = get_loaded_kernels()
print(Path(loaded.module.__file__).parent.name)
"""
    assert child(hub, code) == STABLE


def test_where_no_library_fits_the_variant_without_one_is_loaded(hub: Path, tmp_path: Path) -> None:
    shutil.copytree(hub / "build" / "torch-cpu", tmp_path / "build" / "torch-cpu")
    code = """
from kernels import get_local_kernel
hk = get_local_kernel(hub)
assert not hk.native.available(), "there is no library"
print(hk.grouped_lora(torch.ones(1, 4), [torch.ones(1, 4)], [torch.ones(2, 1)], [1.0], hk.TaskBatch.single(1)).tolist())
"""
    assert child(tmp_path, code) == "[[4.0, 4.0]]"


KERNELIZE = """
import torch.nn as nn
from kernels import LocalLayerRepository, Mode, kernelize, use_kernel_forward_from_hub, use_kernel_mapping

@use_kernel_forward_from_hub("AdapterNorm")
class Bottleneck(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up, self.norm, self.activation = nn.Linear(32, 8), nn.Linear(8, 32), nn.LayerNorm(32), "relu"
    def forward(self, x, residual):
        return self.norm(x + residual + self.up(self.down(x).relu()))

@use_kernel_forward_from_hub("FrozenLinear")
class Frozen(nn.Linear):
    pass

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.adapter = Frozen(32, 32), Bottleneck()
        self.linear.requires_grad_(False)
    def forward(self, x):
        return self.adapter(self.linear(x), x)

torch.manual_seed(0)
model, x = Model(), torch.randn(4, 3, 32, requires_grad=True)
def results():
    out = model(x)
    return [out, *torch.autograd.grad(out.square().sum(), [x, *model.adapter.parameters()])]
want = results()
mapping = {name: {"cpu": LocalLayerRepository(hub, layer_name=name)} for name in ("AdapterNorm", "FrozenLinear")}
"""


def test_kernelize_puts_the_layers_in_and_results_and_gradients_stay(hub: Path) -> None:
    code = """
for mode in (Mode.INFERENCE, Mode.TRAINING):
    with use_kernel_mapping(mapping):
        kernelize(model, mode=mode, device="cpu", use_fallback=False)
    for module in (model.linear, model.adapter):
        print(module.forward.__func__.__module__.split(".")[-1], end=" ")
    for found, expected in zip(results(), want, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
"""
    assert child(hub, KERNELIZE + code).split() == ["layers"] * 4


def test_kernelize_for_torch_compile_takes_the_layer_that_compiles_and_leaves_the_other(hub: Path) -> None:
    code = """
with use_kernel_mapping(mapping):
    kernelize(model, mode=Mode.TRAINING | Mode.TORCH_COMPILE, device="cpu")
print(model.linear.forward.__func__.__qualname__, model.adapter.forward.__func__.__qualname__)
model.compile(fullgraph=True, backend="aot_eager")
for found, expected in zip(results(), want, strict=True):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
"""
    assert child(hub, KERNELIZE + code).split() == ["Linear.forward", "AdapterNorm.forward"]


def test_writing_again_leaves_nothing_of_before_and_gives_the_same(hub: Path, tmp_path: Path) -> None:
    stale = tmp_path / "build" / "torch-cpu" / "stale.py"
    stale.parent.mkdir(parents=True)
    stale.touch()
    write_repository(tmp_path, PACKAGE / "_C.abi3.so")
    for path in (hub / "build").rglob("*"):
        other = tmp_path / path.relative_to(hub)
        assert path.is_dir() or path.read_bytes() == other.read_bytes()
    assert not stale.exists()


@pytest.mark.parametrize("name", ["thesis.tex", "build/lib"])
def test_a_folder_with_other_things_in_it_is_refused_and_stays(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=name):
        write_repository(tmp_path, PACKAGE / "_C.abi3.so")
    assert (tmp_path / name).read_text() == "mine"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]
