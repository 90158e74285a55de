"""Jobs of a SLURM: the options, the file that sbatch reads, and what happens on a real small cluster."""

from __future__ import annotations

import functools
from pathlib import Path

import cluster
import pytest
from waits import wait_for

from backbench import slurm
from backbench.errors import BackbenchError, ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 90),
        ("1:30", 2),
        ("0:00:01", 1),
        ("4:00:00", 240),
        ("2-0", 2880),
        ("1-12:30", 2190),
        ("1-00:00:30", 1441),
        ("", 0),
        ("4h", 0),
        ("1-", 0),
        ("-5", 0),
    ],
)
def test_times_are_read_as_sbatch_reads_them(text, expected):
    assert slurm.minutes(text) == expected


def test_words_may_come_at_once_or_one_by_one():
    at_once = slurm.parse(["partition=gpu gpus=8 time=2-0 constraint='a100|h100' extra.reservation=mine"])
    assert at_once == slurm.parse(
        ["partition=gpu", "gpus=8", "time=2-0", "constraint=a100|h100", "extra.reservation=mine"]
    )
    assert (at_once.gpus, at_once.constraint, at_once.extra) == (8, "a100|h100", {"reservation": "mine"})
    assert slurm.parse([]) == slurm.Slurm()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["partion=gpu"], "unknown key 'partion'; did you mean 'partition'"),
        (["time=4h"], "'time': not a time of sbatch"),
        (["gpus=-1"], "'gpus': must be greater than or equal to 0"),
        (["gpus=two"], "'gpus'"),
        (["extra.x"], "expected extra.NAME=VALUE"),
        (["extra.a b=1"], "expected extra.NAME=VALUE"),
        (["gpus"], "not of the form key=value"),
        (["constraint='a"], "No closing quotation"),
    ],
)
def test_a_word_that_cannot_be_meant_is_refused(words, sentence):
    with pytest.raises(ConfigError) as refused:
        slurm.parse(words)
    assert sentence in str(refused.value)


def test_the_preview_needs_no_slurm_and_shows_what_sbatch_would_read(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "")
    works = [slurm.Work(name="one", argv=("a.py", "--x", "b c")), slurm.Work(name="two", argv=("a.py",), processes=4)]
    wanted = slurm.parse(["partition=gpu gpus=4 cpus=16 memory=64G time=90 nodes=1 notice=60 extra.reservation=mine"])
    shown = slurm.preview(works, wanted, tmp_path / "jobs", at_once=1)
    for line in (
        "--partition=gpu", "--gpus-per-node=4", "--cpus-per-task=16", "--mem=64G", "--time=90", "--array=0-1%1",
        "--signal=USR2@60", "--requeue", "--reservation=mine",
    ):  # fmt: skip
        assert f"#SBATCH {line}\n" in shown
    assert "srun --unbuffered" in shown and "--cpus-per-task=16" in shown.partition("# command")[2]
    assert "0: one: " in shown and "a.py --x 'b c'" in shown
    assert "job.py 4 a.py" in shown
    assert not (tmp_path / "jobs").exists()


def test_several_nodes_start_torchrun_on_each():
    shown = slurm.preview(
        [slurm.Work(name="x", argv=("a.py",), processes=8, restarts=3)], slurm.parse(["nodes=2"]), Path("j")
    )
    assert "-m torch.distributed.run --nnodes=2 --nproc-per-node=8 --max-restarts=3 --rdzv-backend=c10d" in shown


def test_a_machine_without_slurm_says_where_to_go(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BackbenchError, match="sbatch is not on PATH; run this on a login node"):
        slurm.submit([slurm.Work(name="x", argv=("a.py",))], slurm.parse([]), tmp_path)
    assert slurm.queued(["1"]) is None


def test_a_machine_without_submitit_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "submitit", None)
    with pytest.raises(BackbenchError, match=r"pip install 'backbench\[slurm\]'"):
        slurm.submit([slurm.Work(name="x", argv=("a.py",))], slurm.parse([]), tmp_path)


# ---------------------------------------------------------------- on a real SLURM

_STEPS = """import os, signal, sys, time
import functools
import time
from pathlib import Path
place, stop = Path(sys.argv[1]), []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
print("offline", os.environ["HF_HUB_OFFLINE"], flush=True)
done = int(place.read_text()) if place.exists() else 0
while done < int(sys.argv[2]) and not stop:
    done += 1
    place.write_text(str(done))
    time.sleep(0.1)
print("stopped at" if stop else "ended at", done, flush=True)
"""


until = functools.partial(wait_for, within=60.0, every=0.1)


@pytest.fixture
def steps(tmp_path):
    """A job that counts in a file, from where the file ends, and says which count it stopped at."""
    script = tmp_path / "steps.py"
    script.write_text(_STEPS)

    def make(name, count, **fields):
        return slurm.Work(name=name, argv=(str(script), str(tmp_path / name), str(count)), **fields)

    return make


@pytest.mark.slow
def test_preempted_and_timed_out_jobs_are_requeued_and_go_on(slurm_cluster, steps, tmp_path):
    """Both jobs of the array stop at the signal, a job of higher priority runs, then both continue where they were."""
    low = slurm.parse(["partition=low cpus=2 time=30 notice=30"])
    numbers = slurm.submit([steps("a", 60), steps("b", 60)], low, tmp_path / "jobs")
    assert {slurm.state(tmp_path / "jobs", number) for number in numbers} == {"waiting"}
    until(lambda: (tmp_path / "a").exists() and (tmp_path / "b").exists())
    assert {slurm.state(tmp_path / "jobs", number) for number in numbers} == {"running"}
    slurm_cluster.tool("scancel", "--signal=USR2", numbers[1])  # as SLURM does before the time ends
    (high,) = slurm.submit([steps("c", 1)], slurm.parse(["partition=high cpus=2 nodes=1 time=5"]), tmp_path / "jobs")
    until(lambda: (tmp_path / "c").exists())
    until(lambda: not slurm.queued([*numbers, high]), within=120)
    starts = 0
    for number in numbers:
        said = slurm.log_of(tmp_path / "jobs", number).read_text()
        stops = [int(line.split()[-1]) for line in said.splitlines() if line.startswith("stopped at ")]
        assert "ended at 60" in said and "offline 1" in said
        assert all(0 < stop < 60 for stop in stops)
        starts += said.count("offline 1")
        assert slurm.state(tmp_path / "jobs", number) == "ended"
        assert not list((tmp_path / "jobs").glob("*.requeued"))
    assert starts >= 3, "at least one job was started again"


@pytest.mark.slow
def test_a_killed_command_is_told_and_an_ended_job_is_no_success(slurm_cluster, steps, tmp_path):
    failed = functools.partial(cluster.note_failure, tmp_path / "why")
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    (number,) = slurm.submit(
        [slurm.Work(name="k", argv=("-c", kill), failed=failed)], slurm.parse(["time=5"]), tmp_path / "jobs"
    )
    until(lambda: not slurm.queued([number]))
    log = slurm.log_of(tmp_path / "jobs", number)
    assert (tmp_path / "why").read_text().startswith(f"SLURM job {number} ended with code -9;")
    assert str(log) in (tmp_path / "why").read_text()
    assert "JobState=FAILED" in slurm_cluster.tool("scontrol", "show", "job", number)


@pytest.mark.slow
def test_what_sbatch_refuses_is_a_sentence(slurm_cluster, steps, tmp_path):
    with pytest.raises(BackbenchError, match=r"sbatch refused the jobs: .*Invalid partition name"):
        slurm.submit([steps("x", 1)], slurm.parse(["partition=nothing"]), tmp_path / "jobs")
