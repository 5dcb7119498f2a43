"""Runs the case files named on the command line, one after the other; started by test_interpreter.py."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path
from types import ModuleType

from hfadapt_kernels.testing import patch_interpreter_once, repair_interpreter_bfloat16

HERE = Path(__file__).parent


def load_tests(op: str) -> ModuleType:
    """The module tests/kernels/test_<op>.py: its cases and checks are those of the other backends."""
    name = f"cases_{op}"
    spec = importlib.util.spec_from_file_location(name, HERE.parent / f"test_{op}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    # The case files import this module by its name, not as __main__.
    sys.modules["run_cases"] = sys.modules["__main__"]
    repair_interpreter_bfloat16()
    patch_interpreter_once()
    for op in sys.argv[1:]:
        print(f"{op}:", flush=True)
        runpy.run_path(str(HERE / f"{op}_case.py"))
