"""``hfadapt doctor``."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

from ..errors import releases
from .output import json_option, print_json, print_table
from .plugins import plugin_records

__all__ = ["doctor"]

PACKAGES = (
    "hfadapt",
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "peft",
    "pluggy",
    "safetensors",
    "triton",
    "matplotlib",
)


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Show versions, devices, and which kernel serves which op here, with the reason for every other one.

    Versions stand beside those on which the tests last passed; of newer ones it warns.
    """
    found = {
        "versions": _versions(),
        "tested": releases.tested(),
        "newer than tested": list(releases.newer_than_tested()),
        "machine": _machine(),
        "kernels": _kernels(),
        "plugins": _plugins(),
    }
    if as_json:
        print_json(found)
        return
    rows = [(name, here, releases.tested().get(name)) for name, here in found["versions"].items()]
    print_table(["package", "version", "tests last passed on"], rows)
    for name, (here, known) in releases.newer_than_tested().items():
        click.echo(f"warning: {name} {here} is newer than {known}, on which the tests last passed", err=True)
    print_table(["machine", ""], found["machine"].items())
    rows = [
        (row["op"], row["device"], row["backend"], _mark(row), row["reason"] or row["detail"] or None)
        for row in found["kernels"]
    ]
    print_table(["op", "device", "backend", "", "why not, or how"], rows)
    print_table(["plugin", "from", "status", "error"], found["plugins"])


def _mark(row: dict[str, Any]) -> str:
    return "used" if row["chosen"] else "runs" if row["runs"] else "off"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _machine() -> dict[str, str]:
    import torch

    from hfadapt_kernels import native
    from hfadapt_kernels.int8_ways import int8_instruction

    from ..recipes.results import machine

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "device": machine()["device"],
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "GPUs": ", ".join(gpus) or "none",
        "C++ kernels": native.isa() or f"off: {native.why_not()}",
        "int8 products": int8_instruction() or "through torch, in float64",
        **{name: value for name, value in os.environ.items() if name.startswith("HFADAPT_")},
    }


def _kernels() -> list[dict[str, Any]]:
    import hfadapt_kernels  # noqa: F401  (registers the ops)
    from hfadapt_kernels.backend import explain

    return explain()


def _plugins() -> list[tuple[str, str, str, str | None]]:
    return [(r.name, f"{r.origin} {r.version}".rstrip(), r.status, r.error or None) for r in plugin_records()]
