"""Bounds of counts and shares are the published ones."""

from __future__ import annotations

import numpy as np
import pytest

from models.bounds import binomial_bounds, clustered_bounds, poisson_bounds


@pytest.mark.parametrize(
    ("count", "lower", "upper"), [(0, 0.0, 3.6889), (1, 0.0253, 5.5716), (10, 4.7954, 18.3904), (500, 457.13, 545.80)]
)
def test_poisson_bounds_are_garwoods(count: int, lower: float, upper: float) -> None:
    assert poisson_bounds(count) == pytest.approx((lower, upper), rel=1e-3)


@pytest.mark.parametrize(
    ("count", "trials", "lower", "upper"),
    [
        (0, 10, 0.0, 0.3085),
        (5, 10, 0.1871, 0.8129),
        (10, 10, 0.6915, 1.0),
        (50, 1000, 0.0373, 0.0654),
        (950, 1000, 0.9346, 0.9627),
        (0, 0, 0, 1),
    ],
)
def test_binomial_bounds_are_clopper_and_pearsons(count: int, trials: int, lower: float, upper: float) -> None:
    assert binomial_bounds(count, trials) == pytest.approx((lower, upper), abs=1e-4)


def test_bounds_of_many_clusters_of_one_are_nearly_binomial() -> None:
    right = np.arange(1000) < 950
    assert clustered_bounds(right.astype(np.int64), np.ones(1000, np.int64)) == pytest.approx(
        (0.9346, 0.9627), abs=3e-3
    )


def test_bounds_are_wider_where_errors_come_in_clusters() -> None:
    twenty = np.full(50, 20)
    spread, together = np.full(50, 19), np.where(np.arange(50) < 5, 10, 20)
    assert spread.sum() == together.sum()
    assert clustered_bounds(spread, twenty) == (0.95, 0.95)
    low, high = clustered_bounds(together, twenty)
    assert low < 0.93
    assert 0.98 < high <= 1.0


def test_clusters_that_are_all_alike_leave_room_for_others() -> None:
    """Twenty speakers without a miss are no proof that nobody is ever missed; nor is one speaker everybody."""
    none, ten = np.zeros(20, np.int64), np.full(20, 10)
    assert clustered_bounds(none, ten) == binomial_bounds(0, 20)
    assert clustered_bounds(ten, ten) == binomial_bounds(20, 20)
    assert clustered_bounds(np.array([3]), np.array([10])) == binomial_bounds(3, 10)
