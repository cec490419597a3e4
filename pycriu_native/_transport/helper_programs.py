"""The programs that CRIU runs itself: it finds them in the PATH of the worker.

``criu/net.c`` (``ip`` for a network namespace that is saved or restored, ``iptables-restore``),
``criu/filesystems.c`` (``tar``, with ``gzip``, for a tmpfs); all confirmed with 4.2.1.
"""

from __future__ import annotations

import os
import shutil

from .program import SEARCH_PATH
from .worker import worker_of

PACKAGES = {
    "ip": "iproute2",
    "tar": "tar",
    "gzip": "gzip",
    "sh": "dash",
    "iptables-restore": "iptables",
    "ip6tables-restore": "iptables",
    "iptables-legacy-restore": "iptables",
    "ip6tables-legacy-restore": "iptables",
}
"""The package of Debian that has each."""


def search_path(via: object) -> str:
    """The PATH in which the CRIU of ``via`` finds programs; that of a service is not known."""
    worker = worker_of(via)
    return SEARCH_PATH if worker is None else worker.env.get("PATH", SEARCH_PATH)


def missing(path: str, *programs: str) -> tuple[str, ...]:
    """Those of the programs that ``path`` does not have."""
    return tuple(name for name in programs if shutil.which(name, path=path) is None)


def legacy_restore(path: str, family: str) -> tuple[str, ...]:
    """``missing`` for the program that restores rules of ``iptables`` or ``ip6tables``.

    CRIU saves and restores those of the legacy program only; ``iptables-restore`` can be the
    program of nftables of the same name (``get_legacy_iptables_bin`` of ``criu/util.c``).
    """
    plain = shutil.which(f"{family}-restore", path=path)
    if plain is not None and "nft" not in os.path.basename(os.path.realpath(plain)):
        return ()
    return missing(path, f"{family}-legacy-restore")


def cure(programs: tuple[str, ...]) -> str:
    """The command that installs them on Debian and Ubuntu."""
    return f"apt-get install {' '.join(dict.fromkeys(PACKAGES[name] for name in programs))}"
