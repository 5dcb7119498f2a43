"""The papers' claims on real data: trains every arm with every seed, and writes ``docs/evidence``.

``make evidence`` runs all, as many seeds at once as there are cores, one thread each; ``PART=pals`` one paper,
``SEEDS="0 1 2 3 4"`` others. What ran before is kept in ``results/``, a file an arm: an arm whose recipe was changed
since is trained anew, and a run that was cut off goes on with the seeds that are missing.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from .arms import HERE, Arm, read_arms
from .at_once import train_all
from .pages import all_pages
from .results import RESULTS, Kept, read_results


def choose(arms: Mapping[str, Arm], parts: Sequence[str]) -> list[Arm]:
    """The arms that a part names, or that begin with it where it is the name of none; all without parts."""
    names, papers = set(parts) & set(arms), tuple(part for part in parts if part not in arms)
    return [arm for name, arm in arms.items() if not parts or name in names or (papers and name.startswith(papers))]


def _stop(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _cores() -> int:
    """Those that this process may use; all, on systems that do not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main() -> int:
    """Run what was asked for, and write the pages; 1 where an arm failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="papers or arms: pals, drop, unified, smart, pals.low_rank; all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=_cores(), help="seeds at once; the cores")
    parser.add_argument("--pages", action="store_true", help="write the pages alone")
    given = parser.parse_args()
    arms, text = read_arms(), (HERE / "recipe.yaml").read_text("utf-8")
    chosen = choose(arms, given.parts)
    if not chosen:
        parser.error(f"no arm begins with {' or '.join(given.parts)}: {', '.join(arms)}")
    signal.signal(signal.SIGTERM, _stop)
    kept = Kept(RESULTS, text)
    failed = [] if given.pages else train_all(chosen, text, given.seeds, kept, jobs=given.jobs)
    for file, page in all_pages(read_results()).items():
        file.parent.mkdir(exist_ok=True)
        file.write_text(page, "utf-8")
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
