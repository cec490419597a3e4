"""A SLURM cluster: munged, slurmctld and slurmd with their files in one directory.

It has one node, and a second one in the context ``second_node``. The programs are those of Debian's
packages, which are unpacked into a directory and not installed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..integration.support.processes import PATIENCE, eventually

CLIENTS = ("sbatch", "scancel", "scontrol", "sinfo", "squeue")
USER = 65534
SECOND = "second"
NODE_TIMEOUT = 20
"""Seconds until a node that does not respond is lost for SLURM."""
GRACE = 40
"""Seconds between SIGUSR1 and SIGTERM for a job that is preempted in the partition ``low``."""

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthInfo=socket={directory}/sockets/munge,cred_expire=5
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmctldPort={ports[0]}
SlurmdTimeout={timeout}
PluginDir={plugins}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
ReturnToService=2
KillWait=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SchedulerParameters=batch_sched_delay=1,sched_interval=2
MailProg=/bin/true
NodeName={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 State=UNKNOWN
NodeName={second} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES PriorityTier=1 GraceTime={grace}
PartitionName=lowest Nodes={host} PriorityTier=1 GraceTime=0
PartitionName=high Nodes={host} PriorityTier=10 PreemptMode=OFF
PartitionName=both Nodes={host},{second} PriorityTier=1
"""


