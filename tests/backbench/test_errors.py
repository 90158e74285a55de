"""Entry points end with every error in one line, and with a traceback file for a fault of our own."""

from __future__ import annotations

import os
import pickle
import resource
import subprocess
import sys

import pytest
from commands import ROOT
from entry_points import end
from torch._utils import ExceptionWrapper

from backbench import errors, processes
from backbench.data.decode import CorruptImage
from backbench.errors import BackbenchError, ConfigError, DataError

_WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def test_what_a_user_can_act_on_is_one_sentence():
    done = end("raise CheckpointError('a.pth: no such file')")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "checkpoint error: a.pth: no such file\n"


def test_where_no_file_can_be_written_the_fault_is_still_said(tmp_path):
    done = end("len(3)", prepare=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)), cwd=tmp_path)
    assert done.returncode == 2 and "internal error: TypeError" in done.stderr and "Traceback" not in done.stderr


def test_an_error_in_a_thread_is_one_sentence():
    done = end("t = threading.Thread(target=open, args=('/nothing/there',)); t.start(); t.join(); print('on')")
    assert (done.returncode, done.stdout) == (0, "on\n")
    assert done.stderr.splitlines() == ["system error: /nothing/there: no such file or folder"]


def test_an_exit_code_is_kept():
    assert [end(body).returncode for body in ("return 1", "return 0", "sys.exit(3)", "sys.exit('no')")] == [1, 0, 3, 1]


def test_who_reads_no_more_ends_us_as_other_programs():
    shell = f"set -o pipefail; {sys.executable} -S -c '{_ENDLESS}' | head -n 1"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (141, "y\n", "")


_ENDLESS = f"""import sys; sys.path.insert(0, "{ROOT}")
from backbench.errors import run_cli
run_cli(lambda: [print("y") for _ in iter(int, 1)])"""


def test_sentences_of_nested_errors():
    assert errors.sentence(DataError("x.jpg: is no image")) == "x.jpg: is no image"
    assert errors.sentence(KeyError()) == "KeyError"
    assert errors.explain(ValueError("x")) is None


def test_what_a_terminal_would_obey_is_spelled_out():
    name = os.fsdecode(b"caf\xe9\x1b[2J\r.jpg")
    assert str(DataError(f"{name}: torn\u202e")) == r"caf\udce9\x1b[2J\r.jpg: torn\u202e"
    assert str(DataError("плохо, 悪い, ligne é")) == "плохо, 悪い, ligne é"
    assert str(BackbenchError()) == ""


@pytest.mark.parametrize("kind", [DataError, CorruptImage, ConfigError])
def test_an_error_of_a_worker_is_its_own_sentence(kind):
    try:
        raise kind("a b/x: y.jpg: not a whole image (why: this)")
    except BackbenchError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 3")
    with pytest.raises(kind) as error:
        wrapped.reraise()
    assert str(error.value) == "a b/x: y.jpg: not a whole image (why: this)"


def test_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(CorruptImage("x.jpg: torn\x1b")))
    assert (type(error), str(error)) == (CorruptImage, r"x.jpg: torn\x1b")


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, processes.SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
    ids=["no setting", "their spins", "their policy"],
)
def test_threads_wait_briefly_unless_the_user_says_how(given, spins):
    body = "print('torch' in sys.modules, os.environ.get('GOMP_SPINCOUNT'))"
    done = end(body, env={name: value for name, value in os.environ.items() if name not in _WAITING} | given)
    assert done.stdout.split() == ["False", str(spins)]
