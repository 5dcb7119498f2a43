"""Imports of ``hfadapt`` run one way: from the rooms above to those below, and never in a circle."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"hfadapt": ROOT, "hfadapt_kernels": ROOT / "kernels", "hfadapt_plugins": ROOT / "plugins"}


def name_of(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(package: str) -> dict[str, Path]:
    root = PACKAGES[package]
    return {name_of(path, root): path for path in sorted((root / package).rglob("*.py"))}


def imports(name: str, path: Path, known: set[str]) -> set[str]:
    """The modules that a module imports, wherever in it: for type checkers and inside functions too."""
    found = set()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            home = ".".join([*parts, *([node.module] if node.module else [])])
            found |= {f"{home}.{a.name}" if f"{home}.{a.name}" in known else home for a in node.names}
    return (found & known) - {name}


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that reach one another (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(arrows[node]):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            at = stack.index(node)
            group, stack[at:] = stack[at:], []
            if len(group) > 1:
                groups.append(sorted(group))

    for node in sorted(arrows):
        if node not in index:
            visit(node)
    return groups


def without_doors(arrows: dict[str, set[str]], paths: dict[str, Path]) -> dict[str, set[str]]:
    """Without the arrows from a package's ``__init__`` to its own modules: a door shows what stands in the room."""
    return {
        name: {other for other in others if paths[name].name != "__init__.py" or not other.startswith(f"{name}.")}
        for name, others in arrows.items()
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_no_circle_among_modules(package):
    paths = modules(package)
    arrows = {name: imports(name, path, set(paths)) for name, path in paths.items()}
    assert circles(without_doors(arrows, paths)) == []


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c"]]
