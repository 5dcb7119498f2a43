"""What keeps the whole suite quick: the order of the tests, and less work for the garbage collector."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import pytest

# Workspaces of the C++ kernels begin full of NaN, so that what is read before it is written shows. Read once, when the
# first kernel runs.
os.environ.setdefault("HFADAPT_POISON", "1")

HERE = Path(__file__).parent
# What takes longest, most of it in processes of its own. Two workers share the tests by moving those that have not
# begun: a long one at the end would keep one of them waiting.
LONGEST = (
    "distributed/test_two_processes.py",
    "distributed/test_regularizers.py",
    "kernels/test_triton_static.py",
    "kernels/interpreter/test_interpreter.py",
    "docs/test_docs.py",
    "cli/test_train.py",
    "cli/test_commands.py",
    "unit/test_multitask_folder.py",
    "unit/test_full_disk.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--archives", type=Path, metavar="FOLDER", help="package archives for the tests marked so")


@pytest.fixture(scope="session")
def archives(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that ``--archives`` names; without it an empty one, into which every archive is fetched."""
    return request.config.getoption("--archives") or tmp_path_factory.mktemp("archives")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {HERE / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(LONGEST)))


def pytest_collection_finish() -> None:
    # Modules and tests stay until the end, over half a million objects. Looking through them again and again takes a
    # third of the time of what makes many objects, such as tracing a model.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    gc.callbacks.append(KeepImports())


class KeepImports:
    """Freezes what tests import on their way: Trainer collects all garbage once a training, a third of a tiny one."""

    def __init__(self) -> None:
        self.imported = len(sys.modules)

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        # Right after a collection of everything, which leaves no garbage to be kept; what lives of tests is little.
        if phase == "stop" and info["generation"] == 2 and len(sys.modules) > self.imported + 50:
            self.imported = len(sys.modules)
            gc.freeze()


def pytest_unconfigure() -> None:
    gc.callbacks[:] = [one for one in gc.callbacks if not isinstance(one, KeepImports)]
    gc.unfreeze()  # what is never collected, some libraries report as leaked
