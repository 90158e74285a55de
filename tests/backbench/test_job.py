"""Jobs of several processes: the environment that describes one, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from waits import is_running, wait_for

from backbench import job, processes
from backbench.errors import ConfigError, JobError

WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    "environment",
    [{}, {"WORLD_SIZE": "1"}, {"RANK": "0"}, {"RANK": "0", "WORLD_SIZE": "1"}, {"RANK": "", "WORLD_SIZE": ""}],
)
def test_a_single_process_is_no_job(environment):
    assert job.from_environment(environment) is None


def test_torchruns_variables_are_a_job():
    assert job.from_environment(WHOLE) == job.Job(1, 2, "127.0.0.1", 29500)
    assert job.local_rank(WHOLE) == 1


HALF = {
    **{f"{name} {text!r}": {**WHOLE, name: text} for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
       for text in ("two", "-1", "1.5", "²", "9" * 30, "0x1")},
    **{f"without {name}": {n: t for n, t in WHOLE.items() if n != name} for name in WHOLE if name != "LOCAL_RANK"},
    **{f"{name} alone": {name: WHOLE[name]} for name in ("RANK", "WORLD_SIZE")},
    "rank above": {**WHOLE, "RANK": "2"},
    "local rank above": {**WHOLE, "LOCAL_RANK": "2"},
    "size 0": {**WHOLE, "WORLD_SIZE": "0", "RANK": "0"},
    "rank of one": {"RANK": "1", "WORLD_SIZE": "1"},
    "port 0": {**WHOLE, "MASTER_PORT": "0"},
    "port 65536": {**WHOLE, "MASTER_PORT": "65536"},
    "local rank alone, a word": {"LOCAL_RANK": "first"},
}  # fmt: skip


@pytest.mark.parametrize("environment", HALF.values(), ids=HALF.keys())
def test_half_a_job_is_a_sentence_that_says_what_to_do(environment):
    with pytest.raises(ConfigError, match=r"\w+=.*(unset \w+|start (all )?by torchrun)"):
        job.from_environment(environment)


def test_a_wait_has_a_bound_that_can_be_set():
    assert job.patience({}) == 300
    assert job.patience({job.RENDEZVOUS: "7"}) == 7
    for text in ("long", "-1", "0", "1e3"):
        with pytest.raises(ConfigError, match="not a number of seconds"):
            job.patience({job.RENDEZVOUS: text})


def test_what_is_no_rank_is_told_of_no_job():
    told = {**WHOLE, processes.IN_OUR_JOB: "1", "TORCHELASTIC_RUN_ID": "x", "HOME": "/root"}
    assert processes.alone(told) == {"HOME": "/root"}


def ranks(tmp_path: Path, body: str) -> list[str]:
    """Run ranks without heavy imports; their code can use `rank` and `folder`."""
    script = tmp_path / "rank.py"
    script.write_text(
        f"import os, pathlib, signal, sys, time\nrank, folder = int(os.environ['RANK']), {str(tmp_path)!r}\n{body}\n"
    )
    return [sys.executable, "-S", str(script)]


def test_ranks_know_their_place(tmp_path):
    body = "names = ('WORLD_SIZE', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE', 'MASTER_ADDR', 'OMP_NUM_THREADS')\n"
    body += "pathlib.Path(folder, f'{rank}.txt').write_text(' '.join(os.environ[n] for n in names))"
    environment = {**processes.alone(os.environ), "WORLD_SIZE": "7", "OMP_NUM_THREADS": "3"}
    assert job.run(ranks(tmp_path, body), 3, environment) == 0
    said = [(tmp_path / f"{rank}.txt").read_text() for rank in range(3)]
    assert said == [f"3 {rank} 3 127.0.0.1 3" for rank in range(3)]


ENDS = {
    "killed": ("if rank == 1: os.kill(os.getpid(), signal.SIGKILL)", r"rank 1 of 3 was ended by SIGKILL .*dmesg"),
    "terminated": ("if rank == 2: os.kill(os.getpid(), signal.SIGTERM)", r"rank 2 of 3 was ended by SIGTERM"),
    "an error": ("if rank == 0: sys.exit(2)", r"rank 0 of 3 ended with code 2, for the reason that it printed"),
    "others notice first": (
        "if rank != 1: sys.exit(75)\ntime.sleep(0.5); os.kill(os.getpid(), signal.SIGKILL)",
        r"rank 1 of 3 was ended by SIGKILL",
    ),
    "nobody knows": ("if rank == 2: sys.exit(75)\nelse: sys.exit(0)", r"rank 2 of 3 lost the connection"),
}


@pytest.mark.parametrize(("body", "words"), ENDS.values(), ids=ENDS.keys())
def test_a_rank_that_ends_badly_ends_the_job_in_a_sentence(tmp_path, body, words):
    start = time.monotonic()
    with pytest.raises(JobError, match=words + r".*; the other ranks were stopped"):
        job.run(ranks(tmp_path, f"{body}\ntime.sleep(100)"), 3, os.environ)
    assert time.monotonic() - start < 20, "a hang"


def test_the_wish_to_stop_goes_to_every_rank(tmp_path):
    body = "signal.signal(signal.SIGINT, lambda *_: (pathlib.Path(folder, f'stopped{rank}').touch(), sys.exit(130)))\n"
    body += "pathlib.Path(folder, f'ready{rank}').touch()\ntime.sleep(100)"
    command = [sys.executable, job.__file__, "2", *ranks(tmp_path, body)[2:]]
    launcher = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(list(tmp_path.glob("ready*"))) == 2, within=20)
    launcher.send_signal(signal.SIGINT)
    _, said = launcher.communicate(timeout=20)
    assert launcher.returncode == 130 and "Traceback" not in said
    assert len(list(tmp_path.glob("stopped*"))) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere within a second or two")
def test_ranks_of_a_launcher_that_is_killed_end(tmp_path):
    body = f"sys.path.insert(0, {str(Path(job.__file__).parent.parent)!r})\n"
    body += "from backbench import processes\nprocesses.begin()\n"
    body += "if os.fork() == 0: rank += 2\n"  # as the workers of a data loader
    body += "pathlib.Path(folder, f'{os.getpid()}.pid').touch()\ntime.sleep(100)"
    launcher = subprocess.Popen([sys.executable, job.__file__, "2", *ranks(tmp_path, body)[2:]])
    wait_for(lambda: len(list(tmp_path.glob("*.pid"))) == 4, within=20)
    launcher.kill()
    launcher.wait()
    numbers = [int(path.stem) for path in tmp_path.glob("*.pid")]
    wait_for(lambda: not any(is_running(number) for number in numbers), within=20)
