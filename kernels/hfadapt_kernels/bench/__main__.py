"""``python -m hfadapt_kernels.bench [pattern ...]``: one JSON object a line, in this process."""

from __future__ import annotations

import argparse
import json

from .runner import run_here


def main() -> None:
    """Parse the arguments and print rows as they are measured."""
    parser = argparse.ArgumentParser(prog="hfadapt_kernels.bench")
    parser.add_argument("patterns", nargs="*")
    parser.add_argument("--allocator", default="default")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    run_here(
        options.patterns,
        seconds=options.seconds,
        threads=options.threads,
        allocator=options.allocator,
        on_row=lambda row: print(json.dumps(row), flush=True),
    )


if __name__ == "__main__":
    main()
