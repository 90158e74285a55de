"""Locks between processes: the holder is named, and files of killed processes are removed."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys

import pytest
from commands import ROOT
from filelock import Timeout

from backbench.files import locks

_HOLD = f"""import sys; sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from backbench.files import locks
if sys.argv[2]:
    locks._machine = lambda: sys.argv[2]
locks._BEAT_S = float(sys.argv[3])
with locks.held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def hold(tmp_path):
    """Starts a process that holds `x.lock` until it is told otherwise, of this machine or of one of another name."""
    started = []

    def start(machine="", beat=0.1, env=None):
        command = [sys.executable, "-c", _HOLD, str(tmp_path / "x.lock"), machine, str(beat)]
        environment = {**os.environ, **(env or {})}
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def other(hold):
    """A process of this machine that holds `x.lock`."""
    return hold()


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
    assert [path.name for path in tmp_path.iterdir()] == ["x.2.lock"], "the newest claim stays, the others do not"


def test_a_machine_that_shows_that_it_lives_keeps_its_lock(hold, tmp_path, monkeypatch, capsys):
    """Its process's number means nothing here: it is the touches that count."""
    monkeypatch.setattr(locks, "_SILENT_S", 0.8)
    monkeypatch.setattr(locks, "_FIRST_WORD_S", 0.5)
    hold("elsewhere")
    with pytest.raises(Timeout), locks.held(tmp_path / "x.lock", timeout=2):
        pass
    assert "it is taken over when it stays silent for" in capsys.readouterr().err


def test_the_lock_of_a_machine_that_died_is_taken_over_and_that_is_said(hold, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(locks, "_SILENT_S", 0.8)
    process = hold("elsewhere")
    process.kill()
    process.wait()
    with locks.held(tmp_path / "x.lock", timeout=0.1):  # it has shown no life: the limit does not count yet
        pass
    assert f"took over from process {process.pid} on " in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["x.2.lock"]


def test_one_that_was_suspended_ends_when_another_machine_has_its_lock(hold, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_SILENT_S", 0.8)
    process = hold("elsewhere")
    process.send_signal(signal.SIGSTOP)
    with locks.held(tmp_path / "x.lock"):
        process.send_signal(signal.SIGCONT)
        assert process.wait(20) == 130
        assert locks.read(tmp_path / "x.lock").process == os.getpid()


def test_a_requeued_job_does_not_wait_for_its_own_first_start(hold, tmp_path, monkeypatch):
    hold("elsewhere", env={"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "0"}).kill()
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert not locks.read(tmp_path / "x.lock").is_over(), "of another job"
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with locks.held(tmp_path / "x.lock", timeout=5):
        pass


_COUNT = f"""import sys; sys.path.insert(0, {str(ROOT)!r})
import fcntl, os
from pathlib import Path
from backbench.files import locks
fcntl.flock = lambda *_: None  # a file system whose locks end at the machine
locks._machine = lambda: sys.argv[2]
locks._POLL_S = 0.001
lock, count, inside = Path(sys.argv[1]), Path(sys.argv[1]).with_name("count"), Path(sys.argv[1]).with_name("inside")
for _ in range(40):
    with locks.held(lock):
        os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # an error when another one is inside
        count.write_text(str(int(count.read_text()) + 1))
        inside.unlink()
"""


def test_machines_without_a_common_lock_manager_exclude_each_other(tmp_path):
    (tmp_path / "count").write_text("0")
    command = [sys.executable, "-c", _COUNT, str(tmp_path / "x.lock")]
    processes = [subprocess.Popen([*command, f"machine {number}"]) for number in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert (tmp_path / "count").read_text() == "120"


def test_a_file_that_says_nothing_is_a_holder_until_it_was_silent(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_SILENT_S", 0.5)
    (tmp_path / "x.7.lock").write_bytes(b"\xff{")
    with pytest.raises(Timeout), locks.held(tmp_path / "x.lock", timeout=0):
        pass
    with locks.held(tmp_path / "x.lock"):
        assert (tmp_path / "x.8.lock").exists()


def test_a_full_disk_does_not_keep_a_lock(tmp_path, monkeypatch):
    """What says that it is free overwrites the word in place: the file grows by nothing."""
    with locks.held(tmp_path / "x.lock"):
        size = (tmp_path / "x.1.lock").stat().st_size
    assert (tmp_path / "x.1.lock").stat().st_size == size
    assert locks.read(tmp_path / "x.lock").free


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
