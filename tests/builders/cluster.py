"""A SLURM of two nodes on this machine, for as long as a test needs it; loopback only, no systemd, no munge, no accounts."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NEEDED = ("slurmctld", "slurmd", "slurmstepd", "sbatch", "srun", "scontrol", "squeue", "scancel")
PACKAGES = "slurmctld slurmd slurm-client slurm-wlm-basic-plugins"
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_CONF = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=100000,batch_sched_delay=0
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=2
MinJobAge=300
SlurmctldTimeout=30
SlurmdTimeout=30
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 State=UNKNOWN
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 State=UNKNOWN
PartitionName=low Nodes=n1,n2 Default=YES MaxTime=60 State=UP PriorityTier=1 GraceTime=20
PartitionName=high Nodes=n1,n2 MaxTime=60 State=UP PriorityTier=10
"""


def missing() -> str | None:
    """Why no SLURM can be started here, with the cure; None where one can."""
    absent = [name for name in NEEDED if shutil.which(name, path=_PATH) is None]
    if absent:
        return f"{absent[0]} is not installed: apt-get install -y --no-install-recommends {PACKAGES}"
    return None


@dataclass(frozen=True)
class Cluster:
    """A running SLURM; its environment is what commands need to find it."""

    folder: Path
    environment: dict[str, str]

    def tool(self, *words: str) -> str:
        """What a command of SLURM prints."""
        done = subprocess.run(words, env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    def queue(self) -> dict[str, str]:
        """The state of every job in the queue."""
        lines = self.tool("squeue", "-h", "-r", "-o", "%i %T").splitlines()
        return dict(line.split() for line in lines)

    def logs(self) -> str:
        """What the daemons wrote, for a test that fails."""
        return "\n".join(f"== {p.name}\n{p.read_text()[-3000:]}" for p in sorted(self.folder.glob("slurm*.log")))


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """Start the daemons and wait until both nodes are idle; end them, and what they started, at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state").mkdir()
    conf = folder / "slurm.conf"
    conf.write_text(_CONF.format(folder=folder, user=getpass.getuser(), ports=_free_ports(3)))
    mine = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {"SLURM_CONF": str(conf), "PATH": _PATH, "PYTHONPATH": mine}  # jobs find what tests pickle
    whole = {**os.environ, **environment}
    stepd = str(Path(shutil.which("slurmstepd", path=_PATH) or "").resolve())
    with (folder / "daemons.txt").open("wb") as said, contextlib.ExitStack() as daemons:
        for words in (["slurmctld", "-D"], *(["slurmd", "-D", "-N", node, "-d", stepd] for node in ("n1", "n2"))):
            daemon = subprocess.Popen(words, env=whole, stdout=said, stderr=said, start_new_session=True)
            daemons.callback(_end, daemon)
        cluster = Cluster(folder, environment)
        deadline = time.monotonic() + 30
        while "idle" not in _nodes(whole) or "unk" in _nodes(whole):
            assert time.monotonic() < deadline, cluster.logs()
            time.sleep(0.2)
        try:
            yield cluster
        finally:
            subprocess.run(["scancel", "-u", getpass.getuser(), "-s", "KILL", "-f"], env=whole, check=False)
            subprocess.run(["scancel", "-u", getpass.getuser()], env=whole, check=False)
            deadline = time.monotonic() + 10
            while cluster.queue() and time.monotonic() < deadline:
                time.sleep(0.2)


def note_failure(place: Path, reason: str) -> None:
    """What a job calls in place of a record of failure."""
    place.write_text(reason)


def _nodes(environment: dict[str, str]) -> str:
    done = subprocess.run(["sinfo", "-h", "-o", "%t"], env=environment, capture_output=True, text=True, check=False)
    return done.stdout


def _end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as taken:
        ports = []
        for _ in range(count):
            one = taken.enter_context(socket.socket())
            one.bind(("127.0.0.1", 0))
            ports.append(one.getsockname()[1])
        return ports
