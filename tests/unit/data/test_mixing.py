"""Mixing strategies and the schedule they make."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hfadapt
from hfadapt.data import Layout, Schedule, make_strategy
from hfadapt.errors import ConfigError, RegistryError

SIZES = (1000, 100, 10)
ALL = [hfadapt.RoundRobin, hfadapt.Proportional, hfadapt.SquareRoot, hfadapt.Annealed, hfadapt.Temperature]


def schedule(strategy=None, form="one_task", sizes=SIZES, layout=None, **options):
    layout = layout or Layout(batch_size=4, accumulation=2, processes=2, epochs=3)
    return Schedule(tuple(sizes), strategy or hfadapt.Annealed(), form, layout, **options)


@pytest.mark.parametrize("strategy", ALL)
@pytest.mark.parametrize("epoch", [1, 2, 5])
def test_probabilities_sum_to_one_and_are_positive(strategy, epoch):
    p = strategy().probabilities(SIZES, epoch, 5)
    assert p.sum() == pytest.approx(1, abs=1e-12)
    assert (p > 0).all()


def test_annealed_with_one_epoch_is_proportional():
    np.testing.assert_array_equal(
        hfadapt.Annealed().probabilities(SIZES, 1, 1), hfadapt.Proportional().probabilities(SIZES, 1, 1)
    )


def test_annealed_runs_from_one_to_its_end_and_stays_there():
    annealed = hfadapt.Annealed()
    assert [annealed.alpha(e, 5) for e in (1, 3, 5, 9)] == pytest.approx([1.0, 0.6, 0.2, 0.2])


def test_temperature_is_proportional_at_one_and_flat_at_infinity():
    p = hfadapt.Temperature(1.0).probabilities(SIZES, 1, 1)
    np.testing.assert_allclose(p, np.array(SIZES) / sum(SIZES))
    np.testing.assert_allclose(hfadapt.Temperature(1e9).probabilities(SIZES, 1, 1), [1 / 3] * 3, atol=1e-6)
    np.testing.assert_allclose(hfadapt.Temperature(1.0, limit=10).probabilities(SIZES, 1, 1), [1 / 3] * 3)


def test_round_robin_trains_every_task_in_turn_over_epochs():
    plan = schedule(hfadapt.RoundRobin(), epoch_steps=4)
    assert plan.draws(0).tolist() == [0, 1, 2, 0]
    assert plan.draws(1).tolist() == [1, 2, 0, 1]


@pytest.mark.parametrize("options", [{"end": 1.5}, {"end": -0.1}])
def test_annealed_refuses_an_end_outside_zero_to_one(options):
    with pytest.raises(ConfigError, match=r"0 <= end <= 1"):
        hfadapt.Annealed(**options)


def test_strategies_come_by_name_with_a_suggestion_for_typos():
    assert make_strategy("round_robin") == hfadapt.RoundRobin()
    assert make_strategy(None) == hfadapt.Annealed()
    with pytest.raises(RegistryError, match="annealed"):
        make_strategy("anealed")
    with pytest.raises(ConfigError, match="not a mixing strategy"):
        make_strategy(hfadapt.Annealed)


def test_one_task_batches_hold_one_task_over_ranks_and_accumulated_batches():
    plan = schedule(hfadapt.SquareRoot())
    for epoch in range(3):
        tasks, _ = plan.index(epoch)
        assert len(tasks) == plan.steps * plan.layout.step_rows == plan.rows
        blocks = tasks.reshape(plan.steps, plan.layout.step_rows)
        assert (blocks == blocks[:, :1]).all()


def test_mixed_batches_draw_each_row_alone():
    plan = schedule(hfadapt.RoundRobin(), form="mixed")
    tasks, _ = plan.index(0)
    assert tasks[:6].tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("form", ["one_task", "mixed"])
def test_no_row_comes_again_before_all_rows_of_its_task_came_also_across_epochs(form):
    plan = schedule(hfadapt.SquareRoot(), form=form, sizes=(200, 50, 7), epoch_steps=9)
    seen = {task: [] for task in range(3)}
    for epoch in range(6):
        tasks, rows = plan.index(epoch)
        for task, row in zip(tasks, rows, strict=True):
            seen[task].append(row)
    for task, size in enumerate(plan.sizes):
        for start in range(0, len(seen[task]) - size + 1, size):
            assert sorted(seen[task][start : start + size]) == list(range(size))


def test_rows_come_in_a_new_order_each_pass():
    plan = schedule(hfadapt.Proportional(), sizes=(64,), layout=Layout(8, 1, 1, 3))
    assert plan.index(0)[1].tolist() != plan.index(1)[1].tolist()


def test_the_same_seed_gives_the_same_epochs_in_any_order_of_asking():
    late = schedule(seed=5).index(2)
    plan = schedule(seed=5)
    for epoch in range(2):
        plan.index(epoch)
    np.testing.assert_array_equal(plan.index(2), late)
    assert not np.array_equal(schedule(seed=6).index(2), late)


def test_bucketing_puts_like_lengths_into_a_step_and_keeps_every_row():
    lengths = np.random.default_rng(0).integers(4, 60, 512)
    layout = Layout(16, 1, 1, 1)
    plain = Schedule((512,), hfadapt.Proportional(), "one_task", layout, lengths=None)
    bucketed = Schedule((512,), hfadapt.Proportional(), "one_task", layout, lengths=(lengths,), bucket_steps=8)

    def padded(plan):
        rows = plan.index(0)[1].reshape(-1, 16)
        return (lengths[rows].max(axis=1) * 16).sum()

    assert sorted(bucketed.index(0)[1]) == list(range(512))
    assert padded(bucketed) < 0.75 * padded(plain)


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    batch=st.integers(1, 5),
    accumulation=st.integers(1, 3),
    processes=st.integers(1, 3),
    form=st.sampled_from(["one_task", "mixed"]),
    strategy=st.sampled_from(ALL),
    steps=st.none() | st.integers(1, 6),
    bucket=st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_any_schedule_stays_inside_its_data(sizes, batch, accumulation, processes, form, strategy, steps, bucket):
    lengths = tuple(np.arange(size) % 7 for size in sizes)
    layout = Layout(batch, accumulation, processes, 2)
    plan = Schedule(tuple(sizes), strategy(), form, layout, steps, 1, lengths, bucket)
    for epoch in range(3):
        tasks, rows = plan.index(epoch)
        assert len(tasks) == len(rows) == plan.rows
        assert (rows >= 0).all() and (rows < np.asarray(sizes)[tasks]).all()
        np.testing.assert_array_equal(plan.counts(epoch), np.bincount(tasks, minlength=len(sizes)))


def test_epoch_has_as_many_steps_as_all_rows_fill_unless_told():
    assert schedule().steps == sum(SIZES) // 16
    assert schedule(epoch_steps=3).steps == 3
    assert schedule(sizes=(3,)).steps == 1


def test_draws_follow_the_probabilities():
    plan = schedule(hfadapt.SquareRoot(), sizes=(900, 100), epoch_steps=4000, layout=Layout(1, 1, 1, 1))
    share = np.bincount(plan.draws(0), minlength=2) / 4000
    np.testing.assert_allclose(share, [0.75, 0.25], atol=0.03)
