"""Run entry points in forks of a process that has imported torch already; there is one for each set of modules.

A fork runs a script, `-m module` or `-c code` as `python` does: its own arguments, environment, folder, streams, signals
and exit code. It starts in a tenth of a second instead of four or more. Tests of the interpreter itself, or of the time
before the imports are done, need `subprocess`.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import io
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from backbench import processes

ROOT = Path(__file__).resolve().parent.parent.parent
CELLS = ("benchmarks.run_one", "benchmarks.run_all", "benchmarks.report.render", "model_zoo.__main__", "model_zoo.load",
         "pretrain.train", "timm", "sklearn.svm", "scipy.stats", "torchvision.models", "transfer.supervised",
         "transfer.tasks.knn", "transfer.tasks.linear_probe", "transfer.tasks.semi_supervised", "torch.distributed",
         "torch._dynamo")  # fmt: skip
ENGINES = (*CELLS, "transfer.detection.run", "transfer.detection.engines.detectron2:prepare",
           "transfer.detection.engines.mmdet:prepare", "detectron2.engine", "mmdet.apis")  # fmt: skip
_LENGTH = struct.Struct("!I")


class Server:
    """The process that has imported the modules. All workers of a run of the tests share it; it ends with the last."""

    def __init__(self, modules: Sequence[str]) -> None:
        run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
        address = f"\0backbench-{run}-{zlib.crc32(' '.join(modules).encode())}"  # in Linux's namespace: leaves no file
        for _ in range(20):
            _start(address, modules)
            self.socket = socket.socket(socket.AF_UNIX)
            with contextlib.suppress(ConnectionError, EOFError):  # it is about to listen, or ended with its last worker
                self.socket.connect(address)
                self.pid = int(_read(self.socket.fileno(), 12))
                break
            self.socket.close()
            time.sleep(0.1)
        else:
            raise RuntimeError("the process that forks does not start; its error is above")
        self.lock = threading.Lock()
        atexit.register(self.socket.close)

    def fork(self, request: Mapping[str, object], files: Sequence[int]) -> tuple[int, int]:
        """Return the fork's process number and a pipe that delivers its exit status."""
        reading, writing = os.pipe()
        data = json.dumps(request).encode()
        try:
            with self.lock:
                socket.send_fds(self.socket, [_LENGTH.pack(len(data))], [*files, writing])
                self.socket.sendall(data)
        finally:
            os.close(writing)
        return int(_read(reading, 12)), reading


