"""Training rows from streams at constant memory: millions of rows in parquet shards, read as a training reads them.

    python tools/bench_streams.py --rows 4000000 --out benchmarks/streams

Shards are written to a temporary folder a piece at a time, opened with ``load_dataset(..., streaming=True)`` and mixed
with a stream that never ends and with a task whose rows are all there. Micro-batches are tokenised and collated, as the
loader of one of ``--processes`` does it: it reads all rows, and makes batches of its share. No model is trained, which
would only take time. Resident memory and the rate are noted on the way. Nothing may grow once the first tenth is read:
that is what ``growth`` says.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from bench_path import machine

NOTES, WORDS, PIECE, MICRO_BATCH = 20, 24, 10_000, 32


def write_shards(folder: Path, rows: int, shards: int) -> int:
    """Write ``rows`` rows of text and label in ``shards`` parquet files; return their bytes."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = np.random.default_rng(0)
    schema = pa.schema({"text": pa.string(), "label": pa.int64()})
    for shard in range(shards):
        first, last = rows * shard // shards, rows * (shard + 1) // shards
        with pq.ParquetWriter(folder / f"train-{shard:05}-of-{shards:05}.parquet", schema) as writer:
            for start in range(first, last, PIECE):
                words = numbers.integers(0, 90, (min(PIECE, last - start), WORDS))
                texts = [" ".join(f"w{word}" for word in row) for row in words.tolist()]
                writer.write_table(pa.table({"text": texts, "label": (words[:, 0] % 2).tolist()}, schema))
    return sum(file.stat().st_size for file in folder.iterdir())


def endless() -> Iterator[dict[str, Any]]:
    """Rows of a stream without an end."""
    row = 0
    while True:
        yield {"text": f"w{row % 95} w{row // 95 % 95}", "label": row % 3}
        row += 1


def mixture(folder: Path, steps: int) -> Any:
    """The shards, a stream without an end and a task in memory, in turn."""
    import datasets

    from hfadapt import Classification, RoundRobin, Task, TaskMixture
    from hfadapt.testing.toy import tiny_tokenizer

    shards = [str(file) for file in sorted(folder.glob("*.parquet"))]
    tasks = [
        Task("shards", Classification(2), datasets.load_dataset("parquet", data_files=shards, split="train",
                                                                streaming=True)),
        Task("endless", Classification(3), datasets.IterableDataset.from_generator(endless)),
        Task("held", Classification(2), [{"text": f"w{row % 90}", "label": row % 2} for row in range(1000)]),
    ]  # fmt: skip
    return TaskMixture(
        tasks, tiny_tokenizer(), strategy=RoundRobin(), batch_size=MICRO_BATCH, epoch_steps=steps, epochs=1
    )


def resident() -> float:
    """MiB that this process holds now."""
    status = Path("/proc/self/status").read_text("ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")) / 1024


def read(mix: Any, steps: int, processes: int) -> dict[str, Any]:
    """Collate the micro-batches of one of the processes, and note memory and rate on the way."""
    notes: list[dict[str, Any]] = []
    start = time.perf_counter()
    every = max(1, steps // NOTES)
    for step in range(steps):
        if step // len(mix.tasks) % processes == 0:
            mix.collator([mix.train[step * MICRO_BATCH + row] for row in range(MICRO_BATCH)])
        if (step + 1) % every == 0:
            seconds = time.perf_counter() - start
            notes.append(
                {
                    "rows": (step + 1) * MICRO_BATCH,
                    "seconds": round(seconds, 1),
                    "resident MiB": round(resident(), 1),
                }
            )
    settled = [note["resident MiB"] for note in notes[len(notes) // 10 :]]
    return {
        "rows a second": round(steps * MICRO_BATCH / (time.perf_counter() - start)),
        "growth behind the first tenth, MiB": round(max(settled) - settled[0], 1),
        "on the way": notes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3_000_000, help="rows in the shards")
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--processes", type=int, default=64, help="that share the micro-batches; one of them is here")
    parser.add_argument("--out", type=Path, help="folder for streams.json")
    options = parser.parse_args()
    # every third micro-batch is of the shards
    steps = 3 * options.rows // MICRO_BATCH
    with tempfile.TemporaryDirectory() as folder:
        size = write_shards(Path(folder), options.rows, options.shards)
        found = read(mixture(Path(folder), steps), steps, options.processes)
    result = {
        "machine": machine(),
        "shards": f"{options.shards} of parquet, {options.rows:,} rows of {WORDS} words, {size / 2**20:.0f} MiB",
        "micro-batches": f"{steps:,} of {MICRO_BATCH} rows, a third of the shards, for {options.processes} processes",
        **found,
    }
    text = json.dumps(result, indent=1) + "\n"
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "streams.json").write_text(text, "utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
