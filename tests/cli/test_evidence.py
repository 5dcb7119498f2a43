"""The evidence: every arm is a recipe that reads, verdicts follow from their rule, and the pages from the results."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from benchmarks.evidence.__main__ import choose
from benchmarks.evidence.arms import HERE, Arm, read_arms, run_arm
from benchmarks.evidence.at_once import train_all
from benchmarks.evidence.choose import FROZEN, methods_table
from benchmarks.evidence.cost import cost_page, seconds_of
from benchmarks.evidence.fusion import eight_tasks
from benchmarks.evidence.judge import interval, judge, parts_of, scores_of
from benchmarks.evidence.noise import noisy_task, noisy_words
from benchmarks.evidence.pages import all_pages, sizes
from benchmarks.evidence.results import Kept, read_results
from hfadapt.data.sources import load_splits
from hfadapt.recipes.build import known_task
from hfadapt.recipes.config import read_recipe

ARMS = read_arms()
CLAIMS = [
    claim for about in yaml.safe_load((HERE / "claims.yaml").read_text("utf-8")).values() for claim in about["claims"]
]
TEXT = (HERE / "recipe.yaml").read_text("utf-8")


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_is_a_recipe_and_changes_the_common_one(name):
    arm = ARMS[name]
    recipe = read_recipe(TEXT, arm.changes)
    assert recipe.resolved != read_recipe(TEXT).resolved or not arm.changes
    assert arm.key(TEXT) != arm.key(TEXT + "\n")


def test_claims_name_arms_and_depths_that_are_run():
    named = {claim[key] for claim in CLAIMS if "why" not in claim for key in ("arm", "than")}
    for arm in named:
        name, key, value = parts_of(arm)
        assert name in ARMS and (not key or int(value) in getattr(ARMS[name], key))
    assert {parts_of(name)[0] for name in named} == set(ARMS), "an arm that no claim reads"


@pytest.mark.parametrize(
    ("parts", "names"),
    [
        ([], set(ARMS)),
        (["smart.none"], {"smart.none"}),
        (["smart.none", "drop"], {"smart.none", *(name for name in ARMS if name.startswith("drop."))}),
        (["smart.none_1", "smart.none_"], {"smart.none_1", "smart.none_100"}),
        (["nothing"], set()),
    ],
)
def test_a_part_is_an_arm_or_the_beginning_of_several(parts, names):
    assert {arm.name for arm in choose(ARMS, parts)} == names


def results(**arms):
    return {
        name: {
            "seeds": {
                str(seed): {
                    "macro": score,
                    "depths": {"3": score / 2},
                    "noise": {"10": score / 4},
                    "pruned": {"2": score / 5},
                }
                for seed, score in enumerate(scores)
            }
        }
        for name, scores in arms.items()
    }


@pytest.mark.parametrize(
    ("rule", "ours", "verdict"),
    [
        ({"rule": "better"}, [81.0, 82.1, 80.9], "reproduced"),
        ({"rule": "better"}, [80.5, 79.0, 81.5], "not reproduced: the interval holds no difference"),
        ({"rule": "better"}, [79.0, 80.1, 78.9], "not reproduced: the other way round"),
        ({"rule": "no_worse", "points": 0.5}, [79.9, 81.0, 79.9], "reproduced"),
        ({"rule": "no_worse", "points": 0.5}, [79.0, 80.1, 78.9], "not reproduced: worse"),
        (
            {"rule": "no_worse", "points": 0.5},
            [79.0, 81.9, 79.9],
            "not reproduced: it may be more than 0.5 worse",
        ),
        ({"rule": "better"}, [81.0, 82.1], "not run yet (2 of 3 seeds)"),
        ({"rule": "better", "why": "no data"}, [], "not testable here: no data"),
    ],
)
def test_a_verdict_follows_from_paired_differences(rule, ours, verdict):
    claim = {"claim": "c", "theirs": "t", "arm": "a", "than": "b", **rule}
    assert judge(claim, results(a=ours, b=[80.0, 81.0, 80.0])).verdict == verdict


@pytest.mark.parametrize(("arm", "times"), [("a@3", 2), ("a~10", 4), ("a^2", 5)])
def test_a_depth_a_share_of_noise_and_a_pruned_fusion_are_scored_for_themselves(arm, times):
    claim = {"claim": "c", "theirs": "t", "arm": arm, "than": "b", "rule": "better"}
    ours = [times * score for score in (81.0, 82.1, 80.9)]
    assert judge(claim, results(a=ours, b=[80.0, 81.0, 80.0])).ours.endswith("+1.0 ± 0.2")


def test_noise_replaces_its_share_of_the_words_by_words_of_the_column():
    texts = [f"a{n} b{n} c{n}  d{n}" for n in range(500)]
    words = {word for text in texts for word in text.split()}
    found = noisy_words(texts, 0.3, random.Random(0))
    pairs = [
        (old, new)
        for before, after in zip(texts, found, strict=True)
        for old, new in zip(before.split(), after.split(), strict=True)
    ]
    assert all(new in words for _, new in pairs)
    assert sum(old != new for old, new in pairs) / len(pairs) == pytest.approx(0.3, abs=0.03)
    assert noisy_words(texts, 0.3, random.Random(0)) == found != noisy_words(texts, 0.3, random.Random(1))
    assert noisy_words(texts, 0.0, random.Random(0)) == [" ".join(text.split()) for text in texts]
    assert noisy_words([], 0.5, random.Random(0)) == []


def test_a_noisy_task_differs_in_its_test_texts_alone():
    task = known_task("wn_relation")
    clean, noisy = load_splits(task), load_splits(noisy_task(task, 0.1))
    assert noisy["train"] is clean["train"] and noisy["validation"] is clean["validation"]
    assert noisy["test"]["label"] == clean["test"]["label"]
    for column in ("text", "text_pair"):
        same = sum(a == b for a, b in zip(noisy["test"][column], clean["test"][column], strict=True))
        assert 0 < same < len(clean["test"])
    assert load_splits(noisy_task(task, 0.1))["test"]["text"] == noisy["test"]["text"]


def test_the_interval_is_students():
    scipy = pytest.importorskip("scipy.stats")
    for values in ([3.0, 3.1], [1.0, 2.0, 4.0], [1.0, 2.0, 4.0, 8.0, 9.0]):
        found = interval(values)
        low, high = scipy.t.interval(0.95, len(values) - 1, loc=found.mean, scale=scipy.sem(values))
        assert found.mean == pytest.approx((low + high) / 2) and found.half == pytest.approx((high - low) / 2, rel=1e-4)


def test_results_are_of_the_arms_as_they_are_and_the_pages_are_made_of_them():
    found = read_results()
    for name, result in found.items():
        assert result["recipe"] == ARMS[name].key(TEXT), f"{name}: run anew, its recipe was changed"
    for file, page in all_pages(found).items():
        assert file.read_text("utf-8") == page, f"{file.name}: make evidence"


def test_what_the_page_on_methods_says_in_words_is_what_the_results_say():
    found = read_results()
    assert ": better" not in methods_table(found), "Start with `lora`"
    means = {arm: interval(list(scores_of(arm, found).values())) for arm in found if arm.startswith("pals.")}

    def spread(*arms):
        return max(means[arm].mean for arm in arms) - min(means[arm].mean for arm in arms)

    functions, samplings = (
        ("pals.shared", "pals.low_rank", "pals.top"),
        ("pals.proportional", "pals.sqrt", "pals.round_robin"),
    )
    assert spread("pals.pal", *samplings) > spread("pals.pal", *functions)
    for sampling in ("pals.sqrt", "pals.round_robin"):
        claim = {"claim": "", "theirs": "", "arm": "pals.pal", "than": sampling, "rule": "better"}
        assert "no difference" in judge(claim, found).verdict
        assert means[sampling].half < means["pals.pal"].half
    for arm in ("unified.scaled_parallel_ffn", "unified.mam"):
        assert sum(seed["scores"]["sms_spam"] == 0 for seed in found[arm]["seeds"].values()) == 1
    assert all(change.startswith("method=") for arm in FROZEN for change in ARMS[arm].changes)


@pytest.mark.parametrize("heads_alone", [False, True])
def test_an_arm_is_trained_once_a_seed_and_anew_when_its_recipe_was_changed(recipe, tmp_path, heads_alone):
    text = recipe.read_text("utf-8")
    changes = ("training.num_train_epochs=1", "mixing.epoch_steps=2", f"train_base={heads_alone}")
    changes += () if heads_alone else ("adapter_drop=1",)
    arm = Arm("drop.toy", changes, heads_alone, () if heads_alone else (1, 2), (50,) if heads_alone else ())
    results = tmp_path / "results"
    for seeds in ([0], [0, 1]):
        assert train_all([arm], text, seeds, Kept(results, text), jobs=2) == []
    file = results / "drop.toy.json"
    found = json.loads(file.read_text("utf-8"))
    assert list(found["seeds"]) == ["0", "1"] and found["machine"]["torch"] and found["recipe"] == arm.key(text)
    assert found["machine"]["threads"] == 1
    for one in found["seeds"].values():
        assert one["steps"] == 2 and one["macro"] == pytest.approx(sum(one["scores"].values()) / 3)
        assert set(one.get("depths", ())) == ({"1", "2"} if not heads_alone else set())
        assert set(one.get("noise", ())) == ({"50"} if heads_alone else set())
        assert one["cpu_seconds"] > 0
    assert list(results.iterdir()) == [file]
    changed = Kept(results, text + "\n")
    assert not changed.has(arm, 1)
    train_all([arm], text + "\n", [1], changed, jobs=1)
    assert set(json.loads(file.read_text("utf-8"))["seeds"]) == {"1"}


def test_an_arm_that_fails_is_named_and_the_others_go_on(recipe, tmp_path, capfd):
    text = recipe.read_text("utf-8")
    good = ("training.num_train_epochs=1", "mixing.epoch_steps=1")
    arms = [Arm("drop.bad", ("method={method: nonesuch}",)), Arm("drop.good", good)]
    kept = Kept(tmp_path, text)
    assert train_all(arms, text, [0], kept, jobs=2) == ["drop.bad, seed 0: ended with 1"]
    assert kept.has(arms[1], 0) and not kept.has(arms[0], 0)
    assert "drop.bad, seed 0: ended with 1" in capfd.readouterr().err


def test_seeds_that_end_at_once_are_all_kept_and_those_kept_are_not_trained_again(tmp_path, monkeypatch):
    arm = Arm("drop.toy", ())
    kept = Kept(tmp_path, TEXT)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: kept.keep(arm, seed, {"macro": seed}, {}), range(40)))
    assert all(kept.has(arm, seed) for seed in range(40)) and not kept.has(arm, 40)
    monkeypatch.setattr("subprocess.Popen", None)
    assert train_all([arm], TEXT, range(40), kept, jobs=2) == []


def test_all_arms_of_smart_are_of_one_size_and_its_page_says_it():
    assert sizes("smart") == "150 steps of 8 rows, scored on 200 test rows a task"
    plain = "200 steps of 16 rows, scored on 400 test rows a task"
    assert sizes("pals") == sizes("unified") == plain
    assert sizes("adapterdrop") == (
        f"{plain}; `drop.fusion` and `drop.fusion_robust`: 240 steps of 16 rows, then 40 for each of three fusions, "
        "scored on 200 test rows a task"
    )


def test_eight_tasks_are_made_of_the_three_without_touching_their_texts():
    three = [known_task(name) for name in ("wn_relation", "sms_spam", "tweet_valence")]
    eight = {task.name: load_splits(task) for task in eight_tasks(three)}
    assert len(eight) == 8 and list(eight)[:3] == ["wn_relation", "sms_spam", "tweet_valence"]
    whole, valence = eight["wn_relation"]["train"], eight["tweet_valence"]["train"]
    for number, name in enumerate(("wn_hypernym", "wn_cohyponym", "wn_neither")):
        rows = eight[name]["train"]
        assert rows["text"] == whole["text"] and rows["label"] == [int(label == number) for label in whole["label"]]
    for name, test in (
        ("valence_positive", lambda label: label > 0),
        ("valence_strong", lambda label: abs(label) > 1.5),
    ):
        share = sum(eight[name]["train"]["label"]) / len(valence)
        assert 0.25 < share < 0.75, "neither class is rare"
        assert eight[name]["train"]["label"] == [int(test(label)) for label in valence["label"]]


@pytest.mark.parametrize("robust", [False, True])
def test_a_fusion_of_eight_is_trained_for_each_task_and_pruned(tmp_path, robust):
    limits = tuple(
        f"tasks.{name}.limit={{train: 40, validation: 8, test: 16}}"
        for name in ("wn_relation", "sms_spam", "tweet_valence")
    )
    changes = (*ARMS["drop.fusion"].changes, *limits, "training.num_train_epochs=1", "mixing.epoch_steps=8")
    arm = Arm("drop.toy", (*changes, "mixing.batch_size=2"), False, (3,), (), 2, robust, (2,))
    assert arm.key(TEXT) != Arm("drop.toy", arm.changes, False, (3,)).key(TEXT)
    found = run_arm(arm, TEXT, 0, str(tmp_path))
    assert found["steps"] == 8 + 3 * 2 and set(found["depths"]) == {"3"} and set(found["pruned"]) == {"2"}
    assert found["macro"] == pytest.approx(sum(found["scores"].values()) / 3)
    # The fusion's three matrices of 384 with two biases a layer, and the head that reads [u, v, |u - v|, u * v].
    assert found["trained"] == 6 * (3 * 384**2 + 2 * 384) + 4 * 384 * 3 + 3
    for layers in found["kept"].values():
        assert len(layers["2"]) == 6 and all(len(set(each.split(" and "))) == 2 for each in layers["2"])


def test_the_cost_counts_the_quickest_seed_and_names_what_was_not_run():
    seeds = {"0": {"seconds": 300.0}, "1": {"seconds": 120.0}, "2": {"seconds": 900.0, "cpu_seconds": 100.0}}
    found = {"pals.a": {"seeds": seeds}, "drop.b": {"seeds": {"0": {"seconds": 60.0}}}}
    assert seconds_of(found["pals.a"]) == 100.0
    page = cost_page(["pals.a", "drop.b", "drop.c"], found)
    assert "| `pals` | 1 of 1 | 100 to 100 | 2 | 0.4 |" in page
    assert "| all | 2 of 3 | 60 to 100 | 4 | 0.4 |" in page
    assert page.endswith("not in the sums: `drop.c`.\n")
