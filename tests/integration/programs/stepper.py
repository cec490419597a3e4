"""A job of many steps that writes files in several ways. Each step depends on those before.

Called with a directory and a number of steps; it also ends when the directory has a file
``finish``. What it writes depends on the number of steps alone.
"""

from __future__ import annotations

import hashlib
import mmap
import sqlite3
import sys
import time
from pathlib import Path


def main(where: str, most: int, pause: float) -> None:
    directory = Path(where)
    out = directory / "out"
    out.mkdir(exist_ok=True)
    written = open(out / "written", "w+")
    appended = open(out / "appended", "a")
    mapped_file = open(out / "mapped", "w+b")
    mapped_file.truncate(65536)
    mapped = mmap.mmap(mapped_file.fileno(), 65536)
    database = sqlite3.connect(out / "database", isolation_level=None)
    database.execute("create table if not exists rows (number integer primary key, digest text)")
    digest = hashlib.sha256()
    step = 0
    while step < most and not (directory / "finish").exists():
        digest.update(b"%d" % step)
        now = digest.hexdigest()
        written.write(f"{step} {now}\n")
        appended.write(f"{step} {now}\n")
        place = step * 64 % 65536
        mapped[place : place + 64] = now.encode()
        with open(out / "opened-each-time", "a") as each:
            each.write(f"{step} {now}\n")
        if step % 5 == 0:
            database.execute("begin immediate")
        database.execute("insert into rows values (?, ?)", (step, now))
        if step % 5 == 4:
            database.execute("commit")
        print(step, now, flush=True)
        for file in (written, appended):
            file.flush()
        step += 1
        time.sleep(pause)
    if database.in_transaction:
        database.execute("commit")
    database.close()
    (directory / "steps").write_text(str(step))


main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
