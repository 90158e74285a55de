"""Untrusted words are shown in the terminal and in tables as visible characters in one line."""

import collections

import pytest

from backbench.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("layer1.0.conv1.weight", "layer1.0.conv1.weight"),
        ("Übung 图 ça", "Übung 图 ça"),
        ("red\x1b[31m", r"red\x1b[31m"),
        ("two\nlines\r\t", r"two\nlines\r\t"),
        ("8-bit \x9b31m", r"8-bit \x9b31m"),
        ("bidi \u202egnp", r"bidi \u202egnp"),
        ("zero\u200bwidth \ufeff", r"zero\u200bwidth \ufeff"),
        ("line\u2028end", r"line\u2028end"),
        ("half \ud83d", r"half \ud83d"),
        ("tag \U000e0041", r"tag \U000e0041"),
        ("C:\\dir", "C:\\dir"),
        (b"\xff\x1b", r"b'\xff\x1b'"),
        (3, "3"),
        (None, "None"),
        ({"\x1b": 1}, r"a dict of 1 (\x1b)"),
        ([1, {}, "b", 4], "a list of 4 (1, <dict>, b, ...)"),
        (collections.OrderedDict(a=1), "<OrderedDict>"),
    ],
)  # fmt: skip
def test_what_a_terminal_would_obey_is_spelled_out(text, shown):
    assert printable(text) == shown


def test_length_is_bounded():
    assert printable("x" * 200) == "x" * 200
    assert printable("x" * 10**7) == "x" * 197 + "..."
    assert printable("\x1b" * 100, limit=50) == r"\x1b" * 11 + r"\x1..."


def test_containers_of_any_size_and_depth():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    laugh = ["ha"]
    for _ in range(60):
        laugh = [laugh] * 9
    assert len(printable(deep)) <= 200 and len(printable(laugh)) <= 200
    while deep:  # freed without recursion
        deep = deep.pop()


def test_an_object_that_cannot_be_shown_is_called_by_its_kind():
    class Hostile(str):
        def __str__(self):
            raise RuntimeError

    class Other:
        def __repr__(self):
            return "\x1b[2J"

    assert printable(Hostile("x")) == "<Hostile>"
    assert printable(Other()) == "<Other>"


def test_a_number_too_long_to_write():
    assert printable(10**5000) == "a whole number of 16610 bits"
