"""Archives of image sets: they are unpacked unchanged, and invalid ones are refused."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import socket
import tarfile
import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest

from pycriu_native import CriuError, ImagesError, OptionError
from pycriu_native.archive import pack, unpack
from pycriu_native.archive import tar as tar_module
from pycriu_native.oci.image_layout import pack_image, unpack_image


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """Three rounds, each the parent of the next."""
    top = tmp_path / "chain"
    for number in (1, 2, 3):
        images = top / str(number)
        images.mkdir(parents=True)
        (images / "inventory.img").write_bytes(b"inventory %d" % number)
        (images / "pages-1.img").write_bytes(os.urandom(100_000) + bytes(200_000))
        (images / "empty.img").touch()
        if number > 1:
            (images / "parent").symlink_to(f"../{number - 1}")
    return top


def content(top: Path) -> dict[str, object]:
    """All files below a directory."""
    return {
        str(path.relative_to(top)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in top.rglob("*")
    }


def keys() -> tuple[str, str]:
    """A recipient, and the identity that can decrypt for it."""
    pyrage = pytest.importorskip("pyrage", reason="pyrage is not installed")
    identity = pyrage.x25519.Identity.generate()
    return str(identity.to_public()), str(identity)


@pytest.mark.parametrize("encrypt", [False, True], ids=["plain", "encrypted"])
@pytest.mark.parametrize("compress", ["none", "gzip", "zstd"])
def test_round_trip(chain: Path, tmp_path: Path, compress: Any, encrypt: bool) -> None:
    """The unpacked files are the same, with the links of the chain, and have mode 0600."""
    if compress == "zstd":
        pytest.importorskip("zstandard", reason="zstandard is not installed")
    recipient, identity = keys() if encrypt else ("", "")
    total = pack(chain, tmp_path / "a", compress=compress, encrypt_to=[recipient] * encrypt)
    assert total == sum(len(data) for data in content(chain).values() if type(data) is bytes)
    assert (b"inventory 1" in (tmp_path / "a").read_bytes()) == (compress == "none" and not encrypt)
    assert unpack(tmp_path / "a", tmp_path / "b", decrypt_with=[identity] * encrypt) == total
    assert content(tmp_path / "b") == content(chain)
    for path in (tmp_path / "a", *(tmp_path / "b").rglob("*"), tmp_path / "b"):
        assert path.is_symlink() or not path.stat().st_mode & 0o077
    if compress != "none":
        assert (tmp_path / "a").stat().st_size < total * 0.5


def test_through_a_socket(chain: Path, tmp_path: Path) -> None:
    """Packing and unpacking need no file in between."""
    ours, theirs = socket.socketpair()

    def send() -> None:
        with ours, ours.makefile("wb") as stream:
            pack(chain, cast(Any, stream), compress="gzip")

    thread = threading.Thread(target=send)
    thread.start()
    with theirs, theirs.makefile("rb") as stream:
        unpack(cast(Any, stream), tmp_path / "b")
    thread.join()
    assert content(tmp_path / "b") == content(chain)


def test_a_place_inside_of_the_archive(chain: Path, tmp_path: Path) -> None:
    """The images can be in a subdirectory, with other files beside it, as in Podman's archives."""
    (tmp_path / "config").write_text("{}")
    more = {"config.dump": tmp_path / "config"}
    pack(chain / "1", tmp_path / "a", inside="checkpoint", more=more)
    with tarfile.open(tmp_path / "a") as tar:
        assert {"config.dump", "checkpoint/inventory.img"} <= set(tar.getnames())
    unpack(tmp_path / "a", tmp_path / "b", inside="checkpoint")
    assert content(tmp_path / "b") == content(chain / "1")
    with pytest.raises(ImagesError, match="inside="):
        unpack(tmp_path / "a", tmp_path / "c", inside="elsewhere")


