"""A process that writes files in every way; it pauses twice, for a dump and for its end.

Called with a directory. It makes ``ready-1``, waits for ``go-1``, goes on, makes ``ready-2`` and
waits for ``go-2``: then it ends. Each part of its work depends on what it wrote before.
"""

from __future__ import annotations

import mmap
import os
import sqlite3
import sys
import time
from pathlib import Path

STEPS = 20


def _pause(directory: Path, number: int) -> None:
    (directory / f"ready-{number}").touch()
    while not (directory / f"go-{number}").exists():
        time.sleep(0.005)


def main(where: str) -> None:
    directory = Path(where)
    out = directory / "out"
    written = open(out / "written", "w+")
    appended = open(out / "appended", "a")
    large = open(out / "large", "ab")
    large.truncate(8 * 2**20)
    sparse = open(out / "sparse", "w+b")
    cut = open(out / "cut", "w+b")
    renamed = open(out / "renamed", "w")
    deleted = open(out / "deleted", "w")
    replaced = open(out / "replaced", "w")
    linked = open(out / "linked", "w")
    os.link(out / "linked", out / "other-name")
    mapped_file = open(out / "mapped", "w+b")
    mapped_file.truncate(8192)
    mapped = mmap.mmap(mapped_file.fileno(), 8192)
    mapped_file.close()
    database = sqlite3.connect(out / "database", isolation_level=None)
    database.execute("create table rows (number, text)")

    def work(steps: range) -> None:
        for step in steps:
            written.seek(0)
            before = len(written.read())
            written.write(f"{step} after {before}\n")
            appended.write(f"{step}\n")
            large.write(b"%d\n" % step)
            sparse.seek(step * 2**20)
            sparse.write(b"%d" % step)
            cut.truncate(0)
            cut.seek(0)
            cut.write(b"%d" % step * (30 - step))
            for file in (renamed, deleted, replaced, linked):
                file.write(f"{step}\n")
            mapped[step * 100 : step * 100 + 2] = b"%02d" % step
            with open(out / "opened-each-time", "a") as each:
                each.write(f"{step}\n")
            for binary in (large, sparse, cut):
                binary.flush()
            for text in (written, appended, renamed, deleted, replaced, linked):
                text.flush()
            if step % 4 == 1:
                database.execute("begin immediate")
            database.execute("insert into rows values (?, ?)", (step, "x" * 2000))
            if step % 4 == 3:
                database.execute("commit")

    work(range(STEPS // 2))
    _pause(directory, 1)
    work(range(STEPS // 2, STEPS))
    os.rename(out / "renamed", out / "renamed-1")
    os.unlink(out / "deleted")
    (out / "new").write_text("new")
    os.rename(out / "new", out / "replaced")
    os.chmod(out / "written", 0o600)
    _pause(directory, 2)
    if database.in_transaction:
        database.execute("commit")
    database.close()


main(sys.argv[1])
