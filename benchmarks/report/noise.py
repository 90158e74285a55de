"""Whether the gap of two numbers is beyond the noise: over test items, and over seeds or pretrainings."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.report.intervals import Intervals
from benchmarks.report.paired import Interval
from benchmarks.report.table import Value
from benchmarks.statistics import LEVEL, signs
from benchmarks.statistics.spread import detectable, pooled


@dataclass(frozen=True)
class Test:
    """A test of a gap over one kind of unit."""

    p: float
    over: str  # the units: `400 test items`, `3 + 2 seeds`
    detectable: float | None = None  # the smallest true difference that it finds in 4 of 5 cases


@dataclass(frozen=True)
class Gap:
    """The gap of two numbers, with every test that their records allow."""

    tests: tuple[Test, ...] = ()
    interval: Interval | None = None
    why: str = ""  # the reason for a missing interval

    @property
    def p(self) -> float | None:
        """The largest of the tests' p-values: a gap must be beyond the noise of every kind; None if none is known."""
        return max((test.p for test in self.tests), default=None)

    @property
    def over(self) -> str:
        """The units of all tests."""
        return " and ".join(test.over for test in self.tests)

    @property
    def detectable(self) -> float | None:
        """The smallest true difference that every test finds in 4 of 5 cases, if one can tell."""
        return max((test.detectable for test in self.tests if test.detectable is not None), default=None)


class Noise:
    """Tests of gaps within one column."""

    def __init__(self, intervals: Intervals) -> None:
        self._intervals = intervals

    def gap(self, metric: str, one: Value, other: Value) -> Gap:
        """Return the gap of two numbers of a metric with its interval; reads the scores per test item."""
        found = self._between(metric, one, other)
        items = _over_items(found) if isinstance(found, Interval) else _over_shares(one, other)
        tests = tuple(test for test in (items, _over_numbers(one, other)) if test)
        return Gap(tests, None, found) if isinstance(found, str) else Gap(tests, found)

    def p(self, metric: str, one: Value, other: Value) -> float | None:
        """Return the p-value of a gap, or another one on the same side of the level: then no scores are read."""
        shares, numbers = _over_shares(one, other), _over_numbers(one, other)
        if numbers is not None and numbers.p >= LEVEL:
            return numbers.p
        if shares is not None and shares.p < LEVEL:
            return max(test.p for test in (shares, numbers) if test)
        return self.gap(metric, one, other).p

    def _between(self, metric: str, one: Value, other: Value) -> Interval | str:
        if not (one.records and other.records):
            return "a published number has no scores per test item"
        return self._intervals.between(one.records, other.records, metric)


def without_items() -> Noise:
    """Return the noise of numbers without any scores per test item."""
    return Noise(Intervals({}, 0))


def _over_items(found: Interval) -> Test:
    return Test(found.p, f"{found.items} test items", detectable(found.error))


def _over_shares(one: Value, other: Value) -> Test | None:
    """Return the test of two shares of equally many items, for the least favourable answers that give these shares."""
    if not one.items or one.items != other.items:
        return None
    p = signs.of_shares(one.mean, other.mean, one.items)
    return Test(p, f"{one.items} test items, whichever they are right about")


def _over_numbers(one: Value, other: Value) -> Test | None:
    found = pooled(one.numbers, other.numbers)
    if found is None:
        return None
    kinds = {value.over for value in (one, other)} - {""}
    kind = kinds.pop() if len(kinds) == 1 else "numbers"
    return Test(
        found.p, f"{len(one.numbers)} + {len(other.numbers)} {kind}", detectable(found.error, freedom=found.freedom)
    )
