"""The files of a new plugin's distribution: a method that runs, to be made another's."""

from __future__ import annotations

__all__ = ["files_of_a_plugin"]

_PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "hfadapt-plugin-{dashed}"
version = "0.1.0"
description = "The method {name} as a plugin of hfadapt"
requires-python = ">=3.10"
dependencies = ["hfadapt>={version}"]

# The whole connection to hfadapt: a module whose hooks are called.
[project.entry-points.hfadapt]
{name} = "hfadapt_{name}"

[tool.setuptools]
packages = ["hfadapt_{name}"]
"""

_MODULE = '''\
"""The method ``{name}``: a learned shift of each feed-forward layer's output, to be made another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from hfadapt import Capabilities, Delta, Method, MethodConfig, Place, hookimpl, select_layers
from hfadapt.method.sites import ffn_output

__all__ = ["{Name}Config", "{Name}Delta", "{Name}Method", "register_methods"]


@dataclass(frozen=True)
class {Name}Config(MethodConfig):
    """Options of the method; ``layers`` and ``stack`` are inherited.

    Args:
        scale: Factor of the learned vector.
    """

    method: ClassVar[str] = "{name}"

    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale == 0:
            self.fail("scale", self.scale, "any number but 0, which would switch the delta off")


class {Name}Delta(Delta):
    """``value + scale * b``, one vector b an adapter."""

    def init_weights(self, weights: Any, config: Any, shared: Any) -> None:
        """Make the parameters of one adapter; zeros start from the base."""
        weights.shift = self.parameter([self.site.width])

    def forward(self, value: Tensor, source: Tensor, rows: Any) -> Tensor:
        """Change ``value``, [B, T, D], row by row: a row without an adapter keeps its bits."""
        vectors = [self.config(name).scale * self.adapters[name].shift for name in rows.names]
        return value + rows.gather(vectors, missing=0.0).unsqueeze(1)


class {Name}Method(Method):
    """Says which deltas go where."""

    name = "{name}"
    config_class = {Name}Config
    capabilities = Capabilities()
    family = "scale"
    paper = "none yet"
    summary = "a learned shift of each feed-forward output"

    def place(self, config: Any, arch: Any, model: Any) -> Iterator[Place]:
        """One delta behind each feed-forward part; ``hfadapt.method.sites`` lists the other slots."""
        for layer in select_layers(config, arch):
            yield Place(ffn_output(layer), {Name}Delta)


@hookimpl
def register_methods(registry: Any) -> None:
    """Make the method known under its name."""
    registry.add("{name}", {Name}Method())
'''

_TEST = '''\
"""The method passes hfadapt's conformance suite on every architecture."""

from __future__ import annotations

import pytest
from hfadapt_{name} import {Name}Config

from hfadapt import plugins
from hfadapt.testing import conformance


def test_the_entry_point_registers_the_method() -> None:
    assert "{name}" in plugins.methods()


@pytest.mark.parametrize("case", conformance.cases([{Name}Config()]), ids=str)
@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
def test_conformance(case: conformance.Case, check) -> None:
    check(case)
'''

_README = """\
# hfadapt-plugin-{dashed}

The method `{name}` for [hfadapt](https://pypi.org/project/hfadapt).

```sh
pip install -e .
hfadapt plugins show {name}
pytest
```

```python
import hfadapt

hfadapt.attach(model, "{name}")
```
"""


def files_of_a_plugin(name: str, version: str) -> dict[str, str]:
    """Path to text of every file.

    Args:
        name: Of the method, and of its module behind ``hfadapt_``: a Python name in lower case.
        version: Of hfadapt, the least that the plugin asks for.
    """
    words = {
        "{name}": name,
        "{dashed}": name.replace("_", "-"),
        "{Name}": "".join(part.capitalize() for part in name.split("_")),
        "{version}": version,
    }

    def filled(text: str) -> str:
        for word, value in words.items():
            text = text.replace(word, value)
        return text

    templates = {
        "pyproject.toml": _PYPROJECT,
        "README.md": _README,
        f"hfadapt_{name}/__init__.py": _MODULE,
        f"tests/test_{name}.py": _TEST,
    }
    return {path: filled(text) for path, text in templates.items()}
