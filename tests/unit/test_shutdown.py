"""Moments of close frames: no part of the window gets more than its share."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsfast._shutdown import ANSWER, ShutdownPlan, moments


@pytest.mark.parametrize("jitter", [False, True], ids=["even", "jitter"])
def test_no_second_gets_more_than_its_share(jitter: bool) -> None:
    """Of 500 connections over 20 s, 25 are due in each second."""
    due = moments(500, 20.0, jitter, random.Random(17))
    assert due == sorted(due)
    assert Counter(map(int, due)) == dict.fromkeys(range(20), 25)


@given(
    st.integers(0, 300),
    st.floats(0.01, 1000, allow_subnormal=False),
    st.booleans(),
    st.integers(0, 2**32),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_any_part_of_the_window(count: int, window: float, jitter: bool, seed: int, one: float, other: float) -> None:
    """In any part of the window, no more than its share is due, rounded up, plus one; all are due within the window."""
    due = moments(count, window, jitter, random.Random(seed))
    assert len(due) == count
    assert all(0 <= moment <= window for moment in due)
    first, last = sorted((one * window, other * window))
    share = count * (last - first) / window
    assert sum(first < moment <= last for moment in due) <= share + 2


def test_jitter_is_random() -> None:
    """With jitter, two runs differ; without, they are the same, and at equal intervals."""
    source = random.Random(17)
    assert moments(100, 1.0, True, source) != moments(100, 1.0, True, source)
    assert moments(4, 2.0, False, source) == [0.0, 0.5, 1.0, 1.5]


def test_clients_have_time_to_answer() -> None:
    """No close frame is due in the last two seconds, or in the last quarter of a short drain."""
    assert ShutdownPlan(30.0, 1012, "", True).window == 30 - ANSWER
    assert ShutdownPlan(1.0, 1012, "", True).window == 0.75
