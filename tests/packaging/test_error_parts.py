"""Errors of ours say what, where, got, allowed and what to try, in every place that makes one."""

from __future__ import annotations

import ast
from collections import Counter
from functools import cache
from pathlib import Path

import hfadapt.errors
import hfadapt_kernels.errors

ROOT = Path(__file__).parents[2]
PACKAGES = ("hfadapt", "plugins/hfadapt_plugins", "kernels/hfadapt_kernels")
#: What an error of each library says beside what is wrong; where it arose, an op's error says by its first argument.
PARTS = {
    "hfadapt": {"where", "got", "allowed", "try_"},
    "kernels": {"expected", "got", "hint"},
}
#: Errors of Python itself that nobody but this code catches, by file and kind, and those of what tests others' code.
CAUGHT_HERE = {
    ("hfadapt/adapters/files.py", "ValueError"): 1,
    ("hfadapt/architecture/probe/replay.py", "ValueError"): 2,
    ("hfadapt/inference/onnx.py", "ValueError"): 1,
    ("hfadapt/plugins/loading.py", "TypeError"): 1,
    ("hfadapt/plugins/loading.py", "ValueError"): 1,
    ("hfadapt/recipes/compare.py", "AssertionError"): 1,
    ("hfadapt/testing/conformance.py", "AssertionError"): 1,
    ("kernels/hfadapt_kernels/bench/runner.py", "RuntimeError"): 1,
    ("kernels/hfadapt_kernels/op_autograd.py", "TypeError"): 1,
    ("kernels/hfadapt_kernels/triton/compile.py", "RuntimeError"): 2,
}
#: Errors whose text has the parts inside, so that they have none of their own.
PARTS_IN_TEXT = {
    "hfadapt/cli/inspect.py": 1,  # a report keeps a refusal as text, and the command says it again
    "hfadapt/recipes/config/tree.py": 1,  # lists the errors of a recipe, and holds each in `found`
    "hfadapt/runtime/watch.py": 1,  # a traced call is told of it by a constant, of which torch.compile keeps the text
}


def kinds(module: object) -> set[str]:
    return {name for name, kind in vars(module).items() if isinstance(kind, type) and issubclass(kind, Exception)}


@cache
def trees() -> dict[str, ast.Module]:
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    return {file.relative_to(ROOT).as_posix(): ast.parse(file.read_text("utf-8")) for file in files}


def called(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")


def incomplete(tree: ast.Module) -> list[int]:
    """The lines of errors of ours that leave a part out."""
    ours, ops = kinds(hfadapt.errors), kinds(hfadapt_kernels.errors) - {"DoubleBackwardError"}
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or called(node) not in ours | ops:
            continue
        given = {keyword.arg for keyword in node.keywords}
        # a dictionary of parts, and a list of errors in one, are looked at where they are made
        if None not in given and not PARTS["hfadapt" if called(node) in ours else "kernels"] <= given:
            found.append(node.lineno)
    return found


def test_no_place_leaves_a_part_of_its_error_out():
    lines = {file: incomplete(tree) for file, tree in trees().items()}
    for file, count in PARTS_IN_TEXT.items():
        assert len(lines[file]) == count, (file, lines[file])
        del lines[file]
    assert not {file: found for file, found in lines.items() if found}


def test_errors_of_python_itself_reach_no_user():
    found: Counter[tuple[str, str]] = Counter()
    for file, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                kind = called(node.exc)
                if kind in {"ValueError", "TypeError", "KeyError", "RuntimeError", "AssertionError", "Exception"}:
                    found[file, kind] += 1
    assert not found - Counter(CAUGHT_HERE)


def test_the_walk_sees_what_is_missing():
    whole = "raise ConfigError('a', where='b', got=1, allowed=2, try_='c')"
    assert incomplete(ast.parse(whole)) == []
    assert incomplete(ast.parse(whole.replace(", try_='c'", ""))) == [1]
    assert incomplete(ast.parse("found.append(errors.DataError('a'))")) == [1]
    assert incomplete(ast.parse("ShapeError('op', 'a', expected='b', got='c')")) == [1]
