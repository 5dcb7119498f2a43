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


@pytest.mark.parametrize("bucket", [None, 1, 4, 64])
@pytest.mark.parametrize("form", ["one_task", "mixed"])
def test_no_row_comes_again_before_all_rows_of_its_task_came_also_across_epochs(form, bucket):
    sizes, options = (200, 50, 7), {}
    if bucket is not None:
        options = {"lengths": some_lengths(sizes, texts=(2, 1, 1)), "bucket_steps": bucket}
    plan = schedule(hfadapt.SquareRoot(), form=form, sizes=sizes, epoch_steps=9, **options)
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


def some_lengths(sizes, texts):
    stream = np.random.default_rng(1)
    return tuple(stream.integers(4, 60, (size, count)) for size, count in zip(sizes, texts, strict=True))


def padded(plan, epochs=1):
    """Numbers that a batch holds, each text padded alone, for each real token."""
    held = real = 0
    for epoch in range(epochs):
        tasks, rows = plan.index(epoch)
        widths = np.zeros((len(tasks), 2), np.int64)
        for place, (task, row) in enumerate(zip(tasks, rows, strict=True)):
            own = np.atleast_1d(plan.lengths[task][row])
            widths[place, : len(own)] = own
        batches = widths.reshape(-1, plan.layout.batch_size, 2)
        held += batches.max(axis=1).sum() * plan.layout.batch_size
        real += widths.sum()
    return held / real


@pytest.mark.parametrize("layout", [Layout(16, 1, 1, 3), Layout(8, 2, 2, 3)], ids=["one process", "two of two"])
@pytest.mark.parametrize("texts", [(1, 1, 1), (2, 1, 1), (2, 2, 2)], ids=["single", "some pairs", "pairs"])
@pytest.mark.parametrize("form", ["one_task", "mixed"])
def test_bucketing_pads_little_in_every_form_and_epoch(form, texts, layout):
    sizes = (4000, 1003, 501)
    lengths = some_lengths(sizes, texts)
    plan = schedule(hfadapt.Proportional(), form, sizes, layout, lengths=lengths)
    random = padded(schedule(hfadapt.Proportional(), form, sizes, layout, lengths=lengths, bucket_steps=1), epochs=3)
    assert padded(plan, epochs=3) - 1 < 0.3 * (random - 1), "most of the padding of random batches can be avoided"


def test_lengths_of_one_text_may_be_one_dimensional():
    lengths = some_lengths((512,), (1,))
    layout = Layout(16, 1, 1, 1)
    flat = schedule(sizes=(512,), layout=layout, lengths=(lengths[0][:, 0],))
    np.testing.assert_array_equal(flat.index(0), schedule(sizes=(512,), layout=layout, lengths=lengths).index(0))
    assert sorted(flat.index(0)[1]) == list(range(512))


def test_batches_in_turn_are_padded_less_too():
    sizes = (4000, 1003, 501)
    options = {"layout": Layout(16, 1, 1, 3), "lengths": some_lengths(sizes, (1, 1, 1)), "form": "mixed"}
    random = schedule(hfadapt.RoundRobin(), sizes=sizes, bucket_steps=1, **options)
    assert padded(schedule(hfadapt.RoundRobin(), sizes=sizes, **options)) < 1.1 < 1.5 < padded(random)


@pytest.mark.parametrize("strategy", [hfadapt.Annealed(), hfadapt.RoundRobin()])
def test_a_window_of_mixed_steps_holds_what_was_drawn_for_it(strategy):
    lengths = some_lengths(SIZES, (2, 1, 1))
    layout = Layout(4, 2, 2, 3)
    plain = schedule(strategy, "mixed", layout=layout, epoch_steps=20)
    sorted_ = schedule(strategy, "mixed", layout=layout, epoch_steps=20, lengths=lengths, bucket_steps=5)
    for epoch in range(4):
        np.testing.assert_array_equal(sorted_.draws(epoch), plain.draws(epoch))
        (tasks, rows), (drawn, drawn_rows) = sorted_.index(epoch), plain.index(epoch)
        for start in range(0, plain.rows, 5 * layout.step_rows):
            here = slice(start, start + 5 * layout.step_rows)
            assert sorted(zip(tasks[here], rows[here], strict=True)) == sorted(
                zip(drawn[here], drawn_rows[here], strict=True)
            )
        # what goes in turn still does
        assert np.array_equal(tasks, drawn) == isinstance(strategy, hfadapt.RoundRobin)
        assert not np.array_equal(rows, drawn_rows)


