import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from hdm.statistics import Estimate, Interval, Share, holm, mean_of


@given(st.integers(1, 400), st.data())
def test_wilsons_bounds_solve_the_score_equation(total, data):
    right = data.draw(st.integers(0, total))
    low, high = Share(right, total).interval
    share = right / total

    def excess(p):  # |observed - p| against 1.96 standard deviations of a binomial with that p
        return (share - p) ** 2 - 1.959963984540054**2 * p * (1 - p) / total

    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1
    if 0 < right < total:
        assert low == pytest.approx(optimize.brentq(excess, 0, share), abs=1e-9)
        assert high == pytest.approx(optimize.brentq(excess, share, 1), abs=1e-9)


def test_wilsons_interval_of_known_cases():
    # Newcombe 1998, table I: 81/263 and 15/148, 0/20, 1/29
    for right, total, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert Share(right, total).interval == pytest.approx((low, high), abs=5e-5)
    assert Share(0, 0).to_dict() == {"right": 0, "total": 0, "share": 0.0, "low": 0.0, "high": 1.0}


@pytest.mark.parametrize("count", [2, 3, 10])
def test_a_means_interval_is_where_the_t_test_turns(count):
    values = np.random.default_rng(count).normal(0.3, 1.0, count)
    found = Interval.of(list(values))
    assert found.mean == pytest.approx(values.mean())
    assert found.half is not None
    for bound in (found.mean - found.half, found.mean + found.half):
        assert stats.ttest_1samp(values, bound).pvalue == pytest.approx(0.05)
    assert found.excludes_zero == (stats.ttest_1samp(values, 0).pvalue < 0.05)
    assert Interval.of([2.0]) == Interval(2.0, None)
    assert not Interval.of([2.0]).excludes_zero


def test_the_interval_of_a_mean_is_that_of_the_t_test():
    values = np.random.default_rng(0).normal(0.3, 1.0, 200)
    found = mean_of(values, range(200))
    assert found is not None
    wanted = stats.ttest_1samp(values, 0)
    low, high = wanted.confidence_interval(0.95)
    assert found.value == pytest.approx(values.mean())
    assert found.error == pytest.approx(values.std(ddof=1) / math.sqrt(200), rel=0.05)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.03)
    assert found.p_value == pytest.approx(wanted.pvalue, rel=0.5, abs=2e-3)
    assert mean_of(np.array([]), []) is None
    alone = mean_of(np.array([2.0, 4.0]), ["one", "one"])
    assert alone is not None
    assert (alone.value, alone.low, alone.distinct) == (3.0, None, 1)


def test_answers_to_one_question_make_an_interval_no_narrower():
    once, often = Share(15, 40), Share(150, 400, distinct=40)
    assert often.value == once.value
    assert often.interval == once.interval
    values = np.random.default_rng(0).normal(size=40)
    repeated = mean_of(np.repeat(values, 10), [n for n in range(40) for _ in range(10)])
    alone = mean_of(values, range(40))
    assert repeated is not None
    assert alone is not None
    assert repeated.value == pytest.approx(alone.value)
    assert (repeated.low, repeated.high) == pytest.approx((alone.low, alone.high))
    assert repeated.distinct == 40


@pytest.mark.parametrize("num_prompts", [12, 60])
def test_intervals_of_means_hold_the_truth_as_often_as_they_say(num_prompts):
    """Skewed values, three pictures of each prompt, which have much in common."""
    rng = np.random.default_rng(num_prompts)
    prompts = np.arange(num_prompts).repeat(3)
    held = 0
    alarms = 0
    for _ in range(300):
        of_prompt = rng.gamma(4.0, 0.5, num_prompts)
        found = mean_of(of_prompt[prompts] + rng.normal(0, 0.5, len(prompts)) - 2.0, list(prompts))
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        assert found.p_value is not None
        held += found.low <= 0 <= found.high
        alarms += found.p_value < 0.05
    # 95 % of 300, give or take three standard deviations.
    assert 0.91 <= held / 300 <= 0.99
    assert abs(alarms - (300 - held)) <= 3, "p-values and intervals agree"


@pytest.mark.parametrize("num_prompts", [2, 4])
def test_intervals_of_a_few_prompts_hold_the_truth_too(num_prompts):
    """Between two values lies their mean in half of all cases alone."""
    rng = np.random.default_rng(num_prompts)
    held = 0
    for _ in range(300):
        found = mean_of(rng.normal(size=num_prompts), range(num_prompts))
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        assert found.p_value is not None
        holds = found.low <= 0 <= found.high
        assert holds == (found.p_value >= 0.05)
        held += holds
    assert 0.91 <= held / 300 <= 0.99


def test_several_questions_at_once_raise_a_false_alarm_as_often_as_one():
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(1000):
        asked = dict(enumerate(rng.uniform(size=12)))
        adjusted = holm({str(name): value for name, value in asked.items()})
        alarms += min(adjusted.values()) < 0.05
    assert 0.03 < alarms / 1000 < 0.07
    # Holm 1979's own steps, by hand.
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06}
    )


def test_a_detectable_difference_is_found_in_four_of_five_repetitions():
    rng = np.random.default_rng(0)
    first = mean_of(rng.normal(0, 1, 100), range(100))
    assert first is not None
    detectable = first.detectable()
    assert detectable is not None
    found = 0
    for _ in range(300):
        again = mean_of(rng.normal(detectable, 1, 100), range(100))
        assert again is not None
        assert again.p_value is not None
        found += again.p_value < 0.05
    assert 0.7 < found / 300 < 0.9
    small = Estimate.of_error(0.1, 0.1, 99, 100, "")
    assert small.needed() == math.ceil(100 * (1.959964 + 0.841621) ** 2)
    assert Estimate.of_error(0.0, 0.1, 99, 100, "").needed() is None
