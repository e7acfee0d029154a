"""When a host is given up, by moments that the test chooses."""

import time

import pytest

from hdm.acquisition.silence import ENOUGH, Silences


@pytest.fixture
def silences():
    return Silences(patience_sec=0.0, rest_sec=600.0)


def fail(silences, began, count=ENOUGH, **what):
    for _ in range(count):
        silences.silent("hangs.test", began, **what)


def test_a_host_that_hangs_while_others_answer_is_given_up(silences):
    began = time.monotonic()
    silences.answered("good.test")  # and then, nothing else is left to ask
    fail(silences, began)
    assert silences.is_given_up("hangs.test")
    assert not silences.may_be_asked("hangs.test")
    assert silences.may_be_asked("good.test")


def test_before_enough_attempts_it_is_not(silences):
    began = time.monotonic()
    silences.answered("good.test")
    fail(silences, began, ENOUGH - 1)
    assert not silences.is_given_up("hangs.test")


def test_a_long_rest_that_it_asks_for_is_enough(silences):
    began = time.monotonic()
    silences.answered("good.test")
    fail(silences, began, 1, is_long=True)
    assert silences.is_given_up("hangs.test")


def test_before_its_time_it_is_not():
    silences = Silences(patience_sec=600.0, rest_sec=600.0)
    began = time.monotonic()
    silences.answered("good.test")
    fail(silences, began)
    assert not silences.is_given_up("hangs.test")


def test_where_nobody_answers_nobody_is_given_up(silences):
    silences.answered("good.test")
    fail(silences, time.monotonic() + 1)
    assert silences.may_be_asked("hangs.test")


def test_an_answer_brings_it_back(silences):
    began = time.monotonic()
    silences.answered("good.test")
    fail(silences, began)
    silences.answered("hangs.test")
    assert silences.may_be_asked("hangs.test")


def test_one_at_a_time_asks_whether_it_is_back():
    silences = Silences(patience_sec=0.0, rest_sec=0.0)
    began = time.monotonic()
    silences.answered("good.test")
    fail(silences, began)
    assert not silences.may_be_asked("hangs.test")
    assert silences.may_be_asked("hangs.test")