def test_links_are_the_shortest(chain: Path, tmp_path: Path) -> None:
    """A link to the parent, absolute or with detours, is direct in the archive, and unpacks."""
    link = chain / "3" / "parent"
    link.unlink()
    link.symlink_to("../2/../2")
    pack(chain, tmp_path / "a")
    unpack(tmp_path / "a", tmp_path / "b")
    assert os.readlink(tmp_path / "b/3/parent") == "../2"
    assert (tmp_path / "b/3/parent/parent/inventory.img").read_bytes() == b"inventory 1"


def test_a_set_that_is_not_whole(chain: Path, tmp_path: Path) -> None:
    """A set whose parent is elsewhere, or without images, is refused; nothing is written."""
    with pytest.raises(ImagesError, match="the directory that has the whole chain"):
        pack(chain / "2", tmp_path / "a")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImagesError, match=r"inventory\.img"):
        pack(tmp_path / "empty", tmp_path / "a")
    with pytest.raises(OptionError, match="directory"):
        pack(tmp_path / "nowhere", tmp_path / "a")
    os.mkfifo(chain / "1" / "pages-9.img")
    with pytest.raises(ImagesError, match=r"pages-9\.img is not a regular file"):
        pack(chain, tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"inside": "/abs"}, "inside"),
        ({"inside": "a/../b"}, "inside"),
        ({"more": {"../up": "/dev/null"}}, "more"),
        ({"compress": "rar"}, "compress"),
        ({"encrypt_to": ["nonsense"]}, "encrypt_to"),
    ],
)
def test_invalid_arguments(
    chain: Path, tmp_path: Path, arguments: dict[str, Any], field: str
) -> None:
    """Invalid arguments are named, and nothing is left."""
    if field == "encrypt_to":
        keys()
    with pytest.raises(OptionError, match=field):
        pack(chain, tmp_path / "a", **arguments)
    assert {path.name for path in tmp_path.iterdir()} == {"chain"}


HARD = "hard:"
"""Before the target of a hard link."""


