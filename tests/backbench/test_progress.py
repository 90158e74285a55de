"""Bars on a terminal, plain lines elsewhere."""

import io
import sys

import pytest

from backbench import progress
from backbench.progress import Transfers


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_without_a_terminal_a_line_per_file_every_15_seconds(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Transfers() as bars:
        one, other = bars.add("one.pth"), bars.add("other.pth")
        for seconds in range(0, 40, 5):
            now[0] = float(seconds)
            one(seconds * 10**6, 100 * 10**6)
        other(7 * 10**6, None)
    assert capsys.readouterr().err.splitlines() == ["one.pth: 15 MB of 100", "one.pth: 30 MB of 100", "other.pth: 7 MB"]


def test_on_a_terminal_each_file_has_a_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    with Transfers() as bars:
        tell = bars.add("one.pth")
        bars.add("unknown.pth")(10, None)
        tell(500_000, 1_000_000)
        bars._bars.refresh()
    assert "one.pth" in terminal.getvalue() and "unknown.pth" in terminal.getvalue()
    assert "0.5/1.0 MB" in terminal.getvalue()


def test_after_stop_nothing_goes_on():
    with Transfers() as bars:
        tell = bars.add("one.pth")
        tell(1, 2)
        bars.stop()
        with pytest.raises(KeyboardInterrupt):
            tell(2, 2)


def test_a_line_counts_what_items_hold(monkeypatch, capsys):
    """Batches are counted in images; the time left is estimated from the images left."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    for _ in progress.track([[1] * 256, [1] * 256, [1] * 88], total=600, label="features, images", size=len):
        now[0] += 20
    assert capsys.readouterr().err.splitlines() == [
        "features, images: 256 of 600, 27s left",
        "features, images: 512 of 600, 7s left",
        "features, images: 600 of 600, 0s left",
    ]


def test_a_bar_reaches_its_end(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    assert list(progress.track([[1] * 4, [1] * 3], total=7, label="images", size=len)) == [[1] * 4, [1] * 3]
    assert "7/7" in terminal.getvalue()
