"""Accuracy and confusion, against counting by hand and against a loop."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxelpool.evaluation import classification_scores


def test_by_hand() -> None:
    scores = classification_scores([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 0, 0], ("a", "b", "c"))
    assert scores.confusion.tolist() == [[2, 1, 0], [1, 1, 0], [1, 0, 0]]
    assert scores.accuracy == pytest.approx(3 / 6)
    assert scores.recall.tolist() == pytest.approx([2 / 3, 1 / 2, 0])
    assert scores.class_mean == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert scores.precision[:2].tolist() == pytest.approx([2 / 4, 1 / 2])
    assert np.isnan(scores.precision[2]), "nothing was taken for c"
    plain = json.loads(json.dumps(scores.to_dict()))
    assert plain["precision"]["c"] is None and plain["accuracy"] == pytest.approx(0.5)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=40))
def test_against_a_loop(pairs: list[tuple[int, int]]) -> None:
    labels, predicted = [p[0] for p in pairs], [p[1] for p in pairs]
    scores = classification_scores(np.array(labels, int), np.array(predicted, int), "abcd")
    assert scores.num_objects == len(pairs)
    for row in range(4):
        for column in range(4):
            assert scores.confusion[row, column] == pairs.count((row, column))
    present = [k for k in range(4) if k in labels]
    if not present:
        assert np.isnan(scores.accuracy) and np.isnan(scores.class_mean)
        return
    assert scores.accuracy == pytest.approx(np.mean([a == b for a, b in pairs]))
    means = [np.mean([b == k for a, b in pairs if a == k]) for k in present]
    assert scores.class_mean == pytest.approx(np.mean(means)), "absent classes do not count"


@pytest.mark.parametrize(
    ("labels", "predicted", "message"),
    [
        ([0, 1], [0], r"must be \(N,\)"),
        ([[0]], [[0]], r"must be \(N,\)"),
        ([2], [0], "labels must lie from 0 to 1"),
        ([0], [-1], "predicted must lie from 0 to 1"),
    ],
)
def test_bad_input(labels: list, predicted: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classification_scores(labels, predicted, ("a", "b"))