def _archive(*members: tuple[str, bytes | str | None], **headers: str) -> bytes:
    """A tar archive with this member. ``headers``: extended headers of the last member."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number, (name, body) in enumerate(members, 1):
            info = tarfile.TarInfo(name)
            if number == len(members):
                info.pax_headers = {key.replace("_", "."): text for key, text in headers.items()}
            if isinstance(body, bytes):
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))
            else:
                info.type = tarfile.CHRTYPE if body is None else tarfile.SYMTYPE
                info.linkname = body or ""
                if info.linkname.startswith(HARD):
                    info.type = tarfile.LNKTYPE
                    info.linkname = info.linkname.removeprefix(HARD)
                tar.addfile(info)
    return out.getvalue()


def _of_type(kind: bytes) -> bytes:
    """An archive with a file of this type, as GNU tar writes it."""
    info = tarfile.TarInfo("pages-1.img")
    info.type, info.size = kind, 512
    return _archive(GOOD)[:1536] + info.tobuf(tarfile.GNU_FORMAT) + b"x" * 512 + bytes(1024)


def _bomb(kind: bytes) -> bytes:
    """A small archive whose header of 64 MiB has the name of a file."""
    info = tarfile.TarInfo("header")
    info.type, info.size = kind, 64 << 20
    return gzip.compress(_archive(GOOD)[:1536] + info.tobuf() + b"a" * info.size, 1)


GOOD = ("inventory.img", b"x" * 1000)
DATA = _archive(GOOD)


def test_a_file_with_two_names(tmp_path: Path) -> None:
    """A file with two names is in the archive once, and has both names again."""
    images = tmp_path / "images"
    (images / "parent").mkdir(parents=True)
    (images / "inventory.img").write_bytes(os.urandom(100_000))
    (images / "parent" / "pages-1.img").hardlink_to(images / "inventory.img")
    for inside in ("", "checkpoint"):
        assert pack(images, tmp_path / "a", inside=inside, compress="none") == 100_000
        assert (tmp_path / "a").stat().st_size < 150_000
        assert unpack(tmp_path / "a", tmp_path / f"again{inside}", inside=inside) == 100_000
        again = tmp_path / f"again{inside}"
        assert content(again) == content(images)
        assert (again / "inventory.img").samefile(again / "parent" / "pages-1.img")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_archive(GOOD, ("../up", b"")), "outside"),
        (_archive(GOOD, ("/etc/passwd", b"")), "outside"),
        (_archive(GOOD, ("link", "../../x")), "no image"),
        (_archive(GOOD, ("parent", "/etc")), "no image"),
        (_archive(GOOD, ("a/parent", "../../x")), "no image"),
        # A link that goes up behind another link, and a file written through the two.
        (_archive(GOOD, ("y/parent", ".."), ("x/parent", "../y/parent/..")), "no image"),
        (
            _archive(GOOD, ("y/parent", ".."), ("x/parent", "../y/parent/.."), ("x/parent/f", b"")),
            "no image",
        ),
        (_archive(GOOD, ("1/a", b"x"), ("2/parent", "../1"), ("2/parent/b", b"x")), "a link"),
        (_archive(GOOD, ("2/parent", "../1"), ("2/parent", b"x")), "exists"),
        (_archive(GOOD, ("null", None)), "no image"),
        # Hard links: to files that are not of the archive, that follow, or that a link leads to.
        (_archive(GOOD, ("a", HARD + "/etc/passwd")), "no image"),
        (_archive(GOOD, ("a", HARD + "../x")), "no image"),
        (_archive(GOOD, ("a", HARD + "b"), ("b", b"x")), "no image"),
        (_archive(GOOD, ("1/a", b"x"), ("2/parent", "../1"), ("b", HARD + "2/parent")), "no image"),
        (_archive(GOOD, ("a/b", b"x"), ("c", HARD + "a")), "no image"),
        (_archive(GOOD, ("a", b"x"), ("a", HARD + "inventory.img")), "exists"),
        (_archive(GOOD, GOOD), "exists"),
        (_archive(), "no images"),
        (b"", "no tar archive"),
        (b"no archive at all" * 100, "no tar archive"),
        (bz2.compress(_archive(GOOD)), "compressed by bzip2.*gzip or zstd"),
        (lzma.compress(_archive(GOOD)), "compressed by xz.*gzip or zstd"),
        (gzip.compress(b"no archive"), "no tar archive"),
        (_archive(GOOD)[:700], "damaged"),
        # Where tarfile would see the end, and be content: after a file, in a header, at a bad one.
        (_archive(GOOD, ("b", b"x"))[:1536], "damaged.*unexpected end"),
        (_archive(GOOD, ("b", b"x"))[:1600], "damaged.*unexpected end"),
        (_archive(GOOD, ("b", b"x")).replace(b"b\0\0", b"c\0\0"), "damaged.*invalid header"),
        (_archive(GOOD, ("a/b", b"x"), ("a", b"x")), "exists"),
        (_archive(("a", b"x"), ("a/b", b"x")), "exists|Not a directory"),
        (_archive(("x" * 300, b"x")), "too long"),
        (_archive(GOOD, ("", b"x")), "damaged.*without a name"),
        (_archive(("nul", b"x"), path="a\0b"), "damaged"),
        # A size below zero would make room for others under the limit.
        (_archive(("less", b"x"), size="-5"), "damaged"),
        (_archive(("holes", b"x"), GNU_sparse_map="0,1", GNU_sparse_size="1"), "damaged"),
        (_archive(("holes", b"x"), GNU_sparse_map="1,a"), "damaged"),
        (_of_type(tarfile.GNUTYPE_SPARSE), "damaged.*sparse"),
        (b"\x1f\x8b\x08" + b"\0" * 100, "damaged"),
    ],
)
def test_invalid_archives(tmp_path: Path, data: bytes, message: str) -> None:
    """An invalid archive is refused: nothing is written outside, and nothing is left."""
    with pytest.raises(CriuError, match=message):
        unpack(cast(Any, io.BytesIO(data)), tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK]
)
def test_a_header_that_would_take_all_memory(tmp_path: Path, kind: bytes) -> None:
    """Headers have a limit: a long name does not take more memory than an image."""
    data = _bomb(kind)
    tracemalloc.start()
    try:
        with pytest.raises(ImagesError, match="a header of more than"):
            unpack(cast(Any, io.BytesIO(data)), tmp_path / "b")
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(data) < 2**20
    assert most < 16 * 2**20
    assert list(tmp_path.iterdir()) == []


def test_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small files are refused by their number, and nothing is left."""
    data = _archive(GOOD, *((f"{number}.img", b"") for number in range(50)))
    monkeypatch.setattr(tar_module, "MOST_MEMBERS", 51)
    unpack(cast(Any, io.BytesIO(data)), tmp_path / "a")
    monkeypatch.setattr(tar_module, "MOST_MEMBERS", 50)
    with pytest.raises(ImagesError, match="more than 50 members"):
        unpack(cast(Any, io.BytesIO(data)), tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names(tmp_path: Path, format: int) -> None:
    """Each format has other headers for a path above 100 bytes, which need not be UTF-8."""
    name = (
        "d" * 90 + "/" + "n" * 40 + ("" if format == tarfile.USTAR_FORMAT else "n" * 90 + "\udcff")
    )
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format, pax_headers={"comment": "all"}) as tar:
        for each, body in (GOOD, (name, b"y" * 513)):
            info = tarfile.TarInfo(each)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    assert unpack(cast(Any, io.BytesIO(out.getvalue())), tmp_path / "a") == 1513
    assert (tmp_path / "a" / name).read_bytes() == b"y" * 513