@dataclass
class Cluster:
    """One cluster, running until ``stop``."""

    root: Path
    """The directory of the unpacked packages."""
    directory: Path
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list, init=False)
    added_address: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.bin = self.directory / "bin"
        self._usr = self.root / "usr"
        (self._libraries,) = self._usr.glob("lib/*-linux-gnu")
        self._plugins = self._libraries / "slurm-wlm"

    def start(self) -> None:
        """Start the daemons, and wait until the node is idle."""
        if not _resolves():
            self._address("add")
        self.directory.chmod(0o755)
        for name, mode in (("bin", 0o755), ("sockets", 0o755), ("munge", 0o700)):
            (self.directory / name).mkdir(mode=mode)
        for name in ("state", f"spool-{_host()}", f"spool-{SECOND}"):
            (self.directory / name).mkdir()
        self._configure()
        for name in CLIENTS:
            self._wrap(name)
        munge = self.directory / "munge"
        key = munge / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        endpoint = self.directory / "sockets" / "munge"
        options = [f"--key-file={key}", f"--socket={endpoint}", f"--pid-file={munge / 'pid'}"]
        options += [f"--seed-file={munge / 'seed'}", f"--log-file={munge / 'log'}"]
        self._daemon("munged", "--foreground", "--force", *options)
        eventually(endpoint.is_socket, "the socket of munged")
        self._daemon("slurmctld-wlm", *self._foreground)
        self._daemon(*self._slurmd(_host()))
        try:
            eventually(lambda: self.state_of_node(_host()) == "idle", "an idle node")
        except BaseException as error:
            error.add_note(self.logs())
            self.stop()
            raise

    @property
    def _foreground(self) -> list[str]:
        return ["-D", "-f", str(self.directory / "slurm.conf")]

    def _slurmd(self, node: str) -> list[str]:
        stepd = self._usr / "sbin" / "slurmstepd-wlm"
        return ["slurmd-wlm", *self._foreground, "-N", node, "-d", str(stepd)]

    @contextlib.contextmanager
    def second_node(self, local: Path, common: Path) -> Iterator[subprocess.Popen[bytes]]:
        """A second node while the first one takes no jobs: its slurmd.

        It is the first process of a pid namespace, whose end is that of the node and its jobs. The
        node has the directory ``local`` at the path ``common``.
        """
        own = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
        mounted = ("sh", "-c", 'mount --bind "$0" "$1" && shift && exec "$@"', local, common)
        self._daemon(*self._slurmd(SECOND), prefix=[*own, *map(str, mounted)])
        daemon = self.daemons[-1]
        try:
            eventually(lambda: self.state_of_node(SECOND) == "idle", "an idle second node")
            self._update_node(_host(), "State=DRAIN", "Reason=test")
            yield daemon
        finally:
            self.resume_node()
            self.daemons.remove(daemon)
            daemon.kill()
            daemon.wait()

    def resume_node(self) -> None:
        """Let SLURM start jobs on the first node again."""
        if "drain" in self.state_of_node(_host()):
            self._update_node(_host(), "State=RESUME")

    def _update_node(self, node: str, *words: str) -> None:
        self.client("scontrol", "update", f"NodeName={node}", *words)

    def state_of_node(self, node: str) -> str:
        """The state of a node, such as ``idle``."""
        return self.client("sinfo", "-h", "-n", node, "-o", "%T", "-p", "both")

    def stop(self) -> None:
        """End the daemons, by pid."""
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        if self.added_address:
            self._address("delete")

    def client(self, *words: str, user: int = 0, cwd: str | Path = "/") -> str:
        """Run a program of SLURM, and return its output."""
        done = self._client(*words, user=user, cwd=cwd)
        assert done.returncode == 0, (words, done.stderr, self.logs())
        return done.stdout.strip()

    def submit(self, script: Path, *options: str, user: int = 0) -> str:
        """Submit a batch script, and return the number of the job."""
        words = ["sbatch", "--parsable", "--open-mode=append", *options, str(script)]
        return self.client(*words, user=user, cwd=script.parent)

    def state(self, number: str) -> str:
        """The state of a job, such as ``RUNNING``."""
        found = re.search(r"\bJobState=(\w+)", self.client("scontrol", "show", "job", number))
        return found[1] if found else ""

    def job(self, number: str) -> str:
        """SLURM's description of a job."""
        return self.client("scontrol", "show", "job", number)

    def cancel_all(self) -> None:
        """Cancel the jobs, and wait until they have ended."""
        self._client("scancel", "--user=root")
        self._client("scancel", f"--user={USER}")
        eventually(lambda: not self.client("squeue", "-h"), "the end of all jobs")

    def logs(self) -> str:
        """The last lines of the daemons' logs."""
        result = []
        for path in sorted(self.directory.glob("*.log")):
            lines = path.read_text(errors="replace").splitlines()[-8:]
            result.append("\n".join([f"{path.name}:", *lines]))
        return "\n".join(result)

    def _client(
        self, *words: str, user: int = 0, cwd: str | Path = "/"
    ) -> subprocess.CompletedProcess[str]:
        prefix = as_user(user)
        path = os.pathsep.join([str(self.bin), os.environ["PATH"]])
        return subprocess.run(
            [*prefix, str(self.bin / words[0]), *words[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            cwd=cwd,
            env={**os.environ, "PATH": path},
        )

    def _configure(self) -> None:
        with _free_ports(3) as ports:
            text = CONFIGURATION.format(
                host=_host(),
                second=SECOND,
                timeout=NODE_TIMEOUT,
                directory=self.directory,
                ports=ports,
                plugins=self._plugins,
                grace=GRACE,
            )
        (self.directory / "slurm.conf").write_text(text)

    def _address(self, verb: str) -> None:
        """A second address: with 127.0.0.1 alone, libc resolves nothing for SLURM."""
        subprocess.run(["ip", "address", verb, "127.0.0.2/8", "dev", "lo"], check=True)
        self.added_address = verb == "add"

    def _environment(self) -> dict[str, str]:
        libraries = os.pathsep.join(map(str, (self._plugins, self._libraries)))
        return {**os.environ, "LD_LIBRARY_PATH": libraries}

    def _daemon(self, name: str, *words: str, prefix: Sequence[str] = ()) -> None:
        with open(self.directory / f"{name}{len(self.daemons)}.log", "wb") as log:
            self.daemons.append(
                subprocess.Popen(
                    [*prefix, str(self._usr / "sbin" / name), *words],
                    env=self._environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.directory,
                    start_new_session=True,
                )
            )

    def _wrap(self, name: str) -> None:
        """Write a wrapper that sets the library path for a program of SLURM, but not for jobs."""
        libraries = self._environment()["LD_LIBRARY_PATH"]
        path = self.bin / name
        path.write_text(
            "#!/bin/sh\n"
            f"export LD_LIBRARY_PATH={shlex.quote(libraries)}\n"
            f"export SLURM_CONF={shlex.quote(str(self.directory / 'slurm.conf'))}\n"
            f'exec {shlex.quote(str(self._usr / "bin" / name))} "$@"\n'
        )
        path.chmod(0o755)


def as_user(user: int) -> Sequence[str]:
    """The command prefix that selects a user."""
    if not user:
        return ()
    return ("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups")


def _resolves() -> bool:
    with contextlib.suppress(OSError):
        return bool(socket.getaddrinfo("127.0.0.1", 1, socket.AF_INET, flags=socket.AI_ADDRCONFIG))
    return False


def _host() -> str:
    return os.uname().nodename.partition(".")[0]


@contextlib.contextmanager
def _free_ports(count: int) -> Iterator[list[int]]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        yield [each.getsockname()[1] for each in sockets]


def python_of(user: int) -> str:
    """A Python that a user can run; an empty string if there is none."""
    code = "import sys; sys.exit(sys.version_info < (3, 11))"
    for python in (sys.executable, "/usr/bin/python3"):
        # With env: setpriv keeps its capabilities until it executes a program.
        words = [*as_user(user), "env", python, "-c", code]
        with contextlib.suppress(OSError):
            if subprocess.run(words, capture_output=True, check=False, cwd="/").returncode == 0:
                return python
    return ""