def _start(address: str, modules: Sequence[str]) -> None:
    """Start the process that listens at the address, unless there is one."""
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            listener.bind(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return
        listener.listen()
        os.set_inheritable(listener.fileno(), True)
        path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
        command = [sys.executable, __file__, str(listener.fileno()), *modules]
        os.posix_spawn(sys.executable, command, {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"})


_servers: dict[tuple[str, ...], Server] = {}


def server(modules: tuple[str, ...]) -> Server:
    """Return the process with these modules; it is started at the first call."""
    if modules not in _servers:
        _servers[modules] = Server(modules)
    return _servers[modules]


class Process:
    """The parts of `subprocess.Popen` that tests need."""

    def __init__(self, argv: Sequence[str], *, modules: tuple[str, ...] = CELLS, env: Mapping[str, str] | None = None,
                 cwd: Path | str | None = None, stdout: int | None = None, stderr: int | None = None,
                 session: bool = False) -> None:  # fmt: skip
        environment = dict(os.environ if env is None else env)
        with Path(os.devnull).open("rb") as nothing:
            files = [nothing.fileno(), 1 if stdout is None else stdout, 2 if stderr is None else stderr]
            one = server(modules)
            if processes._PARENT in environment:
                environment[processes._PARENT] = str(one.pid)
            request = {"argv": list(argv), "env": environment, "cwd": str(cwd or Path.cwd()), "session": session}
            self.pid, self._pipe = one.fork(request, files)
        self.args, self.returncode = list(argv), None

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._pipe], [], [], 0)[0]:
            self.returncode = int(_read(self._pipe, 12))
            os.close(self._pipe)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None and not select.select([self._pipe], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        self.poll()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(argv: Sequence[str], *, timeout: float = 250.0, **fields: object) -> subprocess.CompletedProcess[str]:
    """Run `python ARGV`, as `subprocess.run` with the output as text."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = Process(argv, stdout=out.fileno(), stderr=err.fileno(), **fields)  # type: ignore[arg-type]
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode(errors="replace"))
    return subprocess.CompletedProcess(list(argv), code, *said)


def start(command: Sequence[str], environment: Mapping[str, str]) -> Process:
    """Replace `backbench.processes.start` for commands `[sys.executable, script, ...]`."""
    assert command[0] == sys.executable
    return Process(command[1:], env={**environment, processes._PARENT: "0"}, session=True)


@contextlib.contextmanager
def ranks(argv: Sequence[str], count: int = 2, **fields: object) -> Iterator[list[Process]]:
    """Run `python ARGV` in `count` processes as one job; ends those that are left."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    job = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started: list[Process] = []
    try:
        for rank in range(count):
            env = {**os.environ, "OMP_NUM_THREADS": "1", **job, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            started.append(Process(argv, env=env, **fields))  # type: ignore[arg-type]
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def _read(pipe: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = os.read(pipe, size - len(data))
        if not piece:
            raise EOFError("the process that forks has ended")
        data += piece
    return data


# ---------------------------------------------------------------- in the process that forks


def serve(listener: socket.socket) -> None:
    """Fork for every request of every worker until the last worker has ended."""
    waking, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker)
    workers: dict[socket.socket, set[int]] = {}  # the forks that each has asked for
    children: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([listener, waking, *workers], [], [])
        if waking in ready:
            os.read(waking, 512)
            _tell(children)
        if listener in ready:
            worker = listener.accept()[0]
            worker.sendall(b"%12d" % os.getpid())
            workers[worker] = set()
        for worker in workers.keys() & set(ready):
            request = _request(worker)
            if request is None:
                for pid in workers.pop(worker) & children.keys():  # nothing outlives the tests
                    os.kill(pid, signal.SIGKILL)
                worker.close()
                if not workers:
                    return
                continue
            wanted, files = request
            pid = os.fork()
            if not pid:
                signal.set_wakeup_fd(-1)
                for file in (
                    listener.fileno(),
                    *(w.fileno() for w in workers),
                    waking,
                    waker,
                    files[3],
                    *children.values(),
                ):
                    os.close(file)
                _become(wanted, files[:3])
            for file in files[:3]:
                os.close(file)
            children[pid] = files[3]
            workers[worker].add(pid)
            os.write(files[3], b"%12d" % pid)


def _request(worker: socket.socket) -> tuple[dict[str, object], list[int]] | None:
    """Return the next request and its open files: stdin, stdout, stderr and the pipe for the status. None at the end."""
    head, files, _, _ = socket.recv_fds(worker, _LENGTH.size, 4)
    if not head:
        return None
    return json.loads(_read(worker.fileno(), _LENGTH.unpack(head)[0])), files


def _tell(children: dict[int, int]) -> None:
    """Report the exit status of forks that have ended."""
    for pid in list(children):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            pipe = children.pop(pid)
            with contextlib.suppress(BrokenPipeError):
                os.write(pipe, b"%12d" % os.waitstatus_to_exitcode(status))
            os.close(pipe)


def _become(request: dict[str, object], files: list[int]) -> None:
    """Do what `python ARGV` does; never returns."""
    code = 1
    try:
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if request["session"]:
            os.setsid()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        for number, name in ((1, "stdout"), (2, "stderr")):
            setattr(sys, name, io.TextIOWrapper(open(number, "wb", closefd=False), "utf-8", line_buffering=number == 2))  # noqa: SIM115
        os.environ.clear()
        os.environ.update(request["env"])  # type: ignore[call-overload]
        os.chdir(str(request["cwd"]))
        code = _execute(list(request["argv"]))  # type: ignore[call-overload]
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        if isinstance(leaving.code, str):
            print(leaving.code, file=sys.stderr)
    except KeyboardInterrupt:
        os.kill(os.getpid(), signal.SIGINT)
        code = processes.INTERRUPTED
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _execute(argv: list[str]) -> int:
    import runpy

    sys.path[:] = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p] + sys.path[1:]
    sys.path.insert(0, str(Path(argv[0]).resolve().parent) if argv[0] not in ("-c", "-m") else str(Path.cwd()))
    if argv[0] == "-c":
        sys.argv = ["-c", *argv[2:]]
        exec(compile(argv[1], "<string>", "exec"), {"__name__": "__main__"})
    elif argv[0] == "-m":
        sys.argv = argv[1:]
        sys.modules.pop(f"{argv[1]}.__main__", None)  # else runpy warns
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = argv
        runpy.run_path(argv[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    import importlib

    for words in sys.argv[2:]:
        name, _, function = words.partition(":")
        with contextlib.suppress(ImportError):
            module = importlib.import_module(name)
            if function:
                getattr(module, function)()
    atexit._clear()
    gc.collect()
    gc.freeze()  # a collection in a fork would copy every page
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(socket.socket(fileno=int(sys.argv[1])))
    os._exit(0)
