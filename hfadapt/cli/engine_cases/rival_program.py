"""What runs in the rivals' own environment, which knows no hfadapt: builds one of them, and then times a call a line.

The first line that comes in says what to build, as JSON; the answer says the versions. Each further line is a turn; the
answer says its seconds, and what training steps need. Where something is missing the answer is an error, in words.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def bert(layers: int, hidden: int, tokens: int, classifier: bool = False) -> Any:
    """A BERT with random weights, of the sizes that hfadapt's cases have."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=1000,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 64),
        intermediate_size=4 * hidden,
        max_position_embeddings=max(64, tokens),
    )
    return (BertForSequenceClassification if classifier else BertModel)(config).eval()


def held_from_now() -> Callable[[], float | None]:
    """What says how many MiB this process has held at most since now, beyond the present; None but on Linux."""

    def kibibytes(name: str) -> int:
        status = Path("/proc/self/status").read_text("ascii")
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{name}:"))

    try:
        Path("/proc/self/clear_refs").write_text("5")  # forgets the largest size so far, that of making the model
    except OSError:
        return lambda: None
    before = kibibytes("VmRSS")
    return lambda: round((kibibytes("VmHWM") - before) / 1024, 1)


def step(layers: int, hidden: int, rows: int, tokens: int, method: str, tasks: int) -> Callable[[], dict[str, Any]]:
    """A training step of a classifier over a frozen base: ``lora``, ``bottleneck``, or ``fusion`` of several of these.

    Each call tells the parameters that are trained and the MiB that steps have held beside the model so far.
    """
    import adapters
    import torch
    from adapters import LoRAConfig, SeqBnConfig
    from adapters.composition import Fuse

    model = bert(layers, hidden, 512, classifier=True)
    adapters.init(model)
    names = [f"t{number}" for number in range(tasks if method == "fusion" else 1)]
    for name in names:
        model.add_adapter(name, config=LoRAConfig(r=8) if method == "lora" else SeqBnConfig(reduction_factor=16))
    if method == "fusion":
        model.add_adapter_fusion(Fuse(*names))
        model.train_adapter_fusion(Fuse(*names))
    else:
        model.train_adapter(names)
    model.train()
    ids, labels = torch.randint(4, 1000, (rows, tokens)), torch.randint(0, 2, (rows,))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    held = held_from_now()

    def run() -> dict[str, Any]:
        with torch.enable_grad():
            model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return {"trained": sum(p.numel() for p in trained), "MiB": held()}

    return run


def parallel(layers: int, hidden: int, rows: int, tokens: int, tasks: int, drop: int) -> Callable[[], Any]:
    """AdapterHub's ``Parallel`` over bottleneck adapters on one batch, the lowest layers without any."""
    import adapters
    import torch
    from adapters import SeqBnConfig
    from adapters.composition import Parallel

    model = bert(layers, hidden, tokens)
    adapters.init(model)
    names = [f"t{number}" for number in range(tasks)]
    for name in names:
        model.add_adapter(name, config=SeqBnConfig(reduction_factor=16, leave_out=list(range(drop))))
    model.set_active_adapters(Parallel(*names))
    model.eval()
    ids = torch.randint(4, 1000, (rows, tokens))
    return lambda: model(input_ids=ids, attention_mask=torch.ones_like(ids))


def fusion(layers: int, hidden: int, rows: int, tokens: int, tasks: int) -> Callable[[], Any]:
    """AdapterHub's ``Fuse`` over bottleneck adapters."""
    import adapters
    import torch
    from adapters import SeqBnConfig
    from adapters.composition import Fuse

    model = bert(layers, hidden, tokens)
    adapters.init(model)
    names = [f"t{number}" for number in range(tasks)]
    for name in names:
        model.add_adapter(name, config=SeqBnConfig(reduction_factor=16))
    model.add_adapter_fusion(Fuse(*names))
    model.set_active_adapters(Fuse(*names))
    model.eval()
    ids = torch.randint(4, 1000, (rows, tokens))
    return lambda: model(input_ids=ids, attention_mask=torch.ones_like(ids))


def openvino(layers: int, hidden: int, rows: int, tokens: int, threads: int) -> Callable[[], Any]:
    """The bare base in OpenVINO, weights and activations int8 as NNCF's calibration for transformers makes them."""
    import openvino
    import torch

    ids = torch.randint(4, 1000, (rows, tokens))
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    # Calibrating takes a minute and more; the environment keeps what came of it.
    version = importlib.metadata.version("openvino")
    kept = Path(sys.prefix) / f"bert-int8-{layers}-{hidden}-{tokens}-openvino-{version}.xml"
    if kept.is_file():
        small = openvino.Core().read_model(kept)
    else:
        small = _calibrated(bert(layers, hidden, tokens), example, tokens)
        openvino.save_model(small, kept.with_suffix(".part.xml"), compress_to_fp16=False)
        os.replace(kept.with_suffix(".part.bin"), kept.with_suffix(".bin"))
        os.replace(kept.with_suffix(".part.xml"), kept)
    small.reshape({one: [rows, tokens] for one in small.inputs})
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(small, "CPU", options)
    feed = {one.get_any_name(): example[_name(one)].numpy() for one in compiled.inputs}
    request = compiled.create_infer_request()
    return lambda: request.infer(feed)


def _calibrated(model: Any, example: dict[str, Any], tokens: int) -> Any:
    import nncf
    import numpy as np
    import openvino

    made = openvino.convert_model(model, example_input=example)
    numbers = np.random.default_rng(0)
    calibration = [
        {"input_ids": numbers.integers(4, 1000, (2, tokens)), "attention_mask": np.ones((2, tokens), np.int64)}
        for _ in range(4)
    ]
    return nncf.quantize(
        made, nncf.Dataset(calibration), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(calibration)
    )


def _name(port: Any) -> str:
    return next(name for name in port.get_names() if name in ("input_ids", "attention_mask"))


def main() -> None:
    """Build, and take turns until the other end closes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(**said: Any) -> None:
        answers.write(json.dumps(said) + "\n")
        answers.flush()

    told = json.loads(sys.stdin.readline())
    what, threads = told.pop("what"), told.pop("threads")
    try:
        import torch

        torch.set_num_threads(threads)
        given = {**told, "threads": threads} if what == "openvino" else told
        call = {"parallel": parallel, "fusion": fusion, "openvino": openvino, "step": step}[what](**given)
        with torch.no_grad():
            call()
    except Exception as error:
        answer(error=f"{type(error).__name__}: {error}"[:200])
        return
    packages = ("openvino", "nncf", "torch") if what == "openvino" else ("adapters", "transformers", "torch")
    answer(versions={f"{what}: {name}": importlib.metadata.version(name) for name in packages})
    for _ in sys.stdin:
        start = time.perf_counter()
        with torch.no_grad():
            told = call()
        answer(seconds=time.perf_counter() - start, **(told if what == "step" else {}))


if __name__ == "__main__":
    main()
