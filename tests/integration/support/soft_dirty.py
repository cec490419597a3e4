"""A process that changes its memory continuously, for tests of pre-copy."""

from __future__ import annotations

PAGES, BUSY = 4096, 64
"""The number of pages of ``WRITER``, and of those that it writes."""

WRITER = f"""
    import hashlib, mmap, os, struct, threading
    PAGES, BUSY, PAGE = {PAGES}, {BUSY}, mmap.PAGESIZE
    memory = mmap.mmap(-1, PAGES * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    stamps = [0] * PAGES
    lock = threading.Lock()

    def pattern(page, stamp):
        return hashlib.sha256(b"%d %d" % (page, stamp)).digest() * (PAGE // 32)

    def write(page):
        stamps[page] += 1
        memory[page * PAGE : (page + 1) * PAGE] = pattern(page, stamps[page])

    def keep_writing():
        while True:
            for page in range(BUSY):
                with lock:
                    write(page)
            pause.wait(0.01)

    def touch(first, last):
        with lock:
            for page in range(first, last):
                write(page)

    def wrong():
        with lock:
            return [page for page in range(PAGES)
                    if memory[page * PAGE : (page + 1) * PAGE] != pattern(page, stamps[page])]

    def writes():
        with lock:
            return stamps[0]

    touch(0, PAGES)
    pause = threading.Event()
    threading.Thread(target=keep_writing, daemon=True).start()
    serve(touch=touch, wrong=wrong, writes=writes)
"""
"""A process with a pattern in each page, which writes some pages and can check all."""
