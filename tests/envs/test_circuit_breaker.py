from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mempo_env.envs.circuit_breaker import CLOSED, HALF_OPEN, OPEN, CircuitBreaker


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def fail(breaker: CircuitBreaker) -> None:
    probe = breaker.enter()
    assert probe is not None
    breaker.leave(probe=probe, failed=True)


def test_opens_after_failures_in_a_row_and_closes_after_a_good_probe() -> None:
    clock = Clock()
    breaker = CircuitBreaker(3, 10, clock)
    fail(breaker)
    fail(breaker)
    breaker.leave(probe=breaker.enter() or False, failed=False)  # in between a call succeeds: the count starts anew
    fail(breaker)
    fail(breaker)
    assert breaker.state == CLOSED
    fail(breaker)
    assert breaker.state == OPEN
    assert breaker.enter() is None
    clock.now = 9.9
    assert breaker.enter() is None
    clock.now = 10
    assert breaker.state == HALF_OPEN
    assert breaker.enter() is True
    assert breaker.enter() is None, "one probe at a time"
    breaker.leave(probe=True, failed=False)
    assert breaker.state == CLOSED
    assert breaker.enter() is False


def test_a_failed_probe_opens_it_again_and_an_interrupted_one_leaves_it_half_open() -> None:
    clock = Clock()
    breaker = CircuitBreaker(1, 10, clock)
    fail(breaker)
    clock.now = 10
    assert breaker.enter() is True
    breaker.leave(probe=True, failed=None)
    assert breaker.state == HALF_OPEN
    fail(breaker)
    assert breaker.state == OPEN
    clock.now = 19.9
    assert breaker.enter() is None
    clock.now = 20
    assert breaker.enter() is True


def test_a_call_from_before_it_opened_says_nothing() -> None:
    clock = Clock()
    breaker = CircuitBreaker(1, 10, clock)
    early = breaker.enter()
    assert early is False
    fail(breaker)
    breaker.leave(probe=early, failed=False)
    assert breaker.state == OPEN


@given(st.lists(st.tuples(st.floats(0, 5), st.booleans()), max_size=60), st.integers(1, 4))
def test_it_refuses_only_after_enough_failures_and_never_for_good(
    calls: list[tuple[float, bool]], threshold: int
) -> None:
    clock = Clock()
    breaker = CircuitBreaker(threshold, 3, clock)
    row = 0
    for pause, failed in calls:
        clock.now += pause
        probe = breaker.enter()
        if probe is None:
            assert row >= threshold
            continue
        breaker.leave(probe=probe, failed=failed)
        row = row + 1 if failed else 0
        assert (breaker.state == OPEN) == (row >= threshold)
    clock.now += 3
    assert breaker.enter() is not None
