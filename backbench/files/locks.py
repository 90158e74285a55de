"""Locks between processes on one machine, or on several machines that share a folder. Messages name the holder.

`flock` is not used, because on NFS, Lustre and BeeGFS it may work within one machine only, depending on the mount options
(https://man7.org/linux/man-pages/man2/flock.2.html). A lock is a small file `x.<n>.lock`, called a claim. A process takes
the lock by creating the next number with O_EXCL, which works on every file system, and touches its claim every 10 s. A
claim is over in four cases: its file says so, its process on this machine has ended, it belongs to an earlier start of
this SLURM job, or it was not touched for two minutes of the waiting process's own clock. The newest claim is never
removed, so two processes that take over the lock of a dead one cannot both succeed. A holder that was suspended until
another machine took its lock over ends at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from backbench.errors import writing
from backbench.printable import printable
from backbench.process_table import start_of
from backbench.processes import INTERRUPTED

_FIRST_WORD_S, _NEXT_WORD_S = 3.0, 30.0  # between two messages of a waiting process
_BEAT_S, _SILENT_S = 10.0, 120.0  # NFS may show a touch a minute late
_POLL_S = 0.2
_TAKEN, _FREE = "held", "free"  # of one length
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")  # as mkstemp names them for `atomic_write`


@dataclass(frozen=True)
class Claim:
    """The holder of a lock, as its claim file describes it."""

    host: str
    machine: str  # equal for processes that see each other's process numbers
    process: int
    started: str  # differs between two processes that got the same number
    words: str  # the command, for people
    since: str
    job: str = ""  # number of the SLURM job
    starts: int = 0  # how often SLURM had started that job before
    free: bool = False  # the file's first word

    def is_over(self) -> bool | None:
        """Whether the holder released the lock or ended; None if only its silence can show that."""
        mine = _mine()
        if self.free or (self.job and self.job == mine.job and self.starts < mine.starts):
            return True
        return start_of(self.process) != self.started if self.machine == mine.machine else None


@dataclass
class _Seen:
    """The newest claim, as a waiting process last saw it."""

    number: int = 0
    touched: int = 0
    since: float = field(default_factory=time.monotonic)
    beats: int = 0  # how often the holder touched it while we watched


@contextlib.contextmanager
def held(lock: Path, *, timeout: float = -1) -> Iterator[None]:
    """Hold a lock. Waits for it, at most `timeout` seconds if given, with messages that name the holder.

    `timeout` starts to count against a holder on another machine once that holder has shown that it is alive. Removes the
    temporary files that killed processes left in the folder.

    Raises:
        BackbenchError: the lock file cannot be written.
        filelock.Timeout: another process held the lock for the whole time.
    """
    with writing(lock):
        Path(lock).parent.mkdir(parents=True, exist_ok=True)
        number = _acquire(Path(lock), timeout)
    clear_temporary(Path(lock).parent)
    ended, owner = threading.Event(), os.getpid()
    threading.Thread(target=_beat, args=(Path(lock), number, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        if os.getpid() == owner:
            with contextlib.suppress(OSError):  # the folder has gone, or another machine took over
                _let_go(_place(Path(lock), number))


def _acquire(lock: Path, timeout: float) -> int:
    """Wait for the lock and claim it; returns the claim's number."""
    from filelock import Timeout

    start, spoken, seen = time.monotonic(), 0.0, _Seen()
    while True:
        number = _newest(lock)
        if (not number or _is_over(lock, number, seen)) and _create(lock, number + 1):
            return number + 1
        waited = time.monotonic() - start
        claim = read(lock)
        if 0 <= timeout <= waited and (seen.beats or claim is None or claim.is_over() is not None):
            raise Timeout(str(lock))
        if waited >= spoken + (_NEXT_WORD_S if spoken else _FIRST_WORD_S):
            spoken = waited
            with contextlib.suppress(OSError):  # nobody can read it: the wait continues
                print(f"waiting for {holder(lock)}", file=sys.stderr, flush=True)
        time.sleep(_POLL_S if timeout < 0 else min(_POLL_S, max(0.01, timeout - waited)))


def _is_over(lock: Path, number: int, seen: _Seen) -> bool:
    """Whether a claim is over; updates `seen`."""
    claim, touched = _read(_place(lock, number))
    if (number, touched) != (seen.number, seen.touched):
        seen.beats = seen.beats + 1 if number == seen.number else 0
        seen.number, seen.touched, seen.since = number, touched, time.monotonic()
    over = claim.is_over() if claim else None
    if over is None and time.monotonic() - seen.since > _SILENT_S:
        with contextlib.suppress(OSError):
            print(f"took over from {who(claim)}: no sign of life for {_SILENT_S:.0f} s", file=sys.stderr, flush=True)
        return True
    return bool(over)


def _create(lock: Path, number: int) -> bool:
    """Create the claim of this number and remove older ones; returns False if another process has created it."""
    try:
        _create_file(_place(lock, number), _mine())
    except FileExistsError:
        return False
    others = _numbers(lock)
    if max(others, default=number) > number:  # our listing was old: this number was used and removed before
        _place(lock, number).unlink(missing_ok=True)
        return False
    for older in others:
        if older < number:
            with contextlib.suppress(OSError):
                _place(lock, older).unlink()
    return True


