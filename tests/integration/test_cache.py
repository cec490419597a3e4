"""CRIU's feature cache: ``feature_cache`` reports the behaviour of CRIU."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

from pycriu_native import CacheState, feature_cache

from .support import releases

REPO = Path(__file__).parents[2]

PRELUDE = """
import ctypes, logging, os, subprocess, sys
from pathlib import Path
from pycriu_native import CriuOpts, dump, feature_cache, version
from pycriu_native._transport import forkserver

def mount(kind, place="/run"):
    libc = ctypes.CDLL(None, use_errno=True)
    assert not libc.unshare(0x20000)
    assert not libc.mount(b"none", b"/", None, 0x44000, None)  # MS_REC | MS_PRIVATE
    if kind:
        done = libc.mount(b"none", place.encode(), kind, 0, None)
        assert not done, os.strerror(ctypes.get_errno())

def saved(via=None):
    '''A dump of a process; what CRIU's log says of its cache.'''
    null = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    job = subprocess.Popen(["sleep", "60"], start_new_session=True, **null)
    opts = CriuOpts(images_directory=IMAGES, leave_running=True, log_level=4)
    try:
        result = dump(job.pid, opts, via=via)
    finally:
        job.kill()
        job.wait()
    return [line for line in Path(result.log).read_text().splitlines() if "kdat" in line]

forkserver.UNTIL_LOADED = 60.0  # the machine may be busy

def loads(pool):
    '''Whether a dump by a pool loads the cache.'''
    assert pool.wait_until_ready(60)
    return any("Loaded kdat cache" in line for line in saved(pool))
