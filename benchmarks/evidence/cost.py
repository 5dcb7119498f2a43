"""How long the evidence takes, of the seconds in its own results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SEEDS, AT_ONCE = 3, 2


def seconds_of(result: Mapping[str, Any]) -> float:
    """Of one seed: the quickest one's, by the processor's clock where it was taken.

    The seeds of an arm do the same work; what one took longer than another, it waited for other programs.
    """
    return min(found.get("cpu_seconds", found["seconds"]) for found in result["seeds"].values())


def cost_page(arms: list[str], results: Mapping[str, Mapping[str, Any]]) -> str:
    """docs/evidence/time.md.

    Args:
        arms: All, whether they were run or not.
        results: Of those that were run.
    """
    missing = [name for name in arms if name not in results]
    papers = list(dict.fromkeys(name.partition(".")[0] for name in arms))
    lines = [
        "# How long the evidence takes",
        "",
        "Made by `make evidence` of the seconds in its results; not written by hand. An arm counts with its quickest "
        f"seed, {SEEDS} times: all seeds of an arm do the same work, and here they shared the machine with other "
        "programs. Seconds are the processor's where the results hold them, and the clock's else. `as it ran` is the "
        "sum of what all seeds took, waiting included. Seeds of one thread each run at once, as many as there are "
        "cores.",
        "",
        f"| arms | run | seconds of a seed | minutes, {SEEDS} seeds on {AT_ONCE} cores | as it ran, hours of a core |",
        "|---|---|---|---|---|",
    ]
    for paper in (*papers, ""):
        run = [name for name in arms if name.startswith(f"{paper}." if paper else "") and name in results]
        of = sum(name.startswith(f"{paper}." if paper else "") for name in arms)
        each = [seconds_of(results[name]) for name in run]
        waited = sum(found["seconds"] for name in run for found in results[name]["seeds"].values())
        spread = f"{min(each):.0f} to {max(each):.0f}" if each else ""
        minutes = f"{SEEDS * sum(each) / AT_ONCE / 60:.0f}" if each else ""
        called = f"`{paper}`" if paper else "all"
        lines.append(
            f"| {called} | {len(run)} of {of} | {spread} | {minutes} | {f'{waited / 3600:.1f}' if each else ''} |"
        )
    if missing:
        lines += ["", f"Not run yet, and not in the sums: {', '.join(f'`{name}`' for name in missing)}."]
    return "\n".join(lines) + "\n"