def test_nothing_of_tarfile_is_overridden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``unpack`` needs no method of ``TarFile``, which may change with any update of Python."""
    for name in ("next", "__init__"):
        monkeypatch.setattr(tarfile.TarFile, name, None)
    assert unpack(cast(Any, io.BytesIO(DATA)), tmp_path / "a") == 1000


def test_a_file_that_is_not_a_regular_one(chain: Path, tmp_path: Path) -> None:
    """A path of a device, such as /dev/null, is refused, and the device is not replaced."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    for name in ("fifo", "link"):
        with pytest.raises(FileExistsError, match="not a regular file"):
            pack(chain, tmp_path / name)
    assert (tmp_path / "fifo").is_fifo()
    assert (tmp_path / "link").is_symlink()


def test_a_file_that_others_have_made_first(chain: Path, tmp_path: Path) -> None:
    """An archive contains secrets: it is never written to an existing file of another user."""
    theirs = {}
    for name in ("a.partial", "a"):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0o666)
        theirs[name] = os.open(tmp_path / name, os.O_RDONLY)
    pack(chain, tmp_path / "a", compress="none")
    try:
        for fd in theirs.values():
            assert os.fstat(fd).st_size == 0
            assert not os.path.samestat(os.fstat(fd), os.stat(tmp_path / "a"))
    finally:
        for fd in theirs.values():
            os.close(fd)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("compress", ["none", "gzip", "zstd"])
