"""Fits against SciPy's, and what learning keeps, follows and shrugs off."""

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from stream2llm_rag.engine.least_squares import RecursiveLeastSquares, fit_relative

TRUE = (4e-3, 1.4e-5, 5e-10)
LLAMA = (4e-3, 13.8e-6, 4.8e-10, 1.95e-8)


def features(dice):
    num_tokens, context = dice.randint(1, 4096), dice.randint(0, 30_000)
    return 1.0, num_tokens, num_tokens * (context + num_tokens / 2)


def value(row, coefficients=TRUE):
    return float(np.dot(row, coefficients))


def learned_from(learner, dice, num_observations, *, noise=0.1, coefficients=TRUE, draw=features):
    for _ in range(num_observations):
        row = draw(dice)
        learner.add(row, value(row, coefficients) * dice.lognormvariate(0, noise))
    return learner


@given(seed=st.integers(0, 10_000), num_rows=st.integers(1, 40), num_coefficients=st.integers(1, 4))
def test_a_fit_is_as_good_as_scipys(seed, num_rows, num_coefficients):
    dice = np.random.default_rng(seed)
    rows = dice.normal(size=(num_rows, num_coefficients)) ** 2 * 10.0 ** -np.arange(num_coefficients)
    values = dice.uniform(0.1, 10, num_rows)
    found = fit_relative(rows, values)
    relative = rows / values[:, None]
    _, least = nnls(relative, np.ones(num_rows))
    assert found.min() >= 0
    assert np.linalg.norm(relative @ found - 1) == pytest.approx(least, abs=1e-6)


@given(seed=st.integers(0, 10_000))
def test_a_fit_finds_the_coefficients_behind_noisy_values(seed):
    dice = Random(seed)
    rows = [features(dice) for _ in range(300)]
    found = fit_relative(rows, [value(row) * dice.uniform(0.95, 1.05) for row in rows])
    assert found == pytest.approx(TRUE, rel=0.3)
    assert [value(row, found) for row in rows] == pytest.approx([value(row) for row in rows], rel=0.08)


@given(seed=st.integers(0, 10_000), factor=st.floats(1e-3, 1e3))
def test_a_guess_that_is_far_off_is_overthrown_by_a_few_observations(seed, factor):
    dice = Random(seed)
    learner = learned_from(RecursiveLeastSquares([c * factor for c in TRUE], 30), dice, 16, noise=0.05)
    rows = [features(dice) for _ in range(100)]
    errors = sorted(abs(learner.predict(row) / value(row) - 1) for row in rows)
    assert errors[50] < 0.25


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), slower=st.floats(0.3, 3))
def test_a_change_of_regime_is_followed(seed, slower):
    dice = Random(seed)
    learner = learned_from(RecursiveLeastSquares(TRUE, 30), dice, 300)
    learned_from(learner, dice, 500, coefficients=[slower * c for c in TRUE])
    row = (1.0, 2048, 2048 * 10_000)
    assert learner.predict(row) / value(row) == pytest.approx(slower, rel=0.2)


def test_a_change_of_the_parts_is_followed_after_hours_too():
    """Decodes and prefills then pull the coefficients to and fro, and nothing may seem the surer for that."""

    def draw(dice):
        if dice.random() < 0.7:  # decodes
            num_requests = dice.randint(1, 50)
            return 1.0, num_requests, 15_000.0 * num_requests, 15_000 * num_requests
        num_tokens, context = dice.randint(1, 2048), dice.randint(0, 30_000)
        return 1.0, num_tokens, num_tokens * (context + num_tokens / 2), context

    dice, later = Random(1), (8e-3, 5e-6, 9.6e-10, 0.0)
    learner = learned_from(RecursiveLeastSquares(LLAMA, 30), dice, 20_000, coefficients=LLAMA, draw=draw)
    rows = [draw(dice) for _ in range(200)]

    def errors():
        return sorted(abs(learner.predict(row) / value(row, later) - 1) for row in rows)

    learned_from(learner, dice, 1_500, coefficients=later, draw=draw)
    assert errors()[100] < 0.1
    learned_from(learner, dice, 3_500, coefficients=later, draw=draw)
    assert errors()[-1] < 0.15


def test_what_the_latest_observations_do_not_speak_of_stays_known():
    learner = learned_from(RecursiveLeastSquares(TRUE, 30), Random(1), 300)
    before = learner.predict((1.0, 2048, 2048 * 10_000))
    learned_from(learner, Random(2), 5000, coefficients=(8e-3, 1.4e-5, 5e-10), draw=lambda _: (1.0, 1, 100.0))
    assert learner.predict((1.0, 1, 100.0)) == pytest.approx(8e-3, rel=0.1)
    assert learner.predict((1.0, 2048, 2048 * 10_000)) == pytest.approx(before + 4e-3, rel=0.2)


@pytest.mark.parametrize("hiccup", [1e-6, 1e-3, 0.1, 10, 1e6])
def test_one_hiccup_changes_little(hiccup):
    learner = learned_from(RecursiveLeastSquares(TRUE, 30), Random(3), 300)
    row = (1.0, 512, 512 * 5_000)
    before = learner.predict(row)
    learner.add(row, before * hiccup)
    assert learner.predict(row) == pytest.approx(before, rel=0.15)


@given(seed=st.integers(0, 10_000), noise=st.floats(0, 3), num_observations=st.integers(0, 60))
def test_no_coefficient_is_ever_below_zero_or_lost(seed, noise, num_observations):
    learner = learned_from(RecursiveLeastSquares((1e-3, 0.0, 1e-12), 20), Random(seed), num_observations, noise=noise)
    assert min(learner.coefficients) >= 0
    assert np.isfinite(learner.coefficients).all()


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_a_value_that_no_time_has_teaches_nothing(seconds):
    learner = RecursiveLeastSquares(TRUE, 30)
    learner.add((1.0, 10, 50.0), seconds)
    assert learner.coefficients == TRUE


def test_what_is_assumed_is_given_up_slowly():
    bold, wary = (RecursiveLeastSquares(TRUE, 30) for _ in range(2))
    dice = Random(4)
    wary.assume([features(dice) for _ in range(20)], num_times=4)
    row = (1.0, 512, 512 * 5_000)
    for learner in (bold, wary):
        learner.add(row, 2 * value(row))
    assert bold.predict(row) == pytest.approx(2 * value(row), rel=0.01)
    assert wary.predict(row) < 1.2 * value(row)
