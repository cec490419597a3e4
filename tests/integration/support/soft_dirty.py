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

MOVER = """
    import ctypes, mmap, os
    TABLE, HUGEPAGE, NOHUGEPAGE = 2 * 2**20, 14, 15
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
    size, at = ctypes.c_size_t, ctypes.c_void_p

    def mapped(length):
        return libc.mmap(None, size(length), 3, 0x4022, -1, ctypes.c_long(0))

    first = mapped(12 * TABLE)
    first += -first % TABLE
    slots = [first + 2 * number * TABLE for number in range(5)]
    for slot in slots:
        libc.munmap(at(slot + TABLE), size(TABLE))
        libc.madvise(at(slot), size(TABLE), NOHUGEPAGE)

    def fill(number, content):
        ctypes.memset(slots[number], content, TABLE)

    def move(source, target):
        MAYMOVE, FIXED = 1, 2
        moved = libc.mremap(
            at(slots[source]), size(TABLE), size(TABLE), MAYMOVE | FIXED, at(slots[target])
        )
        assert moved == slots[target], ctypes.get_errno()

    def swap(one, other, spare=4):
        for source, target in (one, spare), (other, one), (spare, other):
            move(source, target)

    def contents(number):
        pages = ctypes.string_at(slots[number], TABLE)[:: mmap.PAGESIZE]
        return sorted(set(pages))

    def huge(number):
        return libc.madvise(at(slots[number]), size(TABLE), HUGEPAGE)

    fill(0, 1)
    fill(1, 2)
    serve(fill=fill, move=move, swap=swap, contents=contents, huge=huge)
"""
"""A process that moves memory with its page tables. At first, the bytes of ``contents(0)`` are 1,
and those of ``contents(1)`` are 2."""