def test_too_much(chain: Path, tmp_path: Path, compress: Any) -> None:
    """The limit is that of the decompressed size."""
    if compress == "zstd":
        pytest.importorskip("zstandard", reason="zstandard is not installed")
    pack(chain, tmp_path / "a", compress=compress)
    with pytest.raises(ImagesError, match="limit of 899999 bytes"):
        unpack(tmp_path / "a", tmp_path / "b", limit=899_999)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("compress", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("encrypt", [False, True], ids=["plain", "encrypted"])
def test_cut_short(chain: Path, tmp_path: Path, compress: Any, encrypt: bool) -> None:
    """A truncated archive is reported at each length, and nothing is left."""
    if compress == "zstd":
        pytest.importorskip("zstandard", reason="zstandard is not installed")
    recipient, identity = keys() if encrypt else ("", "")
    pack(chain, tmp_path / "a", compress=compress, encrypt_to=[recipient] * encrypt)
    data = (tmp_path / "a").read_bytes()
    for size in (1, 100, 1000, len(data) // 2, len(data) - 20_000):
        with pytest.raises((ImagesError, OptionError)):
            unpack(
                cast(Any, io.BytesIO(data[:size])),
                tmp_path / "b",
                decrypt_with=[identity] * encrypt,
            )
        assert {path.name for path in tmp_path.iterdir()} == {"a", "chain"}


def test_keys(chain: Path, tmp_path: Path) -> None:
    """Without the right key an archive cannot be read, and keys are not printed."""
    recipient, identity = keys()
    _, other = keys()
    pack(chain, tmp_path / "a", encrypt_to=[recipient])
    refused: list[tuple[dict[str, Any], type[Exception]]] = [
        ({}, OptionError),
        ({"decrypt_with": [other]}, ImagesError),
        ({"decrypt_with": ["AGE-SECRET-KEY-nonsense"]}, OptionError),
    ]
    for arguments, error in refused:
        with pytest.raises(error) as caught:
            unpack(tmp_path / "a", tmp_path / "b", **arguments)
        assert "SECRET-KEY" not in str(caught.value)
    pack(chain, tmp_path / "plain")
    with pytest.raises(ImagesError, match="not encrypted"):
        unpack(tmp_path / "plain", tmp_path / "b", decrypt_with=[identity])
    assert not (tmp_path / "b").exists()


class Full(io.RawIOBase):
    """A disk that becomes full."""

    def __init__(self, room: int) -> None:
        self.room = room

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(28, "No space left on device")
        return len(data)


@pytest.mark.parametrize("encrypt", [False, True], ids=["plain", "encrypted"])
def test_a_full_disk(chain: Path, encrypt: bool) -> None:
    """The exception with the cause is raised, not its consequence."""
    recipient = keys()[0] if encrypt else ""
    with pytest.raises(Exception, match="No space left"):
        pack(chain, cast(Any, Full(50_000)), compress="none", encrypt_to=[recipient] * encrypt)


# ---- OCI images ----


def test_images_that_are_packed_at_the_same_time(chain: Path, tmp_path: Path) -> None:
    """A layout has all images that several threads have written to it."""
    names = [str(number) for number in range(8)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: pack_image(chain, tmp_path / "layout", name=name), names))
    for name in names:
        unpack_image(tmp_path / "layout", tmp_path / name, name=name)


def test_an_oci_image(chain: Path, tmp_path: Path) -> None:
    """Two images in one layout; the selected one is read, with its annotations."""
    layout = tmp_path / "layout"
    digest = pack_image(chain / "1", layout, name="one", annotations={"who": "me"})
    pack_image(chain, layout, name="all", compress="none")
    pack_image(chain, layout, name="all", compress="none")
    index = json.loads((layout / "index.json").read_text())
    assert index["manifests"][0]["digest"] == digest
    assert len(index["manifests"]) == 2
    for path in (layout, *layout.rglob("*")):
        assert not path.stat().st_mode & 0o077
    assert unpack_image(layout, tmp_path / "b", name="one") == {"who": "me"}
    assert content(tmp_path / "b") == content(chain / "1")
    assert unpack_image(layout, tmp_path / "c", name="all") == {}
    assert content(tmp_path / "c") == content(chain)
    with pytest.raises(OptionError, match=r"name='two'.*'all', 'one'"):
        unpack_image(layout, tmp_path / "d", name="two")


def _spoil(blob: Path) -> None:
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(data)


@pytest.mark.parametrize("damage", [_spoil, Path.unlink], ids=["changed", "missing"])
def test_a_damaged_oci_image(chain: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """Each blob is verified before a file is written."""
    layout = tmp_path / "layout"
    digest = pack_image(chain, layout).partition(":")[2]
    manifest = json.loads((layout / "blobs/sha256" / digest).read_text())
    for blob in (manifest["layers"][0]["digest"].partition(":")[2], digest):
        damage(layout / "blobs" / "sha256" / blob)
        with pytest.raises(ImagesError, match=r"damaged|missing"):
            unpack_image(layout, tmp_path / "b")
        assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    "text",
    [
        "no JSON",
        "[]",
        "{}",
        '{"manifests": 1}',
        '{"manifests": [1, "x", {}]}',
        '{"manifests": [{"digest": "sha256:../../../etc/passwd", "annotations": 1}]}',
        '{"manifests": [' + "[" * 100_000,
        " " * 2**23,
    ],
    ids=["text", "list", "empty", "number", "oddities", "path", "deep", "large"],
)
def test_an_invalid_index(tmp_path: Path, text: str) -> None:
    """An invalid index is refused with an error of this package; nothing is written."""
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(CriuError):
        unpack_image(tmp_path, tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("text", ["no JSON", "[]", " " * 2**23], ids=["text", "list", "large"])
def test_an_invalid_index_is_named(tmp_path: Path, text: str) -> None:
    """The error names the file that is invalid, by its path."""
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(ImagesError) as raised:
        unpack_image(tmp_path, tmp_path / "b")
    assert str(raised.value).startswith(f"{tmp_path}/index.json is ")


@pytest.mark.parametrize("what", ["index.json", "the manifest", "the layer"])
@pytest.mark.parametrize("made", ["a link", "a pipe"])
def test_a_layout_without_end(chain: Path, tmp_path: Path, what: str, made: str) -> None:
    """A link to /dev/zero and a FIFO are refused: reading them would not end."""
    layout = tmp_path / "layout"
    digest = pack_image(chain, layout).partition(":")[2]
    path = layout / "blobs" / "sha256" / digest
    if what == "index.json":
        path = layout / what
    elif what == "the layer":
        layer = json.loads(path.read_text())["layers"][0]
        path = layout / "blobs" / "sha256" / layer["digest"].partition(":")[2]
    path.unlink()
    if made == "a link":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(path)
    with pytest.raises(ImagesError, match=r"it is (a symbolic link|not a regular file)"):
        unpack_image(layout, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_place_that_does_not_exist(chain: Path, tmp_path: Path) -> None:
    """The error names the place that was given, not the temporary name of what is written there."""
    place = tmp_path / "none" / "x"
    with pytest.raises(FileNotFoundError) as caught:
        pack(chain, place)
    assert caught.value.filename == str(place)
    pack(chain, tmp_path / "x.tar.gz")
    with pytest.raises(FileNotFoundError) as caught:
        unpack(tmp_path / "x.tar.gz", place)
    assert caught.value.filename == str(place)


def test_a_source_that_is_no_file(chain: Path, tmp_path: Path) -> None:
    """A named pipe is not waited for; a pipe of a shell (``<(command)``) is read."""
    os.mkfifo(pipe := tmp_path / "pipe")
    for place, why in (
        (pipe, "not a regular file"),
        ("/dev/zero", "not a regular file"),
        (chain, "Is a directory"),
        (tmp_path / "none", "No such file"),
    ):
        with pytest.raises(ImagesError, match=rf"{place} cannot be opened: .*{why}"):
            unpack(place, tmp_path / "again")
    pack(chain, tmp_path / "x.tar.gz", compress="gzip")
    reading, writing = os.pipe()

    def write() -> None:
        with open(writing, "wb") as target:
            target.write((tmp_path / "x.tar.gz").read_bytes())

    with open(reading, "rb"), ThreadPoolExecutor(1) as thread:
        written = thread.submit(write)
        unpack(f"/dev/fd/{reading}", tmp_path / "again")
        written.result()
    assert content(tmp_path / "again") == content(chain)
