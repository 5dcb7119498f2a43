"""Heads: pooling, losses, masking of other tasks' rows, decoding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hfadapt.errors import TaskError
from hfadapt.multitask.heads import (
    HEADS,
    Classification,
    HeadFeatures,
    MultiLabel,
    Regression,
    Span,
    TokenClassification,
    head_from_dict,
    pair_features,
    pool,
)

HIDDEN = torch.arange(24, dtype=torch.float32).reshape(2, 4, 3)
RIGHT = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
LEFT = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])


@pytest.mark.parametrize(
    ("pooling", "mask", "rows"),
    [
        ("cls", RIGHT, [HIDDEN[0, 0], HIDDEN[1, 0]]),
        ("cls", LEFT, [HIDDEN[0, 0], HIDDEN[1, 2]]),
        ("last", RIGHT, [HIDDEN[0, 3], HIDDEN[1, 1]]),
        ("last", LEFT, [HIDDEN[0, 3], HIDDEN[1, 3]]),
        ("mean", RIGHT, [HIDDEN[0].mean(0), HIDDEN[1, :2].mean(0)]),
        ("mean", LEFT, [HIDDEN[0].mean(0), HIDDEN[1, 2:].mean(0)]),
        ("cls", None, [HIDDEN[0, 0], HIDDEN[1, 0]]),
        ("last", None, [HIDDEN[0, 3], HIDDEN[1, 3]]),
        ("mean", None, [HIDDEN[0].mean(0), HIDDEN[1].mean(0)]),
    ],
)
def test_pooling_reads_real_tokens_only(pooling, mask, rows):
    torch.testing.assert_close(pool(HIDDEN, mask, None, pooling), torch.stack(rows))


def test_a_row_without_any_real_token_gives_finite_numbers():
    for pooling in ("cls", "mean", "last"):
        assert pool(HIDDEN, torch.zeros(2, 4, dtype=torch.long), None, pooling).isfinite().all()


def test_pair_features_are_u_v_difference_and_product():
    u, v = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -1.0]])
    assert pair_features(u, v).tolist() == [[1, 2, 3, -1, 2, 3, 3, -2]]


def labels(*rows):
    return torch.tensor(rows, dtype=torch.float32)


def test_classification_loss_is_cross_entropy_of_labelled_rows():
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    got = Classification(4).loss(logits, labels([1], [-100], [3]))
    torch.testing.assert_close(got, F.cross_entropy(logits[[0, 2]], torch.tensor([1, 3])))


def test_label_smoothing_is_the_tasks_own():
    logits, labels = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([[2.0], [0.0], [-100]])
    smooth = F.cross_entropy(logits[:2], torch.tensor([2, 0]), label_smoothing=0.2)
    torch.testing.assert_close(Classification(4, label_smoothing=0.2).loss(logits, labels), smooth)
    words = TokenClassification(4, label_smoothing=0.2).loss(logits[None], labels.T)
    torch.testing.assert_close(words, smooth)
    with pytest.raises(TaskError, match="label_smoothing"):
        Classification(4, label_smoothing=1.0)


def test_multi_label_loss_is_binary_cross_entropy():
    logits = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    y = labels([1, 0, 1], [0, 0, 1])
    torch.testing.assert_close(MultiLabel(3).loss(logits, y), F.binary_cross_entropy_with_logits(logits, y))


def test_bounded_regression_is_measured_in_units_of_its_bounds():
    logits = torch.tensor([[2.5], [5.0]])
    y = labels([0.0], [5.0])
    torch.testing.assert_close(Regression(0, 5).loss(logits, y), torch.tensor(0.125))
    torch.testing.assert_close(Regression().loss(logits, y), torch.tensor(3.125))


def test_token_loss_is_the_mean_over_labelled_tokens():
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    y = labels([-100, 2, 4], [0, -100, -100])
    want = F.cross_entropy(logits.flatten(0, 1), y.flatten().long(), ignore_index=-100)
    torch.testing.assert_close(TokenClassification(5).loss(logits, y), want)
    # trailing padding of the label matrix may be missing, or come from wider tasks
    torch.testing.assert_close(TokenClassification(5).loss(logits, F.pad(y, (0, 2), value=-100)), want)


def test_span_loss_is_the_mean_of_start_and_end():
    logits = torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(0))
    y = labels([1, 2], [0, 0])
    want = F.cross_entropy(logits[..., 0], y[:, 0].long()) + F.cross_entropy(logits[..., 1], y[:, 1].long())
    torch.testing.assert_close(Span().loss(logits, y), want / 2)


CASES = [
    (Classification(3), (3,), [[1], [7], [0]]),
    (MultiLabel(3), (3,), [[1, 0, 1], [9, 9, 9], [0, 0, 1]]),
    (Regression(0, 1), (1,), [[0.5], [-100], [0.1]]),
    (TokenClassification(3), (4, 3), [[0, 1, -100, 2], [50, 3, 9, 9], [-100, 2, 1, 0]]),
    (Span(), (4, 2), [[1, 2], [900, 17], [0, 3]]),
]


@pytest.mark.parametrize(("head", "shape", "rows"), CASES, ids=lambda x: getattr(x, "kind", ""))
def test_masking_rows_of_other_tasks_equals_leaving_them_out(head, shape, rows):
    # row 1 belongs to another task: its label would be out of range here
    logits = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    y, keep = labels(*rows), torch.tensor([True, False, True])
    masked = head.loss(logits, y, keep)
    torch.testing.assert_close(masked, head.loss(logits[keep], y[keep]))
    (gradient,) = torch.autograd.grad(masked, logits)
    assert gradient.isfinite().all() and (gradient[1] == 0).all()


@pytest.mark.parametrize(("head", "shape", "rows"), CASES, ids=lambda x: getattr(x, "kind", ""))
def test_a_batch_without_a_row_of_the_task_has_loss_and_gradient_zero(head, shape, rows):
    logits = torch.randn(3, *shape, requires_grad=True)
    loss = head.loss(logits, labels(*rows), torch.zeros(3, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss == 0 and (gradient == 0).all()


def test_decoding_ignores_padding_of_wider_heads():
    wide = np.full((2, 6), -100.0)
    wide[:, :2] = [[0.0, 1.0], [3.0, 2.0]]
    y = np.full((2, 4), -100.0)
    y[:, 0] = [1, 0]
    predictions, references = Classification(2).decode(wide, y)
    assert predictions.tolist() == [1, 0] and references.tolist() == [1, 0]


def test_regression_predictions_are_clamped_to_the_bounds():
    assert Regression(0, 5).decode(np.array([[7.0], [-1.0], [2.0]]), None)[0].tolist() == [5, 0, 2]


def test_token_decoding_undoes_the_flattening():
    logits = torch.zeros(1, 3, 4)
    logits[0, torch.arange(3), torch.tensor([2, 0, 3])] = 1
    flat = F.pad(logits.flatten(1), (0, 5), value=-100).numpy()
    predictions, references = TokenClassification(4).decode(flat, np.array([[-100.0, 0.0, 3.0]]))
    assert predictions[0].tolist() == [0, 3] and references[0].tolist() == [0, 3]


def test_span_decoding_finds_the_best_pair_in_order_and_within_the_limit():
    logits = np.zeros((1, 6, 2))
    logits[0, 4, 0], logits[0, 1, 1], logits[0, 5, 1] = 5, 6, 3
    assert Span().decode(logits.reshape(1, -1), None)[0].tolist() == [[4, 5]]
    logits[0, 0, 0] = 6
    assert Span().decode(logits.reshape(1, -1), None)[0].tolist() == [[0, 1]]
    assert Span(max_answer_tokens=1).decode(logits.reshape(1, -1), None)[0].tolist() != [[0, 1]]


@pytest.mark.parametrize("kind", HEADS)
def test_every_head_survives_its_description(kind):
    head = HEADS[kind]()
    assert head_from_dict(head.to_dict()) == head


def test_head_modules_read_low_precision_hidden_states():
    module = Classification(2).build(3, "mean", "joint")
    assert module(HeadFeatures(HIDDEN.bfloat16(), RIGHT)).shape == (2, 2)


def test_single_texts_of_a_separate_task_are_their_own_partner():
    module = Classification(2).build(3, "mean", "separate").eval()
    alone = module(HeadFeatures(HIDDEN, RIGHT))
    twice = module(HeadFeatures(HIDDEN, RIGHT, None, HIDDEN, RIGHT, None))
    torch.testing.assert_close(alone, twice)
