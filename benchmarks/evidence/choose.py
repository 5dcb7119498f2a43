"""docs/which-method.md: its tables, made of the same results and claims as the papers' pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .judge import REPRODUCED, interval, judge, scores_of

# Arms of one recipe over a frozen base that differ in the method alone, and what each is called; the others are held to
# the first.
FROZEN = {
    "unified.lora": "`lora`, r = 32, on queries and values",
    "unified.sequential_attention": "`bottleneck`, size 64, behind attention",
    "unified.sequential_ffn": "`bottleneck`, size 64, behind the feed-forward part",
    "unified.parallel_attention": "`parallel`, r = 64, beside attention",
    "unified.parallel_ffn": "`parallel`, r = 64, beside the feed-forward part",
    "unified.scaled_parallel_ffn": "`parallel`, r = 64, beside the feed-forward part, scaled by 4",
    "unified.prefix": "`prefix`, 64 virtual tokens",
    "unified.mam": "`mam`: prefix of 16, parallel of 48",
    "drop.standard": "`bottleneck`, size 24, behind the feed-forward part",
    "drop.one_for_all_layers": "`bottleneck`, size 24, one shared by all layers",
    "unified.parallel_attention_tiny": "`parallel`, r = 4, beside attention",
    "unified.parallel_ffn_tiny": "`parallel`, r = 4, beside the feed-forward part",
}


def methods_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """What each method reached over a frozen base, the best mean first, and its paired difference from LoRA."""
    first = next(iter(FROZEN))
    rows = []
    for arm, called in FROZEN.items():
        scores = scores_of(arm, results)
        if len(scores) < 2:
            continue
        found = interval(list(scores.values()))
        trained = next(iter(results[arm]["seeds"].values()))["trained"]
        rows.append((found.mean, f"| {called} | {trained:,} | {found} | {_against(arm, first, results)} |"))
    head = "| method | trained parameters | macro | against LoRA, paired by seed |\n|---|---|---|---|\n"
    return head + "\n".join(row for _, row in sorted(rows, reverse=True))


def _against(arm: str, first: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    if arm == first:
        return "-"
    ours, other = scores_of(arm, results), scores_of(first, results)
    found = interval([ours[seed] - other[seed] for seed in sorted(ours.keys() & other.keys(), key=int)])
    said = "no difference shown"
    if abs(found.mean) > found.half:
        said = "better" if found.mean > 0 else "worse"
    return f"{found.mean:+.1f} ± {found.half:.1f}: {said}"


def claims_table(claims: Mapping[str, Any], results: Mapping[str, Mapping[str, Any]]) -> str:
    """The claims that were reproduced here, each with its page; and how many were not, of those that were run."""
    lines, run, held = [], 0, 0
    for paper, about in claims.items():
        for claim in about["claims"]:
            found = judge(claim, results)
            run += bool(found.ours)
            if found.verdict == REPRODUCED:
                held += 1
                lines.append(f"- {found.claim}: {found.ours} ([{about['title']}](evidence/{paper}.md))")
    return f"{held} of the {run} claims that were run:\n\n" + "\n".join(lines)


def which_method(text: str, claims: Mapping[str, Any], results: Mapping[str, Mapping[str, Any]]) -> str:
    """The page with its two generated parts made anew; what stands around them is written by hand."""
    for name, made in (("methods", methods_table(results)), ("claims", claims_table(claims, results))):
        before, begin, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->\n")
        if not begin or not end:
            raise ValueError(f"docs/which-method.md has no part between <!-- {name} --> and <!-- /{name} -->")
        text = f"{before}{begin}\n{made}\n\n{end}{after}"
    return text
