"""Limits of the operating system, closed streams and foreign environments give sentences, and no hang."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import subprocess
import sys
import threading

import pytest
from commands import ROOT, ends_in_a_sentence, run
from entry_points import end

from backbench.files import locks
from benchmarks.launchers import local


def limit(which: int, value: int):
    return lambda: resource.setrlimit(which, (value, value))


KINDS = {
    "checkpoint": ("raise CheckpointError('a.pth: no such file')", "checkpoint error: a.pth: no such file"),
    "no memory": ("raise MemoryError", "memory error: out of memory"),
    "no memory for a tensor": (
        "raise RuntimeError('[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can\\'t allocate memory: you')",
        "memory error: out of memory",
    ),
    "the GPU's memory": (
        "class OutOfMemoryError(RuntimeError): pass\nraise OutOfMemoryError('CUDA out of memory. Tried')",
        "memory error: the GPU's memory is used up",
    ),
    "a folder": ("open('/')", "system error: /: is a folder where a file is needed"),
    "a long name": ("open('x' * 5000)", "the name is too long"),
    "a part is a file": ("open('/etc/passwd/x')", "system error: /etc/passwd/x: a part of the path is a file"),
    "no such file": ("open('/nothing/there')", "system error: /nothing/there: no such file or folder"),
    "a full disk": ("open('/dev/full', 'wb', 0).write(b'x')", "the disk is full"),
    "no threads": ("raise RuntimeError(\"can't start new thread\")", "system error: the system starts no more processes"),
    "a reader of images died": (
        "raise RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed. ')",
        "data error: a process that reads images died (DataLoader worker (pid 7) is killed by signal: Killed.)",
    ),
    "a worker's own sentence": (
        "raise DataError('Caught DataError in DataLoader worker process 0.\\nOriginal Traceback (most recent call last):\\n"
        "  File \"a.py\", line 1, in b\\nbackbench.errors.DataError: x.jpg: is no image')",
        "data error: x.jpg: is no image",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("body", "words"), KINDS.values(), ids=KINDS.keys())
def test_what_a_user_can_act_on_is_one_sentence(body, words):
    done = end(body)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and words in done.stderr, done.stderr


LIMITS = {
    "no more files": (limit(resource.RLIMIT_NOFILE, 20), "files = [open('/dev/null') for _ in range(99)]", "ulimit -n"),
    "no larger files": (limit(resource.RLIMIT_FSIZE, 1000), "open('big', 'wb').write(b'x' * 50000)", "ulimit -f"),
    "no more memory": (limit(resource.RLIMIT_DATA, 1 << 28), "bytes(1 << 30)", "out of memory"),
}


@pytest.mark.parametrize(("prepare", "body", "words"), LIMITS.values(), ids=LIMITS.keys())
def test_a_limit_of_the_system_is_one_sentence(prepare, body, words, tmp_path):
    done = end(body, prepare=prepare, cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and words in done.stderr, done.stderr


FAULTS = {
    "TypeError": "len(3)",
    "RecursionError": "def f(): return f()\nf()",
    "KeyError": "{}['x']",
    "AssertionError": "assert False, 'that\\ncannot be'",
}


@pytest.mark.parametrize(("kind", "body"), FAULTS.items(), ids=FAULTS.keys())
def test_a_fault_of_our_own_can_be_found(kind, body, tmp_path):
    done = end(body, env={"TMPDIR": str(tmp_path)})
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"internal error: {kind}: ") and "please report" in line
    assert re.search(r" at \S+:\d+;", line)
    (file,) = tmp_path.glob("backbench-traceback-*")
    assert str(file) in line
    assert "Traceback" in file.read_text() and kind in file.read_text()


ASCII = {
    "PYTHONIOENCODING": {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    "LANG=C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "UTF-8": {"PYTHONIOENCODING": "utf-8"},
}


@pytest.mark.parametrize("environment", ASCII.values(), ids=ASCII.keys())
def test_what_an_encoding_lacks_is_replaced(environment):
    done = end("print('31.2 \\u00b1 4 \\u2265 \\udce9'); raise DataError('\\u2265 3: \\udce9.jpg')", env=environment)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stdout.startswith("31.2 ") and " 4 " in done.stdout
    assert done.stderr.startswith("data error: ") and ".jpg" in done.stderr


STREAMS = {
    "stdout full": (">/dev/full", 2, "the output: the disk is full"),
    "stderr full": ("2>/dev/full", 0, ""),
    "both full": (">/dev/full 2>&1", 2, ""),
    "stdout closed": (">&-", 0, "word"),
    "stderr closed": ("2>&-", 0, ""),
    "stdin closed": ("<&-", 0, "word"),
    "all closed": ("<&- >&- 2>&-", 0, ""),
    "no reader": ("| true", None, "word"),
}


@pytest.mark.parametrize(("streams", "code", "words"), STREAMS.values(), ids=STREAMS.keys())
def test_streams_that_lead_nowhere(streams, code, words, tmp_path):
    script = tmp_path / "s.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom backbench.errors import run_cli\n"
        "from backbench.errors import _say\ndef main():\n    _say('word')\n    with open('mine', 'w') as file:\n"
        "        file.write('mine')\n        file.flush()\n        print('x' * 9999)\nrun_cli(main)\n"
    )
    shell = f"{sys.executable} -S s.py {streams}"
    done = subprocess.run(["bash", "-c", shell], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr and "ignored" not in done.stderr
    assert words in done.stderr
    assert (tmp_path / "mine").read_text() == "mine", "our file is unchanged"
    assert code is None or done.returncode == code


HELP = {
    "pretrain": ("pretrain/run.py",),
    "run_all": ("benchmarks/run_all.py",),
    "run_one": ("benchmarks/run_one.py",),
    "compare": ("benchmarks/compare.py",),
    "report": ("-m", "benchmarks.report"),
    "model_zoo": ("-m", "model_zoo"),
    "datasets": ("-m", "backbench.data"),
    "detection": ("-m", "transfer.detection"),
    "speed": ("-m", "benchmarks.speed"),
}


@pytest.mark.parametrize("command", HELP.values(), ids=HELP.keys())
def test_help_imports_nothing_heavy(command):
    done = run("-X", "importtime", *command, "--help")
    assert done.returncode == 0 and "usage: " in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "backbench.errors" in imported
    assert not imported & {"torch", "torchvision", "pydantic", "cv2", "sklearn", "matplotlib", "httpx2"}


@pytest.mark.parametrize("streams", [">/dev/full", ">&-", "| true", ">/dev/full 2>&1", "2>&-"])
@pytest.mark.parametrize("words", ["pretrain/run.py --help", "-m model_zoo list"])
def test_an_entry_point_whose_output_leads_nowhere(words, streams):
    shell = f"unset PYTHONUNBUFFERED; set -o pipefail; {sys.executable} {words} {streams}"
    done = subprocess.run(["bash", "-c", shell], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr and "ignored" not in done.stderr
    assert done.returncode in ((2,) if "full" in streams else (0, 141))


WRONG_JOBS = {
    "a word as size": {"WORLD_SIZE": "two", "RANK": "0"},
    "a word as rank": {"WORLD_SIZE": "2", "RANK": "first"},
    "size alone": {"WORLD_SIZE": "2"},
    "rank alone": {"RANK": "1"},
    "no address": {"WORLD_SIZE": "2", "RANK": "0"},
    "rank above": {"WORLD_SIZE": "2", "RANK": "2"},
    "negative": {"WORLD_SIZE": "-2", "RANK": "0"},
    "a word as local rank": {"LOCAL_RANK": "first"},
    "a word as port": {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "http"},
    "a word as seconds": {
        **{"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29612"},
        "BACKBENCH_RENDEZVOUS_S": "ten",
    },
}


@pytest.mark.parametrize("environment", WRONG_JOBS.values(), ids=WRONG_JOBS.keys())
@pytest.mark.sample(1)
def test_an_environment_that_describes_no_job(environment, tmp_path):
    said = ends_in_a_sentence("pretrain/run.py", "--out", str(tmp_path / "run"), env=environment)
    assert said.startswith("configuration error: ") and "unset " in said
    assert not (tmp_path / "run").exists()


LEFT_OVER = {
    "rank 0": ({"RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29613"}, "waiting for 1 other process"),
    "rank 1": ({"RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29614"}, "did not meet"),
    "no such host": ({"RANK": "1", "MASTER_ADDR": "no.such.host.invalid", "MASTER_PORT": "29615"}, "did not meet"),
}


@pytest.mark.parametrize(("environment", "words"), LEFT_OVER.values(), ids=LEFT_OVER.keys())
@pytest.mark.sample(0)
def test_a_world_size_left_in_the_environment_is_no_hang(environment, words, tmp_path):
    patience = {"WORLD_SIZE": "2", "BACKBENCH_RENDEZVOUS_S": "7"}
    done = run("pretrain/run.py", "--out", str(tmp_path / "run"), env={**environment, **patience})
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert words in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("job error: ") and "`unset WORLD_SIZE RANK`" in last
    assert not (tmp_path / "run").exists()


TOO_MANY = {
    "ranks of a cell": ("benchmarks/run_all.py", "--ckpt", "random:resnet18"),
    "ranks of a pretraining": ("pretrain/run.py",),
}


@pytest.mark.parametrize("command", TOO_MANY.values(), ids=TOO_MANY.keys())
def test_more_processes_than_a_machine_bears_are_refused(command, tmp_path):
    said = ends_in_a_sentence(*command, "--nproc", "100000", "--out", str(tmp_path / "run"))
    assert said.startswith("configuration error: --nproc 100000")
    assert not (tmp_path / "run").exists()


def test_more_jobs_than_cells_take_no_memory():
    assert local.run([[sys.executable, "-c", "pass"]], jobs=10**12, gpus=0) == [0]


@pytest.mark.parametrize("words", ["", "none", "-1", "\u00b2"])
def test_a_parent_that_is_no_number_is_none(words):
    assert end("print('ran')", env={"BACKBENCH_PARENT": words}).stdout == "ran\n"


@pytest.mark.parametrize("stream", ["/dev/full", "a pipe without a reader"])
def test_a_wait_goes_on_where_nobody_reads_for_whom(stream, tmp_path, monkeypatch):
    lock = tmp_path / ".lock"
    number = os.open("/dev/full", os.O_WRONLY) if stream == "/dev/full" else _without_reader()
    monkeypatch.setattr(locks, "_FIRST_WORD_S", 0.05)
    monkeypatch.setattr(locks, "_NEXT_WORD_S", 0.05)
    other = contextlib.ExitStack()
    other.enter_context(locks.held(lock))
    threading.Timer(0.5, other.close).start()
    monkeypatch.setattr(sys, "stderr", open(number, "w", closefd=True))  # noqa: PTH123, SIM115
    with locks.held(lock):
        held = True
    monkeypatch.undo()
    assert held


def _without_reader() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def test_a_port_in_use_is_a_sentence(tmp_path):
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        job = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        said = ends_in_a_sentence("pretrain/run.py", "--out", str(tmp_path), env={**job, "BACKBENCH_RENDEZVOUS_S": "9"})
    assert said.startswith("job error: ") and port in said


def test_a_driver_of_cells_is_no_rank(tmp_path):
    said = ends_in_a_sentence(
        *("benchmarks/run_all.py", "--baselines", "random:resnet18"), env={"TORCHELASTIC_RUN_ID": "x"}, cwd=ROOT
    )
    assert "--nproc N" in said