def test_each_steps_share_of_a_task_stays_its_probability():
    """Over many epochs no place in the run sees more of a task than was asked for: windows are in random order."""
    sizes, layout = (300, 300), Layout(8, 1, 1, 400)
    lengths = (np.full(300, 5), np.full(300, 50))
    plan = schedule(hfadapt.Proportional(), "mixed", sizes, layout, epoch_steps=4, lengths=lengths)
    counted = np.stack([plan.index(epoch)[0].reshape(4, 8).mean(1) for epoch in range(400)])
    assert set(np.unique(counted[:, 0])) > {0.0, 1.0}
    np.testing.assert_allclose(counted.mean(0), 0.5, atol=0.07)


def test_a_run_draws_every_epoch_once_however_many_there_are(monkeypatch):
    drawn, plan = [], schedule(hfadapt.Proportional(), "one_task", (30, 10), Layout(8, 1, 1, 40))
    counts = Schedule.counts
    monkeypatch.setattr(Schedule, "counts", lambda self, epoch: drawn.append(epoch) or counts(self, epoch))
    late = plan.index(30)[1]
    for epoch in range(31):
        last = plan.index(epoch)[1]
    assert drawn == list(range(30)) and np.array_equal(late, last)


@pytest.mark.parametrize("form", ["one_task", "mixed"])
def test_bucketing_is_drawn_from_the_seed_alone(form):
    options = {"form": form, "lengths": some_lengths(SIZES, (2, 1, 1)), "layout": Layout(4, 1, 1, 3)}
    asked = schedule(**options, seed=3)
    for epoch in (2, 0):
        asked.index(epoch)
    np.testing.assert_array_equal(asked.index(1), schedule(**options, seed=3).index(1))
    assert not np.array_equal(asked.index(1), schedule(**options, seed=4).index(1))


@pytest.mark.parametrize("form", ["one_task", "mixed"])
def test_a_step_holds_the_same_rows_on_any_number_of_processes(form):
    """So a run that is resumed on others goes on with the same steps, and more processes train the same."""
    sizes = (301, 100, 10)
    steps = []
    for layout in (Layout(16, 1, 1, 3), Layout(4, 2, 2, 3), Layout(4, 1, 4, 3), Layout(2, 8, 1, 3)):
        plan = schedule(hfadapt.SquareRoot(), form, sizes, layout, lengths=some_lengths(sizes, (2, 2, 1)))
        both = np.stack([np.stack(plan.index(epoch), -1).reshape(-1, 16, 2) for epoch in range(3)])
        steps.append([sorted(map(tuple, step)) for step in both.reshape(-1, 16, 2)])
    assert steps[0] == steps[1] == steps[2] == steps[3]


def test_what_is_trained_in_part_of_an_epoch_is_what_the_index_holds():
    options = {"form": "mixed", "lengths": some_lengths(SIZES, (2, 1, 1)), "layout": Layout(4, 1, 1, 3)}
    plan = schedule(**options, epoch_steps=30)
    tasks = np.concatenate([plan.index(0)[0], plan.index(1)[0][: 7 * 4]])
    np.testing.assert_array_equal(plan.trained(37), np.bincount(tasks, minlength=3))


def test_rows_that_are_all_alike_keep_their_random_order():
    plain = schedule(form="mixed")
    np.testing.assert_array_equal(
        schedule(form="mixed", lengths=tuple(np.ones(size, int) for size in SIZES)).index(0), plain.index(0)
    )


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
    lengths = tuple(np.arange(size) % 7 if size % 2 else np.arange(2 * size).reshape(size, 2) % 5 for size in sizes)
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
