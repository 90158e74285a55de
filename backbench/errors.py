"""Errors that are for the user to read: one clear sentence, no traceback."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

from backbench import processes
from backbench.printable import printable, visible

_ROOT = Path(__file__).resolve().parent.parent
_BROKEN_PIPE = 141  # the exit code of a program that SIGPIPE ended


class BackbenchError(Exception):
    """Something the user can act on. Entry points print its kind and text (what, where, what to do) and exit with 2."""

    kind = "error"

    def __init__(self, text: str = "") -> None:
        # The text may contain names from untrusted files: no escape code reaches a terminal, no lone surrogate a record.
        super().__init__(visible(_own_words(str(text))))


class ConfigError(BackbenchError):
    """A configuration that does not fit its model."""

    kind = "configuration error"


class DataError(BackbenchError):
    """A data set that is absent, incomplete or unreadable."""

    kind = "data error"


class CheckpointError(BackbenchError):
    """A checkpoint file that is damaged, unsafe, or not the expected backbone."""

    kind = "checkpoint error"


class JobError(BackbenchError):
    """The processes of a job cannot start or work together."""

    kind = "job error"


REFUSALS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.EROFS: "the file system is read-only",
    errno.ENOENT: "no such file or folder",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EISDIR: "is a folder where a file is needed",
    errno.EEXIST: "a file is in the way of a folder",
    errno.ENAMETOOLONG: "the name is too long for the file system",
    errno.ELOOP: "its links lead in a circle",
    errno.EFBIG: "larger than this process may write (`ulimit -f` shows the limit, `ulimit -f unlimited` lifts it)",
    errno.EMFILE: "this process may open no more files; raise the limit, `ulimit -n 4096`, or use fewer workers",
    errno.ENFILE: "the system has no more files to open; end other programs",
    errno.ENOMEM: "out of memory; use fewer workers or a smaller batch",
    errno.EAGAIN: "the system starts no more processes now; end others, or raise the limit (`ulimit -u`)",
    errno.EIO: "the device answers with an error; look after the disk or the network it is on",
    errno.ESTALE: "the network file system has lost the file; try again",
    errno.ENXIO: "is not an ordinary file",
    errno.EBUSY: "is in use by another program",
    errno.ETXTBSY: "is in use by another program",
}


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write below `path` into sentences."""
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSALS or error.errno == errno.EIO:  # after a disk fault, what is intact is unknown
            raise
        there = " to write there" if error.errno in (errno.EACCES, errno.EPERM) else ""
        raise BackbenchError(
            f"cannot write {path}: {REFUSALS[error.errno]}{there}; what was there before is intact"
        ) from error


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest of `known`, or the whole list when nothing is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(known)}" if known else ""


def sentence(error: BaseException) -> str:
    """Return an error's message without the traceback that a worker process wrote before it."""
    return _own_words(str(error)) or type(error).__name__


def _own_words(text: str) -> str:
    text = text.strip()
    if "Original Traceback" in text or "Traceback (most recent call last)" in text:
        text = text.splitlines()[-1].strip()
        kind, _, what = text.partition(": ")
        text = what if kind.replace(".", "").isidentifier() else text
    return text


def worker_death(error: BaseException) -> str | None:
    """Return the message for torch's error about a dead image-reading process; None for any other error."""
    if not isinstance(error, RuntimeError) or "DataLoader worker" not in str(error):
        return None
    return f"a process that reads images died ({_first_line(error)}): out of memory, or /dev/shm full?"


def explain(error: BaseException) -> str | None:
    """Return `kind: what, where, what to do` for an error that the user can act on; None where it may be our own fault."""
    if isinstance(error, BackbenchError):
        return f"{error.kind}: {sentence(error)}"
    if death := worker_death(error):
        return f"data error: {death}"
    if type(error).__name__ == "OutOfMemoryError":  # torch's, for a GPU
        return f"memory error: the GPU's memory is used up; lower the batch ({_first_line(error)})"
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "not enough memory" in str(error):
        return "memory error: out of memory; use fewer workers, a smaller batch, or a machine with more"
    if isinstance(error, OSError) and error.errno in REFUSALS:
        where = f"{printable(error.filename)}: " if error.filename is not None else "a file or the output: "
        return f"system error: {where}{REFUSALS[error.errno]}"
    if "can't start new thread" in str(error):
        return f"system error: {REFUSALS[errno.EAGAIN]}"
    if "Too many open files" in str(error):
        return f"system error: {REFUSALS[errno.EMFILE]}"
    if "No space left on device" in str(error):
        return f"system error: {REFUSALS[errno.ENOSPC]} ({_first_line(error)})"
    return None


def _first_line(error: BaseException) -> str:
    return sentence(error).splitlines()[0][:300]


def internal(error: BaseException) -> str:
    """Return the sentence for a fault of our own; its traceback is written to a file."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(_ROOT)] or list(frames)
    where = f" at {os.path.relpath(ours[-1].filename, _ROOT)}:{ours[-1].lineno}" if ours else ""
    what = f"internal error: {type(error).__name__}: {_first_line(error)}{where}"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="backbench-traceback-", suffix=".txt", delete=False, encoding="utf-8", errors="replace"
        ) as file:
            traceback.print_exception(error, file=file)
    except OSError:
        return f"{what}; please report it (no place for a file with the traceback)"
    return f"{what}; please report it with the traceback, which is in {file.name}"


def run_cli(main: Callable[[], int | None], *, single: bool = False) -> None:
    """Run an entry point and exit with its code; every error is one line on stderr, never a traceback.

    Exit codes: 2 for errors the user can act on and for a fault of our own ("internal error", with the traceback in a
    file), 130 after Ctrl-C, 141 when the reader of our output has closed it (`| head`).

    Args:
        single: this process is never a rank of a job: a job's environment variables are dropped.
    """
    processes.begin(single=single)
    _mend_streams()
    threading.excepthook = lambda args: _say_error(args.exc_value) if args.exc_value else None
    sys.unraisablehook = lambda _args: None  # errors while an object is deleted: the program can continue
    try:
        code = main() or 0
    except SystemExit as leaving:  # argparse
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        if isinstance(leaving.code, str):
            _say(leaving.code)
    except KeyboardInterrupt:
        _say("interrupted")
        code = processes.INTERRUPTED
    except BaseException as error:
        code = _say_error(error)
    sys.exit(_flush() or code)


def _say_error(error: BaseException) -> int:
    """Print the sentence of an error; returns the exit code."""
    if isinstance(error, BrokenPipeError):  # the reader has closed the output
        return _BROKEN_PIPE
    _say(visible(explain(error) or internal(error)))
    return 2


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def _mend_streams() -> None:
    """Open closed standard streams on /dev/null; replace characters that a stream's encoding lacks."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # open() takes this free number; a file of ours must not get it
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
        stream: IO[str] = getattr(sys, name)
        lossy = (
            getattr(stream, "errors", None) == "strict" or "utf" not in str(getattr(stream, "encoding", "utf")).lower()
        )
        if number == 1 and lossy and hasattr(stream, "reconfigure"):  # stderr escapes them by default
            stream.reconfigure(errors="replace")


def _flush() -> int:
    """Flush the output; returns the exit code when that fails, else 0."""
    code = 0
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError) as error:
            if number == 1:
                code = _BROKEN_PIPE if isinstance(error, BrokenPipeError) else 2
                if code == 2 and isinstance(error, OSError):
                    _say(f"system error: a file or the output: {REFUSALS.get(error.errno or 0, error)}")
            with contextlib.suppress(OSError):  # otherwise Python flushes again at exit and prints its own message
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return code
