"""Every model type of the transformers that is installed, built tiny, with every method: what holds and what does not.

``make sweep`` runs it, an hour on two cores. It goes on where it was stopped: what is known of this release of
transformers is read from ``results.json``; ``--again`` tries once more what was refused, failed or could not be run, of
the types and methods that are named, ``--retry`` what could not be built or run, ``--fresh`` all. Everything else stays
as it is known. The page beside it is made of those results.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import signal
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers

from hfadapt.errors import ArchitectureError
from hfadapt.testing.every_type import CannotBuild, model_types, tiny_of_type
from hfadapt.testing.type_checks import METHODS, stock_inputs, try_method

HERE = Path(__file__).resolve().parent
# Of processor time, so that what else runs on the machine changes nothing.
SECONDS = 120
GOOD = ("ok", "one adapter a batch")


class OutOfTime(BaseException):
    """A type took too long; no ``except Exception`` on the way may keep it."""


def _out_of_time(*_: Any) -> None:
    raise OutOfTime


def sweep(model_type: str, methods: Iterable[str]) -> dict[str, Any]:
    """Return what is found of one type: why it cannot be built or run, or the verdict of each method."""
    try:
        model = tiny_of_type(model_type)
    except CannotBuild as error:
        return {"stock": "cannot be built tiny", "reason": _short(str(error))}
    try:
        inputs = stock_inputs(model)
    except ArchitectureError as error:
        return {"stock": "does not run on made-up inputs", "reason": _short(str(error), 400)}
    found = {name: try_method(model, inputs, METHODS[name]()).to_dict() for name in methods}
    for verdict in found.values():
        verdict.update({"reason": _short(verdict["reason"], 400)} if "reason" in verdict else {})
    return {"stock": "runs", "inputs": {key: list(value.shape) for key, value in inputs.items()}, "methods": found}


def to_try(known: dict[str, Any], methods: Iterable[str], *, again: bool, all_of_them: bool) -> list[str]:
    """The methods to try on a type of which something is known.

    Args:
        known: What is known of the type; empty for nothing.
        methods: Those that were asked for.
        again: Only what is not known to be ok.
        all_of_them: Whatever is known, where the type was named.
    """
    if known and known["stock"] != "runs":
        return list(methods) if again or all_of_them else []
    verdicts = {name: one["verdict"] for name, one in known.get("methods", {}).items()}
    if again:
        return [name for name in methods if verdicts.get(name) not in GOOD]
    return [name for name in methods if all_of_them or name not in verdicts]


def page(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    types = results["types"]
    runs = {name: one for name, one in types.items() if one["stock"] == "runs"}
    lines = [
        f"# Every model type of transformers {results['transformers']}",
        "",
        f"Made by `make sweep` (torch {results['torch']}). {len(types)} types; {len(runs)} can be built tiny from "
        "their default config and run stock on made-up inputs. Each method is attached twice, mixed, trained, "
        "saved, loaded and detached; *one adapter a batch* says that all holds but the mixed batch, whose rows cannot "
        "be told apart somewhere in the model, which is then an error.",
        "",
        "| method | tried | ok | one adapter a batch | refused | wrong | crash |",
        "|---|---|---|---|---|---|---|",
    ]
    for method in METHODS:
        count = Counter(one["methods"][method]["verdict"] for one in runs.values() if method in one["methods"])
        cells = " | ".join(str(count[verdict]) for verdict in (*GOOD, "refused", "wrong", "crash"))
        lines.append(f"| {method} | {count.total()} | {cells} |")
    lines += [
        "",
        "An empty cell was not tried. The others say what was found when they were tried last: a run goes on where the "
        "one before stopped, `--again` tries what is not ok, and `--fresh` all.",
        "",
        "| type | " + " | ".join(METHODS) + " | reason |",
        "|---|" + "---|" * (len(METHODS) + 1),
    ]
    marks = {"ok": "yes", "one adapter a batch": "one", "refused": "-", "wrong": "WRONG", "crash": "CRASH"}
    for name, one in runs.items():
        verdicts = [one["methods"].get(method, {}) for method in METHODS]
        reasons = dict.fromkeys(v["reason"] for v in verdicts if v.get("reason"))
        cells = " | ".join(marks.get(v.get("verdict", ""), "") for v in verdicts)
        lines.append(f"| {name} | {cells} | {_short(next(iter(reasons), ''))} |")
    rest = [name for name in types if name not in runs]
    lines += ["", f"## Not tried ({len(rest)})", "", "| type | why | reason |", "|---|---|---|"]
    lines += [f"| {name} | {types[name]['stock']} | {_short(types[name]['reason'])} |" for name in rest]
    return "\n".join(lines) + "\n"


def _short(text: str, most: int = 220) -> str:
    """An error's text without the folders of the machine that it was raised on."""
    text = re.sub(r"/\S*/site-packages/", "", " ".join(text.split()))
    text = re.sub(r"(?<![\w.:/])/(?:[\w.+-]+/)+", "", text).replace("|", "/")
    return text if len(text) <= most else text[: most - 3] + "..."


def main() -> None:
    """Sweep, and write the results after every type."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", help="model types; all by default")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--retry", action="store_true", help="forget what could not be built or run")
    parser.add_argument("--again", action="store_true", help="try once more what is not ok")
    parser.add_argument("--fresh", action="store_true", help="forget what is known")
    parser.add_argument("--output", type=Path, default=HERE)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    for name in ("hfadapt", "hfadapt_plugins"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    signal.signal(signal.SIGPROF, _out_of_time)
    file = options.output / "results.json"
    results: dict[str, Any] = {"transformers": transformers.__version__, "torch": torch.__version__, "types": {}}
    if file.is_file() and not options.fresh:
        known = json.loads(file.read_text("utf-8"))
        if known["transformers"] == results["transformers"]:
            results = known
    if options.retry:
        results["types"] = {name: one for name, one in results["types"].items() if one["stock"] == "runs"}
    for model_type in options.types or model_types():
        known = results["types"].get(model_type, {})
        wanted = to_try(known, options.methods, again=options.again, all_of_them=bool(options.types))
        if not wanted:
            continue
        began = time.time()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            found: dict[str, Any] = sweep(model_type, wanted)
        except OutOfTime:  # what is known of the type stays, where it did run once
            slow = {"stock": "takes too long", "reason": f"more than {SECONDS} s"}
            found = {**known, "methods": {}} if known.get("stock") == "runs" else slow
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        if found["stock"] == "runs":
            found["methods"] = {**known.get("methods", {}), **found["methods"]}
        results["types"][model_type] = found
        verdicts = ", ".join(f"{name} {one['verdict']}" for name, one in found.get("methods", {}).items())
        print(f"{model_type}: {verdicts or found['stock']} ({time.time() - began:.1f} s)", flush=True)
        file.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", "utf-8")
    results["types"] = dict(sorted(results["types"].items()))
    (options.output / "README.md").write_text(page(results), "utf-8")


if __name__ == "__main__":
    main()
