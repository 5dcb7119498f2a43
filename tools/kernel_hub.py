"""Write the ops as a kernel repository, as Hugging Face's ``kernels`` 0.17 loads it: a folder to try and to upload.

Usage: python tools/kernel_hub.py FOLDER [LIBRARY]

LIBRARY is the built C++ library; that of the checkout when it is left out. Nothing is compiled: a build variant is the
Python package with a name of its own for its ops, and a copy of the library with the same name written into it
(csrc/torch/library.cpp), so that it runs in one process with the installed package and with other versions of itself.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from glibc_limits import beyond  # noqa: E402  # found by the path above

from hfadapt.errors.version import __version__  # noqa: E402

PACKAGE = ROOT / "kernels" / "hfadapt_kernels"
NAME = "hfadapt-kernels"
#: raised where what is there changes its meaning; users ask for `get_kernel(..., version=1)`
KERNEL_VERSION = 1
#: its oldest release that reads the metadata and prefers a variant for torch's stable ABI
KERNELS_MINVER = "0.17.0"
#: by folder: the device, and whether the C++ library is in it. The one with it serves torch from 2.10 on.
VARIANTS = {
    "torch-stable-abi210-cpu-x86_64-linux": ("cpu", True),
    "torch-cpu": ("cpu", False),
    "torch-cuda": ("cuda", False),
    "torch-rocm": ("rocm", False),
}
# csrc/torch/library.cpp: what stands before the name, and the bytes of both
_MARK, _PLACE = b"HFK_NAMESPACE=", 96
_SUFFIX_LINE = '\nSUFFIX = ""\n'
# Measurements and the rule of the tests stay in the repository.
_LEFT_OUT = shutil.ignore_patterns("bench", "testing.py", "__pycache__", "_C*", "*.md")
_CARD = """\
---
library_name: kernels
license: apache-2.0
tags:
- kernel
---
# {name}

The fused ops of hfadapt {release}: bottleneck adapters with residual and norm, LoRA of mixed tasks, projected
attention, prefixes, adapter fusion, frozen products, each with its gradients. C++ for x86-64 processors, Triton for
CUDA and ROCm, plain PyTorch elsewhere.

```python
from kernels import get_kernel

ops = get_kernel("OWNER/{name}", version={version}, trust_remote_code=True)
```

Functions: {functions}. Each takes the task of every row as `ops.TaskBatch.from_ids(ids, num_tasks)`, and one tensor a
task for each weight; `adapter_fusion` and `frozen_linear` have no tasks, and the latter takes an `ops.PackedLinear`.

