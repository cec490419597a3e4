"""Hypothesis strategies derived from the table: a new option gets one by its kind.

``any_opts()``: everything that ``CriuOpts`` can hold, valid or not, with values at the limits.
``criu_opts(verb)``: options that the verb accepts: those that apply, with their requirements and
without contradictions. ``FORMS`` has the values that need a form that their kind does not define,
or that must name something that exists.
"""

from __future__ import annotations

import functools
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from pycriu_native import (
    CgroupRoot,
    CriuOpts,
    ExtMount,
    InheritFd,
    JoinNamespace,
    OptionError,
    PageServer,
    VethPair,
)
from pycriu_native._checks import option_rules
from pycriu_native._integrity import moved_memory
from pycriu_native._integrity.dump_marker import FRAMES
from pycriu_native.enums import Verb
from pycriu_native.options import value_types as kinds
from pycriu_native.options.table import BY_FIELD, TABLE, VERB_MASK, Row
from pycriu_native.options.values import descriptor_number

HIGHEST_DESCRIPTOR = 2**31 - 1
EXISTING_FILE = os.path.abspath(__file__)  # small enough for a configuration file
EXISTING_DIRECTORY = os.path.dirname(__file__)

# ---- values, by kind ----

unicode_text = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1
)
undecodable = st.binary(min_size=1, max_size=30).filter(lambda b: b"\0" not in b).map(os.fsdecode)
texts = unicode_text | undecodable | st.sampled_from(["x", " ", "ä/ö", "日本", "a" * 255, "\udcff"])
descriptors = st.sampled_from([3, 4, HIGHEST_DESCRIPTOR]) | st.integers(3, HIGHEST_DESCRIPTOR)


def _page_server(parts: dict[str, Any]) -> PageServer:
    return PageServer(**parts)


