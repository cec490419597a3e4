"""docs/peers.md: each row of its table names a test that uses what the row is about."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"\| (.+?) \|(?: [yrpan] \|)+ \[y\]\(\.\./(tests/[^)]+\.py)\) \|")

PROOFS = {
    "dump": r"\bdump\(",
    "restore": r"\brestore\(",
    "restore returns pid": r"restore\(.*\)\.pid",
    "restore as child/sibling": r"restore_child\(",
    "self-dump": r"dump\(None",
    "single pre-dump": r"\bpre_dump\(",
    "iterative dump loop": r"dump_iters\(",
    "check": r"\bcheck\b",
    "get version": r"version\(",
    "version >= N": r"version\(\)",
    "feature check": r"feature_check\(",
    "start page server": r"page_server\(",
    "wait_pid": r"wait_pid\(|\.wait\(",
    "cpuinfo dump/check": r"cpuinfo_check\(",
    "service socket": r"Service\(",
    "caller's fd": r"Socket\(",
    "custom criu path": r"Worker\(program=|Worker\(",
    "persistent swrk": r"WorkerPool\(",
    "notifications": r"on_notify=",
    "closure/user data in callback": r"on_notify=",
    "orphan pty master fd": r"orphan_pts_master",
    "status-ready": r"status_fd|status-ready|STATUS_READY",
    "query-ext-files reply": r"QUERY_EXT_FILES|query.ext.files",
    "images dir by path": r"images_directory",
    "images/work dir fd": r"work_directory",
    "log level/file choice": r"log_level",
    "parent images": r"parent_image",
    "parent path validated": r"parent_image",
    "track_mem": r"track_mem",
    "pre-dump mode": r"pre_dump_mode",
    "leave running": r"leave_running",
    "leave stopped": r"leave_stopped",
    "tcp established": r"tcp_established",
    "tcp close": r"tcp_close",
    "tcp skip in-flight": r"tcp_skip_in_flight",
    "external unix sockets": r"external_unix_connections",
    "shell job": r"shell_job",
    "file locks": r"file_locks",
    "link remap": r"link_remap",
    "auto dedup": r"auto_dedup",
    "lazy pages": r"lazy_pages",
    "saved images served to a lazy restore": r"page_server",
    "`dedup`": r"\bdedup\(",
    "status fd": r"status_fd",
    "page server addr:port": r"page_server=",
    "page server fd": r"PageServer\(.*fd|page_server=.*fileno|page_server=\w+",
    "page server TLS": r"tls_cacert",
    "cgroup mode": r"manage_cgroups_mode",
    "freeze cgroup": r"freeze_cgroup",
    "cgroup root": r"cg_roots",
    "cgroup props/controllers/yard": r"(?s)(?=.*cg_props)(?=.*cg_dump_controllers)(?=.*cg_yard)",
    "external mounts": r"external=",
    "veth pairs": r"veth_pairs",
    "inherit fd": r"inherit_fds",
    "join ns": r"join_ns",
    "empty ns": r"empty_ns",
    "LSM profile/mount ctx": r"lsm_profile",
    "network-lock method": r"network_lock",
    "RPC config file": r"config_file",
    "timeout, ghost limit": r"(?s)(?=.*ghost_limit)(?=.*timeout)",
    "cpu cap": r"cpu_cap",
    "skip-mnt, enable-fs": r"(?s)(?=.*skip_mnts)(?=.*enable_fs)",
    "irmap": r"force_irmap",
    "unprivileged": r"unprivileged=",
    "pidfd store": r"pidfd_store",
    "image streaming": r"dump_stream\(",
    "errno surfaced": r"errno",
    "cr_errmsg surfaced": r"cr_errmsg",
    "log excerpt on error": r"\.lines|check_explanation\(",
    "typed errors": r"NoSuchProcessError",
    "missing criu reported as such": r"ProgramNotFoundError",
    "version-gated option errors": r"UnsupportedError|release|needs CRIU",
    "image decode/encode": r"(?s)(?=.*decode)(?=.*encode)",
    "explore ps/fd/mem/sockets": r"descriptors|sockets",
    "dump/restore stats": r"statistics",
    "sockets/mounts alone, entries of an image": r"sockets",
    "pretty form (flags, addresses, devices as text), both ways": r"pretty",
    "decode from stdin, to a file": r"\"decode\", \"-|decode",
    "memory by range to a file or as hex; search by expression with context": r"--read.*|--regex",
    "a container's checkpoint without unpacking it": r"tar",
    "memory read/search": r"search",
    "checkpoint diff": r"diff\(",
    "archive/compress/OCI image": r"(?s)(?=.*zstd)(?=.*oci|.*OCI)",
    "live-migration helper": r"migrate_out",
    "stdio reattach": r"stdin|stdout",
    "asyncio, timeouts, cancel": r"(?s)(?=.*deadline|.*timeout)(?=.*cancel)",
}
"""What the named test contains, by row."""

ROWS = {
    row[1]: row[2]
    for line in (ROOT / "docs" / "peers.md").read_text().splitlines()
    if (row := ROW.fullmatch(line)) is not None
}


def test_every_row_is_known() -> None:
    """Each row of the page has a word here, and each word has a row."""
    assert set(ROWS) == set(PROOFS)


@pytest.mark.parametrize("row", PROOFS)
def test_the_test_of_a_row(row: str) -> None:
    """The test of a row exists, and uses the option or function of the row."""
    assert re.search(PROOFS[row], (ROOT / ROWS[row]).read_text()), ROWS[row]
