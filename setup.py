"""Builds the C++ kernels beside the pure Python packages (everything else stands in pyproject.toml).

``HFADAPT_BUILD_CPP=0`` skips them. Without a compiler, or when the build fails, the install goes on without them: the
wheel is a pure one that says why it holds no library, every op runs through its reference, and ``hfadapt doctor`` gives
the reason. ``HFADAPT_BUILD_CPP=1`` makes failure fatal.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CSRC = Path("csrc")
WANTED = os.environ.get("HFADAPT_BUILD_CPP", "auto")
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mavx2", "-mf16c"]
# One translation unit per instruction set, each with its own flags; never -march=native.
ISA_FLAGS = {
    "generic": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": AVX512,
    "avx512bf16": [*AVX512, "-mavx512bf16"],
    "amx": [*AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16", "-mamx-int8"],
}


# Read by hfadapt_kernels.native, which tells it to who asks why there is no library.
NOT_BUILT = "_C.not_built.txt"


def import_torch() -> ModuleType:
    """Import torch, from the environment that is installed into if the one of the build has none of its own."""
    try:
        import torch
    except ModuleNotFoundError:
        sys.path.append(sysconfig.get_path("platlib"))
        import torch
    return torch


def why(error: Exception) -> str:
    """Say in a line what a user can change."""
    if isinstance(error, subprocess.CalledProcessError):
        return f"the compiler {error.cmd[0]} ended with exit status {error.returncode} (pip install -v shows why)"
    if isinstance(error, ImportError):
        return f"torch could not be imported where the kernels are built: {error}"
    return f"no C++ compiler could be started: {error}"


class BuildKernels(build_ext):
    """Compiles every file with its own flags, several at a time, and links one library against torch's stable ABI."""

    def build_extensions(self) -> None:
        (ext,) = self.extensions
        reason_file = Path(self.get_ext_fullpath(ext.name)).with_name(NOT_BUILT)
        reason_file.unlink(missing_ok=True)
        try:
            self._build(ext)
        except (OSError, subprocess.CalledProcessError, ImportError) as error:
            if WANTED == "1":
                raise
            reason = why(error)
            print(f"hfadapt: the C++ kernels were not built ({reason}); ops will run through torch", file=sys.stderr)
            reason_file.parent.mkdir(parents=True, exist_ok=True)
            reason_file.write_text(reason + "\n", encoding="utf-8")
            self._become_pure()

    def _become_pure(self) -> None:
        """What is packed now serves any machine, and is named so."""
        self.extensions = self.distribution.ext_modules = []
        wheel = self.distribution.command_obj.get("bdist_wheel")
        if wheel is not None:
            wheel.root_is_pure, wheel.py_limited_api = True, False

    def _build(self, ext: Extension) -> None:
        torch = import_torch()
        from torch.utils import cpp_extension

        compiler = os.environ.get("CXX", "c++")
        objects = Path(self.build_temp) / "hfadapt_kernels"
        objects.mkdir(parents=True, exist_ok=True)
        sanitize = os.environ.get("HFADAPT_SANITIZE", "")
        common = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-Wno-psabi"]
        # A sanitizer's code takes three times as long to optimise, and finds the same without.
        common += [f"-fsanitize={sanitize}", "-g", "-O0", "-fno-omit-frame-pointer"] if sanitize else []
        # 2.10 is the oldest torch whose stable ABI has lists and parallel_for; the library then runs on all later ones.
        common += ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
        common += [f"-I{path}" for path in cpp_extension.include_paths()]
        x86 = platform.machine().lower() in ("x86_64", "amd64")
        common += ["-DHFK_X86"] if x86 else []
        # HFADAPT_MAX_ISA=avx2 builds two instruction sets instead of five: enough for a sanitizer's run.
        isas = list(ISA_FLAGS)[: 2 if os.environ.get("HFADAPT_MAX_ISA") == "avx2" else None]
        common += [f"-DHFK_MAX_ISA={len(isas) - 1}"]
        jobs, built = [], []
        # The instruction sets take longest and come first, so that no core is idle at the end.
        sources = sorted(CSRC.rglob("*.cpp"), key=lambda path: (path.stem not in ISA_FLAGS, path))
        for source in sources:
            isa = source.stem if source.stem in ISA_FLAGS else None
            if isa and (isa not in isas or (isa != "generic" and not x86)):
                continue
            target = objects / f"{source.parent.name}_{source.stem}.o"
            built.append(str(target))
            if self._fresh(source, target):
                continue
            flags = ISA_FLAGS[isa] if isa else []
            jobs.append([compiler, *common, *flags, "-c", str(source), "-o", str(target)])
        self._run_all(jobs)
        output = Path(self.get_ext_fullpath(ext.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
        link = [compiler, "-shared", *built, *libraries, "-lc10", "-ltorch_cpu", "-o", str(output)]
        subprocess.run([*link, *([f"-fsanitize={sanitize}"] if sanitize else [])], check=True)
        print(f"hfadapt: built {output.name} against torch {torch.__version__}")

    @staticmethod
    def _fresh(source: Path, target: Path) -> bool:
        if not target.exists():
            return False
        inputs = [source, Path("setup.py"), *CSRC.rglob("*.h")]
        return target.stat().st_mtime > max(path.stat().st_mtime for path in inputs)

    @staticmethod
    def _run_all(jobs: list[list[str]]) -> None:
        limit = int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))
        with ThreadPoolExecutor(limit) as pool:
            statuses = list(pool.map(subprocess.call, jobs))
        for status, job in zip(statuses, jobs, strict=True):
            if status:
                raise subprocess.CalledProcessError(status, job)

    def get_ext_filename(self, fullname: str) -> str:
        # The library has no Python module init: it registers ops when torch loads it, for any Python version.
        return os.path.join(*fullname.split(".")) + (".pyd" if sys.platform == "win32" else ".abi3.so")


EXTENSIONS = [] if WANTED == "0" else [Extension("hfadapt_kernels._C", sources=[], py_limited_api=True)]
setup(
    ext_modules=EXTENSIONS,
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if EXTENSIONS else {},
)
