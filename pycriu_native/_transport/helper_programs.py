"""The programs that CRIU runs itself: it finds them in the PATH of the worker.

``criu/net.c``: ``ip`` for a network namespace, ``iptables-restore`` to lock one, and the legacy
program of iptables for its rules; ``criu/netfilter.c``: ``iptables`` by ``sh`` for a connection;
``criu/filesystems.c``: ``tar`` with ``gzip`` for a tmpfs. Confirmed with 4.2.1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable

from ..results import Version
from .base import Via
from .program import SEARCH_PATH
from .worker import worker_of

PACKAGES = {"ip": "iproute2", "sh": "dash"}
"""Packages of Debian that do not have the name of their program."""

FAMILIES = ("iptables", "ip6tables")


class HelperPrograms:
    """The programs that the CRIU of ``via`` finds; unknown for a running service."""

    def __init__(self, via: Via | None) -> None:
        worker = worker_of(via)
        self.known = via is None or worker is not None
        env = {} if worker is None else worker.env
        self.path = env.get("PATH", SEARCH_PATH)
        self.ip = env.get("CR_IP_TOOL", "ip")
        """CRIU's variable for another program."""

    def missing(self, *programs: str) -> tuple[str, ...]:
        """Those of the programs that it does not find."""
        if not self.known:
            return ()
        return tuple(name for name in programs if shutil.which(name, path=self.path) is None)

    def missing_for_lock(self, families: Iterable[str]) -> tuple[str, ...]:
        """``missing`` for the lock of connections of these families by iptables."""
        return self.missing("sh", *families)

    def missing_for_namespace_lock(self) -> tuple[str, ...]:
        """``missing`` for the lock of a network namespace by iptables, and for its removal."""
        families = FAMILIES if os.path.exists("/proc/sys/net/ipv6") else FAMILIES[:1]
        return self.missing(*(f"{family}-restore" for family in families))

    def described(self, lacking: tuple[str, ...]) -> str:
        """The end of a message about programs that CRIU needs and does not find."""
        them = "it" if len(lacking) == 1 else "them"
        return f"with {' and '.join(lacking)}, and {self.path} does not have {them}"

    def saves_rules(self) -> bool:
        """Whether CRIU finds a legacy iptables: it saves the rules of network namespaces then."""
        return self.known and any(not self._missing_legacy(f"{each}-save") for each in FAMILIES)

    def missing_for_rules(self, family: str, release: Version) -> tuple[str, ...]:
        """``missing`` for a restore of saved rules by this release of CRIU.

        CRIU before 3.18 saves them with the legacy program too, but restores them with the plain
        one, whatever it is (``criu/net.c`` of 3.17).
        """
        program = f"{family}-restore"
        if release < Version(major=3, minor=18):
            return self.missing("sh", program)
        return self.missing("sh") + self._missing_legacy(program)

    def _missing_legacy(self, program: str) -> tuple[str, ...]:
        """CRIU takes the program if its release does not say nf_tables, else the legacy one."""
        plain = shutil.which(program, path=self.path)
        if plain is not None:
            done = subprocess.run([plain, "-V"], capture_output=True, text=True, check=False)
            if done.returncode == 0 and "nf_tables" not in done.stdout:
                return ()
        return self.missing(program.replace("tables-", "tables-legacy-"))


def cure(programs: tuple[str, ...]) -> str:
    """The command that installs them on Debian and Ubuntu."""
    packages = ("iptables" if "tables" in name else PACKAGES.get(name, name) for name in programs)
    return f"apt-get install {' '.join(dict.fromkeys(packages))}"