"""


def apart(body: str, images: Path) -> None:
    """Run the test in a separate process and mount namespace."""
    code = PRELUDE.replace("IMAGES", repr(str(images))) + textwrap.dedent(body)
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_kept(images: Path) -> None:
    """On a tmpfs the cache is first absent, then written by a call, and loaded by the next call."""
    apart(
        """
        mount(b"tmpfs")
        assert feature_cache().state == "absent", feature_cache()
        assert feature_cache().cure is None
        saved()
        found = feature_cache()
        assert found.state == "kept", found
        assert found.path == "/run/criu.kdat" and found.cure is None
        assert any("Loaded kdat cache" in line for line in saved())
        """,
        images,
    )


def test_impossible(images: Path) -> None:
    """On another file system CRIU does not store the cache."""
    apart(
        """
        mount(b"ramfs")
        for _ in range(2):
            found = feature_cache()
            assert found.state == "impossible" and "ramfs" in found.reason, found
            assert "tmpfs" in found.cure
            assert not any("Loaded" in line for line in saved())
        """,
        images,
    )


def test_kept_all_the_same(images: Path) -> None:
    """If /run is not a tmpfs, the cache is stored on another one, and every CRIU loads it from
    there.
    """
    apart(
        """
        from pycriu_native import keep_feature_cache
        mount(b"tmpfs", "/dev/shm")
        mount(b"tmpfs")
        assert keep_feature_cache().state == "absent"  # CRIU does it by itself
        assert os.listdir("/run") == os.listdir("/dev/shm") == []
        mount(b"ramfs")
        found = keep_feature_cache()
        assert found.state == "kept" and found.cure is None, found
        assert found.reason == "it is kept, in /dev/shm/criu.kdat"
        assert os.stat("/run/criu.kdat").st_mode & 0o777 == 0o600
        for _ in range(2):
            assert any("Loaded kdat cache" in line for line in saved())
        assert feature_cache() == found == keep_feature_cache()
        assert sorted(os.listdir("/dev/shm")) == ["criu.kdat"]
        # Another build of CRIU removes it, and it can be made again.
        Path("/dev/shm/criu.kdat").write_bytes(b"of another build")
        assert any("Stale" in line for line in saved())
        assert feature_cache().state == "impossible"
        done = subprocess.run(
            [sys.executable, "-m", "pycriu_native", "keep-cache"],
            capture_output=True, text=True, check=True,
        )
        assert done.stdout == "/run/criu.kdat: it is kept, in /dev/shm/criu.kdat\\n", done.stdout
        assert feature_cache() == found
        """,
        images,
    )


def test_shared_by_a_pool(images: Path) -> None:
    """The workers of a pool share a cache if CRIU cannot write one in /run; /run is not changed."""
    apart(
        """
        from pycriu_native import WorkerPool
        mount(b"ramfs")
        for _ in range(2):
            with WorkerPool(2) as pool:
                assert not loads(pool)
                assert any(loads(pool) for _ in range(8))  # a busy pool uses workers of their own
        assert not os.path.exists("/run/criu.kdat")
        assert not any("Loaded" in line for line in saved())  # a new worker
        assert feature_cache().state == "impossible"
        """,
        images,
    )


def test_a_pool_prefers_a_file(images: Path) -> None:
    """A pool on a tmpfs writes and loads the file in /run; one that is blocked there shares it."""
    releases.required("4.1", "a temporary file that blocks the cache")
    apart(
        """
        from pycriu_native import WorkerPool
        mount(b"tmpfs")
        with WorkerPool(2) as pool:
            assert [loads(pool) for _ in range(2)] == [False, True]
            assert os.listdir("/run") == ["criu.kdat"]
            os.unlink("/run/criu.kdat")
            assert [loads(pool) for _ in range(2)] == [False, True]
            assert os.listdir("/run") == ["criu.kdat"]
        os.rename("/run/criu.kdat", "/run/criu.kdat.tmp")
        with WorkerPool(2) as pool:
            assert not loads(pool)
            assert any(loads(pool) for _ in range(8))
        assert os.listdir("/run") == ["criu.kdat.tmp"]
        """,
        images,
    )


def test_not_kept(images: Path) -> None:
    """Without root, a tmpfs or CRIU, or with a file of that name, an error is raised and nothing is
    created.
    """
    apart(
        """
        from pycriu_native import CriuError, ProgramError, Worker, keep_feature_cache
        mount(b"ramfs")
        mount(b"ramfs", "/dev/shm")
        def refused(kind, word, **more):
            try:
                keep_feature_cache(**more)
            except CriuError as error:
                assert type(error).__name__ == kind and word in str(error), error
            else:
                raise AssertionError(word)
            assert os.listdir("/run") == os.listdir("/dev/shm") == [], os.listdir("/dev/shm")
        refused("CriuError", "/dev/shm is ramfs")
        mount(b"tmpfs", "/dev/shm")
        refused("ProgramError", "/usr/bin/true", via=Worker(program="/usr/bin/true"))
        os.chmod("/dev/shm", 0o1777)
        if os.fork() == 0:
            os.setresuid(12345, 12345, 12345)
            try:
                refused("PermissionDeniedError", "run as root")
            except BaseException as error:
                print(error, file=sys.stderr)
                os._exit(1)
            os._exit(0)
        assert os.wait()[1] == 0
        Path("/dev/shm/criu.kdat").mkdir()
        try:
            keep_feature_cache()
        except CriuError as error:
            assert "cannot write the feature cache to /dev/shm/criu.kdat" in str(error), error
        assert os.listdir("/run") == [] and os.listdir("/dev/shm") == ["criu.kdat"]
        """,
        images,
    )


def test_blocked(images: Path) -> None:
    """A remaining temporary file prevents the cache; its removal is the reported cure."""
    releases.required("4.1", "a temporary file that blocks the cache")
    apart(
        """
        mount(b"tmpfs")
        left = Path("/run/criu.kdat.tmp")
        left.touch()
        os.utime(left, (1, 1))
        saved()
        found = feature_cache()
        assert found.state == "blocked", found
        assert found.cure == "remove /run/criu.kdat.tmp"
        left.unlink()
        saved()
        assert feature_cache().state == "kept"
        """,
        images,
    )


def test_a_stale_cache(images: Path) -> None:
    """A cache that is older than the boot, or was not written by CRIU, is reported as such."""
    apart(
        """
        mount(b"tmpfs")
        saved()
        os.utime("/run/criu.kdat", (1, 1))
        assert feature_cache().state == "stale"
        Path("/run/criu.kdat").write_bytes(b"something")
        assert feature_cache().state == "stale"
        saved()
        assert feature_cache().state == "kept"
        """,
        images,
    )


def test_the_advice(images: Path) -> None:
    """The advice is logged once, if it is enabled and something can be done."""
    apart(
        """
        mount(b"ramfs")
        saved()  # nobody has imported logging's configuration yet
        lines = []
        class Listener(logging.Handler):
            def emit(self, record):
                lines.append((record.levelname, record.getMessage()))
        logger = logging.getLogger("pycriu_native.advice")
        logger.addHandler(Listener())
        saved()
        assert lines == []
        logger.setLevel(logging.INFO)
        saved()
        saved()
        (line,) = lines
        assert line[0] == "INFO" and "tmpfs" in line[1], line
        """,
        images,
    )


def test_the_cache_of_this_machine() -> None:
    """``feature_cache`` works on any machine, and reports a state, a reason and a cure."""
    result = feature_cache()
    assert result.state in list(CacheState)
    assert result.reason in str(result)
    assert (result.cure is None) == (result.state in (CacheState.KEPT, CacheState.ABSENT))
