"""Seeds of arms trained at once, a process of one thread each: one that dies takes no other with it."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from .arms import Arm, read_arm, run_arm
from .results import Kept

ROOT = Path(__file__).resolve().parents[2]


def train_all(arms: Sequence[Arm], text: str, seeds: Sequence[int], kept: Kept, *, jobs: int) -> list[str]:
    """Train what is missing, and keep each seed as it ends.

    Args:
        arms: To train.
        text: The common recipe.
        seeds: Of each arm; a seed of every arm before the next seed, so that what was cut off is of use.
        kept: What ran before.
        jobs: Processes at once.

    Returns:
        The arms and seeds that failed; the others went on.
    """
    missing = [(arm, seed) for seed in seeds for arm in arms if not kept.has(arm, seed)]
    running: set[subprocess.Popen[bytes]] = set()
    starts, stopped = threading.Lock(), threading.Event()
    failed: list[str] = []

    def one(arm: Arm, seed: int, folder: Path) -> None:
        order, answer = folder / f"{arm.name}.{seed}.order", folder / f"{arm.name}.{seed}.json"
        order.write_text(json.dumps({"arm": asdict(arm), "text": text, "seed": seed}), "utf-8")
        print(f"{arm.name}, seed {seed}", flush=True)
        with starts:  # none comes up behind the one that stops all
            if stopped.is_set():
                return
            process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.at_once", str(order), str(answer)],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            running.add(process)
        code = process.wait()
        running.discard(process)
        if code or not answer.is_file():
            failed.append(f"{arm.name}, seed {seed}: ended with {code}")
            print(failed[-1], file=sys.stderr, flush=True)
            return
        found = json.loads(answer.read_text("utf-8"))
        kept.keep(arm, seed, found["result"], found["machine"])
        result = found["result"]
        print(f"{arm.name}, seed {seed}: macro {result['macro']:.1f} in {result['seconds']:.0f} s", flush=True)

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(max(1, jobs)) as pool:
        waiting = [pool.submit(one, arm, seed, Path(folder)) for arm, seed in missing]
        try:
            for each in waiting:
                each.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            with starts:
                stopped.set()
                for process in list(running):
                    process.kill()
            raise
    return failed


def main(order: str, answer: str) -> None:
    """Train one seed of one arm, in this process, and write its result whole or not at all."""
    from hfadapt.recipes.results import machine

    logging.getLogger("hfadapt").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore")
    given = json.loads(Path(order).read_text("utf-8"))
    start = time.process_time()
    # Of its own, for others train at the same time; in the parent's, which clears up behind a process that was killed.
    with tempfile.TemporaryDirectory(dir=Path(answer).parent) as folder:
        result = run_arm(read_arm(given["arm"]), given["text"], given["seed"], folder)
    result["cpu_seconds"] = round(time.process_time() - start, 1)
    writing = Path(answer + ".writing")
    writing.write_text(json.dumps({"result": result, "machine": machine()}), "utf-8")
    os.replace(writing, answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