def _beat(lock: Path, number: int, ended: threading.Event) -> None:
    """Touch the claim until the lock is released; end this process if another one has taken the lock over."""
    while not ended.wait(_BEAT_S):
        with contextlib.suppress(OSError):  # the file server may be away for a while
            if _newest(lock) > number and not ended.is_set():
                print(f"another process took over {lock} while this one was suspended: it ends", file=sys.stderr)
                os._exit(INTERRUPTED)
            os.utime(_place(lock, number))


def clear_temporary(folder: Path) -> list[Path]:
    """Remove temporary files of `atomic_write` whose process was killed; returns them.

    A file that is still being written is locked by its writer and stays.
    """
    removed = []
    for path in folder.glob(".*.tmp") if folder.is_dir() else ():
        if not _TEMPORARY.fullmatch(path.name) or path.is_symlink() or not path.is_file():
            continue
        with contextlib.suppress(OSError), path.open("r+b") as file:  # NFS locks only what is open for writing
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            removed.append(path)
    return removed


def read(lock: Path) -> Claim | None:
    """The newest claim on a lock, also a released one; None if there is none or it cannot be read."""
    number = _newest(Path(lock)) if Path(lock).parent.is_dir() else 0
    return _read(_place(Path(lock), number))[0] if number else None


def is_live(lock: Path) -> bool:
    """Whether a process holds a lock now; one on another machine counts as alive if it touched its claim lately."""
    number = _newest(Path(lock)) if Path(lock).parent.is_dir() else 0
    claim, touched = _read(_place(Path(lock), number)) if number else (None, 0)
    over = claim.is_over() if claim else None
    return time.time() - touched / 1e9 < _SILENT_S if over is None else not over


def holder(lock: Path) -> str:
    """Return a sentence: who holds a lock, since when, and what to do about it."""
    claim = read(lock)
    here = claim is not None and claim.machine == _mine().machine
    cure = f", or end it: `kill {claim.process}`" if claim and here else ""
    if claim and not here:
        cure = f"; it is taken over when it stays silent for {_SILENT_S:.0f} s"
    return f"{who(claim)}, which holds {printable(lock)}; wait until it ends{cure}"


def who(claim: Claim | None) -> str:
    """The holder of a lock in words: process, machine, command, SLURM job, since when."""
    if claim is None:
        return "another process"
    job = f", SLURM job {claim.job}" if claim.job else ""
    return printable(f"process {claim.process} on {claim.host} ({claim.words}){job} since {claim.since}", 500)


def _mine() -> Claim:
    words = " ".join(Path(word).name if "/" in word else word for word in sys.argv[:2])
    starts = os.environ.get("SLURM_RESTART_COUNT", "0")
    return Claim(
        host=socket.gethostname(), machine=_machine(), process=os.getpid(), started=start_of(os.getpid()),
        words=words[:200], since=time.strftime("%Y-%m-%d %H:%M:%S"), job=os.environ.get("SLURM_JOB_ID", ""),
        starts=int(starts) if starts.isdigit() else 0,
    )  # fmt: skip


def _machine() -> str:
    """An identity of the booted system and its process name space; the host's name on other systems than Linux."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 (the text is not a path)
    except OSError:
        return socket.gethostname()


def _place(lock: Path, number: int) -> Path:
    return lock.with_name(f"{lock.name.removesuffix('.lock')}.{number}.lock")


def _numbers(lock: Path) -> list[int]:
    name = re.compile(re.escape(lock.name.removesuffix(".lock")) + r"\.(\d{1,18})\.lock")
    return [int(found[1]) for found in map(name.fullmatch, os.listdir(lock.parent)) if found]  # noqa: PTH208


def _newest(lock: Path) -> int:
    return max(_numbers(lock), default=0)


def _fields(claim: Claim) -> dict[str, object]:
    return {name: value for name, value in asdict(claim).items() if name != "free"}


def _create_file(path: Path, claim: Claim) -> None:
    with path.open("x", encoding="utf-8") as file:
        try:
            file.write(f"{_TAKEN} {json.dumps(_fields(claim))}\n")
            file.flush()
        except OSError:  # the disk is full
            path.unlink()
            raise


def _let_go(path: Path) -> None:
    with path.open("r+", encoding="utf-8") as file:  # in place: this needs no room on a full disk
        file.write(_FREE)


def _read(path: Path) -> tuple[Claim | None, int]:
    """The claim in a file (None if unreadable) and when it was last touched (ns). Opening the file makes NFS ask its server."""
    try:
        with path.open("rb") as file:
            touched, text = os.fstat(file.fileno()).st_mtime_ns, file.read(1 << 16)
    except FileNotFoundError:  # a newer claim has replaced it
        return None, 0
    try:
        word, _, fields = text.decode("utf-8").partition(" ")
        return Claim(**json.loads(fields), free=word == _FREE), touched
    except (ValueError, TypeError):  # it is being written
        return None, touched
