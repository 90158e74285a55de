"""Locks between processes: the holder is named, and files of killed processes are removed."""

from __future__ import annotations

import fcntl
import subprocess
import sys

import pytest
from commands import ROOT
from filelock import Timeout

from backbench.files import locks

_HOLD = f"""import sys; sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from backbench.files.locks import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def other(tmp_path):
    """Start a process that holds `x.lock` until it reads a line."""
    command = [sys.executable, "-c", _HOLD, str(tmp_path / "x.lock")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_wait_says_for_whom_and_ends_with_the_holder(other, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(locks, "_FIRST_WORD_S", 0.2)
    monkeypatch.setattr(locks, "_NEXT_WORD_S", 0.2)
    with pytest.raises(Timeout), locks.held(tmp_path / "x.lock", timeout=0.5):
        pass
    said = capsys.readouterr().err
    assert f"waiting for process {other.pid} on " in said and " since 20" in said
    assert str(tmp_path / "x.lock") in said and f"`kill {other.pid}`" in said
    other.kill()  # the card that it leaves is not believed
    with locks.held(tmp_path / "x.lock", timeout=20):
        assert f"process {other.pid} " not in locks.holder(tmp_path / "x.lock")
    assert [path.name for path in tmp_path.iterdir()] == ["x.lock"]


def test_what_killed_processes_left_half_written_is_removed_and_nothing_else(tmp_path):
    left, living = tmp_path / ".last.ckpt.a1b2_c3d.tmp", tmp_path / ".last.ckpt.zzzzzzzz.tmp"
    kept = [tmp_path / name for name in ("last.ckpt", ".x.tmp", "a.b.tmp", ".notes.txt.tmp.bak", ".a.ABCDEFGH.tmp")]
    for file in (left, living, *kept):
        file.write_bytes(b"x")
    (tmp_path / ".link.abcdefgh.tmp").symlink_to(kept[0])
    with living.open("rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        with locks.held(tmp_path / "x.lock"):
            pass
    assert not left.exists()
    assert all(file.exists() for file in (living, *kept, tmp_path / ".link.abcdefgh.tmp"))
    assert locks.clear_temporary(tmp_path) == [living], "its writer has gone"
    assert locks.clear_temporary(tmp_path / "nothing") == []
