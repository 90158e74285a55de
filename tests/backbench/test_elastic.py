"""Ranks and the torchrun agent that starts them."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import warm
from waits import is_running, wait_for

from backbench import elastic

ROOT = Path(__file__).resolve().parents[2]
RANK = f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from backbench import elastic, processes
processes.begin()
with open(os.path.join(sys.argv[1], f"{{os.getpid()}}.new"), "w") as file:
    file.write(elastic.agent())
os.rename(file.name, file.name.replace(".new", ".pid"))
time.sleep(100)
"""
SHELL = """#!/bin/bash
"{python}" -S "{rank}" "$@"
echo "the shell is still here"
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the process above a shell is found through /proc")
@pytest.mark.parametrize("through", ["python", "a shell"])
def test_ranks_of_an_agent_that_is_killed_end(tmp_path, through):
    rank, shell = tmp_path / "rank.py", tmp_path / "rank.sh"
    rank.write_text(RANK)
    shell.write_text(SHELL.format(python=sys.executable, rank=rank))
    shell.chmod(0o755)
    words = [str(rank)] if through == "python" else ["--no-python", str(shell)]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    agent = warm.Process([*torchrun, *words, str(tmp_path)])
    try:
        wait_for(lambda: len(list(tmp_path.glob("*.pid"))) == 2, within=40)
        files = list(tmp_path.glob("*.pid"))
        assert {file.read_text().split()[1] for file in files} == {str(agent.pid)}
        agent.kill()
        agent.wait()
        wait_for(lambda: not any(is_running(int(file.stem)) for file in files), within=40)
    finally:
        agent.kill()
        for file in tmp_path.glob("*.pid"):
            if is_running(int(file.stem)):
                os.kill(int(file.stem), signal.SIGKILL)


def test_without_torchrun_there_is_no_agent():
    assert elastic.agent() is None