Layers for `kernelize`: {layers}.
"""


def name_library(source: Path, target: Path, suffix: str) -> None:
    """Copy the C++ library with ``suffix`` behind the namespace of its ops.

    Raises:
        ValueError: The library has no place for a name (it is older than this tool), or the name is too long for it.
    """
    data = source.read_bytes()
    if data.count(_MARK) != 1:
        raise ValueError(f"{source} has {data.count(_MARK)} places for the name of its ops, not one: build it again")
    start = data.index(_MARK)
    name = data[start : start + _PLACE].rstrip(b"\0") + suffix.encode()
    if len(name) >= _PLACE:
        raise ValueError(f"{name.decode()} is longer than the place for it in {source}, {_PLACE - 1} characters")
    target.write_bytes(data[:start] + name.ljust(_PLACE, b"\0") + data[start + _PLACE :])
    target.chmod(0o755)


def write_package(folder: Path, device: str, library: Path | None) -> str:
    """Write the package with names of its own for its ops, and its library; return what stands behind the names."""
    shutil.copytree(PACKAGE, folder, ignore=_LEFT_OUT)
    suffix = f"_{device}_{_digest(folder, device, library)}"
    place = folder / "namespace.py"
    text = place.read_text("utf-8")
    if text.count(_SUFFIX_LINE) != 1:
        raise ValueError(f"{PACKAGE / place.name} has no line {_SUFFIX_LINE.strip()!r}")
    place.write_text(text.replace(_SUFFIX_LINE, f'\nSUFFIX = "{suffix}"\n'), "utf-8")
    if library is None:
        (folder / "_C.not_built.txt").write_text("this build variant holds PyTorch and Triton alone\n", "utf-8")
    else:
        name_library(library, folder / "_C.abi3.so", suffix)
    return suffix


def write_metadata(folder: Path, device: str, suffix: str) -> None:
    """Write ``metadata.json`` of a build variant, behind all its other files."""
    metadata = {
        "id": f"_hfadapt_kernels{suffix}",
        "name": NAME,
        "version": KERNEL_VERSION,
        "kernels-minver": KERNELS_MINVER,
        "license": "Apache-2.0",
        "python-depends": [],
        "backend": {"type": device},
        "digest": _hashes(folder),
    }
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n", "utf-8")


def _digest(folder: Path, device: str, library: Path | None) -> str:
    """What stands for this content in names; the same sources and library give the same."""
    sum_ = hashlib.sha256(device.encode())
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        sum_.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    if library is not None:
        sum_.update(library.read_bytes())
    return sum_.hexdigest()[:10]


def _hashes(folder: Path) -> dict[str, Any]:
    """The digest of the files, by the model of ``kernels`` that checks it."""
    from kernels._rust import Digest, DigestAlgorithm

    digest = Digest.hash_variant(DigestAlgorithm.SHA256, folder)
    return {"algorithm": str(digest.algorithm), "files": dict(sorted(digest.files.items()))}


def write_repository(folder: Path, library: Path) -> None:
    """Write all variants, the card and the license into ``folder``, anew.

    Raises:
        ValueError: The library asks for a newer glibc than the hub allows, or cannot be named; or the folder holds
            what this tool does not write.
    """
    if others := _others(folder):
        raise ValueError(f"{folder} holds {', '.join(others)}, which this tool does not write: name another folder")
    if found := beyond(library):
        raise ValueError(f"{library} would not load on glibc 2.28: {', '.join(found)}")
    folder.mkdir(parents=True, exist_ok=True)
    for name, (device, has_library) in VARIANTS.items():
        variant = folder / "build" / name
        shutil.rmtree(variant, ignore_errors=True)
        write_metadata(variant, device, write_package(variant, device, library if has_library else None))
    shutil.copy(ROOT / "LICENSE", folder)
    card = _CARD.format(
        name=NAME,
        release=__version__,
        version=KERNEL_VERSION,
        functions=_listed(name for path in PACKAGE.glob("*/op.py") for name in _defined("def [^_]", path)),
        layers=_listed(_defined("class [^_]", PACKAGE / "layers.py")),
    )
    (folder / "README.md").write_text(card, "utf-8")


def _others(folder: Path) -> list[str]:
    """What is in a folder that is there already, and not from this tool; ``.git`` of a cloned repository may be."""
    known = {folder: {"build", "LICENSE", "README.md", ".git", ".gitattributes"}, folder / "build": set(VARIANTS)}
    return [
        str(path.relative_to(folder))
        for place, names in known.items()
        if place.is_dir()
        for path in sorted(place.iterdir())
        if path.name not in names
    ]


def _defined(start: str, path: Path) -> list[str]:
    """What a module defines behind ``start``, at its top and for others."""
    return [line.partition(" ")[2] for line in re.findall(rf"^{start}\w*", path.read_text("utf-8"), re.M)]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def main() -> None:
    """Write the folder that is named, and say what is in it."""
    folder = Path(sys.argv[1])
    library = Path(sys.argv[2]) if len(sys.argv) > 2 else PACKAGE / "_C.abi3.so"
    if not library.is_file():
        raise SystemExit(f"{library} is not there: pip install -e . builds it (HFADAPT_BUILD_CPP=1 says why it cannot)")
    write_repository(folder, library)
    print(f"{folder}: {', '.join(VARIANTS)}")


if __name__ == "__main__":
    main()