def _numbers(kind: kinds.Number) -> SearchStrategy[int]:
    low, high = -(-kind.low // kind.step), kind.high // kind.step
    limits = {low, high, max(low, 0), min(high, 2**31 - 1), min(high, 2**31)}
    counts = st.sampled_from(sorted(n for n in limits if low <= n <= high))
    return (counts | st.integers(low, high)).map(lambda n: n * kind.step)


def _texts(kind: kinds.Text) -> SearchStrategy[str]:
    return texts | st.just("") if kind.empty else texts


def _lists(kind: kinds.ListOf) -> SearchStrategy[list[Any]]:
    if isinstance(kind.item, kinds.Item) and kind.item.cls is InheritFd:
        return _inherit_fds(descriptors, max_size=5)
    return st.lists(values(kind.item), max_size=5)


def _inherit_fds(fds: SearchStrategy[Any], max_size: int) -> SearchStrategy[list[InheritFd]]:
    """No descriptor twice: the second one is sent under another number."""
    items = st.builds(InheritFd, fds, texts)
    return st.lists(items, max_size=max_size, unique_by=lambda each: descriptor_number(each.fd))


def _commands(_kind: kinds.Command) -> SearchStrategy[list[str]]:
    return st.builds(lambda first, rest: [first, *rest], texts, st.lists(texts | st.just("")))


_ITEMS: dict[type, SearchStrategy[Any]] = {
    PageServer: st.fixed_dictionaries(
        {},
        optional={
            "address": texts.filter(lambda text: text[0] not in "[]"),
            "port": st.sampled_from([0, 1, 32767, 32768, 65535]) | st.integers(0, 65535),
            "fd": descriptors,
            "clear_text": st.booleans(),
        },
    )
    .filter(lambda parts: bool(parts.keys() - {"clear_text"}))
    .map(_page_server),
    VethPair: st.builds(VethPair, texts, texts),
    ExtMount: st.builds(ExtMount, texts, texts),
    CgroupRoot: st.builds(CgroupRoot, texts, st.none() | texts),
    JoinNamespace: st.builds(JoinNamespace, texts, texts, st.none() | texts),
}

_KINDS: dict[type, Callable[[Any], SearchStrategy[Any]]] = {
    kinds.Flag: lambda _: st.booleans(),
    kinds.Number: _numbers,
    kinds.Mode: lambda kind: st.sampled_from(list(kind.members)),
    kinds.Namespaces: lambda _: st.sampled_from([0, kinds.Namespaces.NET]),
    kinds.Text: _texts,
    kinds.FilePath: lambda _: texts,
    kinds.FileDescriptor: lambda _: descriptors,
    kinds.Directory: lambda _: st.just(EXISTING_DIRECTORY) | descriptors,
    kinds.ListOf: _lists,
    kinds.Command: _commands,
    kinds.Item: lambda kind: _ITEMS[kind.cls],
}


words = st.text(st.characters(categories=["Ll", "Nd"]), min_size=1, max_size=8)
plugin_options = st.lists(
    st.builds("{}.{}".format, words, words) | st.builds("{}.{}={}".format, words, words, texts),
    max_size=3,
)


def values_of(row: Row) -> SearchStrategy[Any]:
    """All values of an option that libcriu accepts."""
    if row.name == "plugin_options":
        return plugin_options  # only this setter validates its text (4.3)
    result = values(row.kind)
    return result.filter(functools.partial(_fits_a_line, row)) if row.in_config else result


def _fits_a_line(row: Row, value: Any) -> bool:
    """Whether a configuration file can hold the value."""
    try:
        CriuOpts(**{row.name: value}).to_config()
    except OptionError:
        return False
    return True


def values(kind: kinds.Kind) -> SearchStrategy[Any]:
    """All values of options of this kind. ``KeyError``: a kind without a strategy."""
    return _KINDS[type(kind)](kind)


def fields() -> dict[str, SearchStrategy[Any]]:
    """Each field of ``CriuOpts`` with all its values."""
    return {name: values_of(row) for name, row in BY_FIELD.items()}


@st.composite
def any_opts(draw: st.DrawFn) -> CriuOpts:
    """Options with any fields, valid or not."""
    return CriuOpts(**draw(st.fixed_dictionaries({}, optional=fields())))


# ---- options that a verb accepts ----


class OptionObjects:
    """Objects that some options must name. ``close`` closes them."""

    def __init__(self, directory: Path) -> None:
        self.images = directory / "images"
        (self.images / "before").mkdir(parents=True)
        (self.images / "before" / "inventory.img").touch()
        self.work = directory / "work"
        self.work.mkdir()
        self.config = directory / "criu.conf"
        self.config.touch()
        self.writable = os.open("/dev/null", os.O_RDWR)
        self.datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.directory_fd = os.open(self.images, os.O_RDONLY | os.O_DIRECTORY)
        self.descriptors = (self.writable, self.datagrams.fileno(), self.directory_fd)
        """Descriptors that must also be open in the process that makes the call."""

    def parent(self) -> str:
        """The name of a parent. It gets the record of page frames, which each dump removes."""
        (self.images / "before" / FRAMES).write_bytes(b"".join(moved_memory._encoded({}, b"")))
        return "before"

    def close(self) -> None:
        os.close(self.writable)
        os.close(self.directory_fd)
        self.datagrams.close()

    @functools.cached_property
    def forms(self) -> dict[str, SearchStrategy[Any]]:
        """The values of fields whose kind does not define them completely."""
        fds = st.just(self.writable)
        return {
            "images_directory": st.sampled_from([str(self.images), self.directory_fd]),
            "images_dir": st.just(str(self.images)),
            "config_file": st.just(str(self.config)),
            "work_directory": st.just(str(self.work)),
            "parent_image": st.builds(self.parent),
            "page_server": st.builds(
                PageServer,
                st.sampled_from(["10.0.0.2", "fd00::2", "127.0.0.1"]),
                st.sampled_from([1, 32768, 65535]) | st.integers(1, 65535),
                clear_text=st.just(True),
            ),
            "status_fd": fds,
            "pidfd_store_sk": st.just(self.datagrams.fileno()),
            "inherit_fds": _inherit_fds(fds, max_size=3),
            "irmap_paths": st.lists(texts.map(lambda text: "/" + text), max_size=3),
            "action_scripts": st.just([sys.executable]),
            "libdir": st.just(EXISTING_DIRECTORY),
            "pidfile": words.map(lambda word: f"{self.work}/{word}"),
            "check_feature": st.sampled_from(["mnt_id", "userns"]),
            "log_file": words.map(lambda word: word + ".log"),
            "external": st.lists(_external(), max_size=5),
            "join_ns": st.lists(
                st.builds(
                    JoinNamespace,
                    st.sampled_from(["net", "ipc", "uts", "time"]),
                    st.just("/proc/self/ns/net") | st.just(str(os.getppid())),
                )
                | st.builds(JoinNamespace, st.just("user"), st.just("/proc/self/ns/user"),
                            st.none() | st.sampled_from(["0,0", "65535,65535", "7,", ",7"])),
                max_size=3,
            ),
            "veth_pairs": st.lists(st.builds(VethPair, words, words), max_size=3),
            "lsm_profile": st.builds(
                "{}:{}".format, st.sampled_from(["apparmor", "selinux"]), unicode_text
            ) | st.just("none:"),
            **dict.fromkeys(
                ("tls_cacert", "tls_cacrl", "tls_cert", "tls_key", "cg_props_file"),
                st.just(EXISTING_FILE),
            ),
        }  # fmt: skip


def _external() -> SearchStrategy[str]:
    with_value = st.sampled_from(["mnt[{}]:{}", "net[{}]:{}", "pid[{}]:{}", "dev[{}]:{}",
                                  "veth[{}]:{}@br0", "macvlan[{}]:lo", "tty[{}:{}]"])  # fmt: skip
    alone = st.sampled_from(["unix[{}]", "tty[{}]", "file[{}]", "mnt[]", "mnt[]:m", "mnt[]:s"])
    return st.builds(lambda form, a, b: form.format(a, b), with_value | alone, words, words)


COMPANIONS: dict[str, tuple[str, ...]] = {
    "unix_sks": ("external_unix_connections",),
    "ext_sharing": ("auto_ext_mnt",),
    "ext_masters": ("auto_ext_mnt",),
    "status_fd": ("lazy_pages", "page_server"),
    "lazy_pages": ("page_server",),
    "parent_image": ("track_mem",),
    "tls": ("page_server",),
    **dict.fromkeys(
        ("tls_no_cn_verify", "tls_cacert", "tls_cacrl", "tls_cert", "tls_key"),
        ("tls", "page_server"),
    ),
}
"""The options that an option requires; required flags are True."""


SERVERS = (Verb.PAGE_SERVER, Verb.PAGE_SERVER_CHILD)
"""Verbs that need an address."""


def rows_for(verb: Verb) -> list[Row]:
    """The rows that apply to a verb."""
    return [row for row in TABLE if row.field is not None and row.on & VERB_MASK[verb]]


@st.composite
def criu_opts(
    draw: st.DrawFn, objects: OptionObjects, verb: Verb, must: str | None = None
) -> CriuOpts:
    """Options that the verb accepts; ``must`` is set, except when its value is an empty list."""
    forms = objects.forms
    names = [row.name for row in rows_for(verb)]
    chosen: dict[str, Any] = {}

    def add(name: str, companion: bool = False) -> None:
        if name in chosen or name not in names:
            return
        row = BY_FIELD[name]
        if companion and isinstance(row.kind, kinds.Flag):
            chosen[name] = True
        else:
            chosen[name] = draw(forms.get(name, values_of(row)))
        for other in COMPANIONS.get(name, ()):
            add(other, companion=True)

    needed = ["page_server"] if verb in SERVERS else []
    for name in (must, *needed):
        if name is not None:
            add(name)
    for name in draw(st.lists(st.sampled_from(names), unique=True, max_size=25)):
        if name != "images_dir":  # a Worker accepts it only with allow_untrusted
            add(name)
    keep = {must, *needed, *COMPANIONS.get(must or "", ())}
    if "images_dir" not in chosen:
        chosen.setdefault("images_directory", str(objects.images))
    return _without_contradictions(chosen, keep, verb)


def _without_contradictions(chosen: dict[str, Any], keep: set[str | None], verb: Verb) -> CriuOpts:
    """Options without one side of each contradiction; the fields to keep stay."""
    keep = {*keep, "images_dir" if "images_dir" in chosen else "images_directory"}
    while True:
        opts = CriuOpts(**chosen)
        try:
            option_rules.check(opts, verb)
        except OptionError as refused:
            culprit = next((name for name in refused.options if name not in keep), "")
            if culprit not in chosen:
                culprit = [name for name in chosen if name not in keep][-1]
            del chosen[culprit]
        else:
            return opts
