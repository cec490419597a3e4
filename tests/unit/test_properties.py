"""Each field of ``CriuOpts`` is in the request with its value, for each release of libcriu.

A request of options with any values is decoded by Google's protobuf runtime, which shares no code
with the library, and compared with the expected content (``expected.py``). A field is set by
libcriu's setter, directly in the message if there is no setter, or by both if the setter omits a
part; this depends on the release.
"""

from __future__ import annotations

import os
import re
import socket
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, assume, example, given, settings
from hypothesis import strategies as st

from pycriu_native import (
    CriuOpts,
    InheritFd,
    NetworkLock,
    OptionError,
    PageServer,
    UnsupportedError,
)
from pycriu_native._transport.connection import widen
from pycriu_native._wire.messages import REQUEST_TYPES
from pycriu_native.enums import Verb
from pycriu_native.options.table import BY_FIELD, TABLE, VERB_MASK, Row, release
from pycriu_native.options.values import WireValue

from .support import expected
from .support import peer as asked
from .support.peer import Peer
from .support.proto import WireFormat
from .support.strategies import OptionObjects, any_opts, criu_opts, fields, values_of

verbs = st.sampled_from(list(expected.LOG))
NOBODY = 2**22 + 1
"""Above the highest pid that there can be: not ours, nor that of an ancestor of ours."""
pids = st.sampled_from([NOBODY, 2**31 - 1]) | st.integers(NOBODY, 2**31 - 1)

LEAST_CHUNK = 16
"""Bytes: malloc's smallest piece is larger."""

wired = settings(
    max_examples=100,
    deadline=None,
    # The library is the same for all examples of a test, on purpose.
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def unknown_to(wire_format: WireFormat, opts: CriuOpts) -> set[str]:
    """The fields that are set and that a release does not know, by its ``rpc.proto``."""
    return {
        row.name
        for row, value in opts.items()
        if value != () and row.wire is not None and not _is_known(wire_format, row, value)
    }


def _is_known(wire_format: WireFormat, row: Row, value: object) -> bool:
    if row.name == "network_lock":
        return value in wire_format.enum("criu_network_lock_method").values()
    return row.wire in wire_format.fields()


def without(opts: CriuOpts, fields: set[str]) -> CriuOpts:
    """The options without these."""
    return CriuOpts(**{row.name: value for row, value in opts.items() if row.name not in fields})


def expect(
    opts: CriuOpts,
    verb: Verb,
    pid: int | None,
    directories: dict[str, str],
    sent: dict[str, Any],
    sibling: bool = False,
) -> dict[str, WireValue]:
    """What must be sent, with each directory given by path as the descriptor that is open on it."""
    requested = expected.message(opts, verb, pid, sibling=sibling)
    for field in ("images_dir_fd", "work_dir_fd"):
        if isinstance(requested.get(field), str):
            assert directories[field] == os.path.realpath(str(requested[field]))
            requested[field] = sent["opts"][field]
    if expected.adds_config(opts, verb):
        text = directories["config_file"]
        if expected.serves_lazily(opts, verb):
            assert isinstance(opts.page_server, PageServer)
            server = opts.page_server
            port = f"port {server.port}\n" if server.port else ""
            response = f"address {server.address}\n{port}"
            if server.fd is not None:
                response = f"ps-socket {sent['opts']['ps']['fd']}\n"
            assert text.endswith(response)
            text = text.removesuffix(response)
        assert CriuOpts.from_config(text) == CriuOpts(**expected.in_config(opts))
        requested["config_file"] = sent["opts"]["config_file"]
    return requested


def inherited_by_criu(opts: CriuOpts) -> list[Any]:
    """The descriptors that CRIU inherits. One that is named twice is copied: not tried here."""
    result: list[Any] = [item.fd for item in opts.inherit_fds or ()]  # type: ignore[union-attr]
    if isinstance(opts.page_server, PageServer) and opts.page_server.fd is not None:
        result.append(opts.page_server.fd)
    assume(len(set(result)) == len(result))
    return result


@wired
@given(opts=any_opts(), verb=verbs, pid=st.none() | pids, sibling=st.booleans())
@example(opts=CriuOpts(), verb=Verb.DUMP, pid=None, sibling=False)
@example(opts=CriuOpts(timeout=0, ghost_limit=2**32 - 1), verb=Verb.DUMP, pid=NOBODY, sibling=False)
@example(opts=CriuOpts(cg_dump_controllers=[""]), verb=Verb.DUMP, pid=NOBODY, sibling=False)
@example(
    opts=CriuOpts(unix_sks=[1], external_unix_connections=False),
    verb=Verb.DUMP,
    pid=NOBODY,
    sibling=False,
)
@example(
    opts=CriuOpts(external=[f"unix[{n}]" for n in range(5000)]),
    verb=Verb.DUMP,
    pid=NOBODY,
    sibling=False,
)
def test_what_is_sent_is_what_the_options_say(
    peer: Peer, wire_format: WireFormat, opts: CriuOpts, verb: Verb, pid: int | None, sibling: bool
) -> None:
    """Every field that is set with its value, the table's additions, and nothing else.

    The bytes are those of an independent encoder; the message that is read back through libcriu's
    descriptors is the same; a repetition and another order give the same bytes.
    """
    opts = without(opts, unknown_to(wire_format, opts) | _odd_path_of_log(opts))
    inherited = inherited_by_criu(opts)
    filled = peer.ask(asked.filled, opts, verb, pid, sibling)
    sent = wire_format.decode(filled.request)
    requested = expect(opts, verb, pid, filled.directories, sent, sibling)
    request = {"type": wire_format.request_types[expected.REQUEST_TYPE[verb]], "opts": requested}
    assert sent == request
    assert filled.request == wire_format.encode(request)
    assert filled.read == requested
    assert sorted(filled.keep) == sorted(inherited)

    again = peer.ask(asked.filled, opts, verb, pid, sibling)
    assert again.request == filled.request
    remembered = peer.ask(asked.filled, opts, verb, pid, sibling, turns=2)
    decoded = wire_format.decode(remembered.request)
    assert decoded == {
        **request,
        "opts": expect(opts, verb, pid, remembered.directories, decoded, sibling),
    }
    assert sorted(remembered.keep) == sorted(filled.keep)
    shuffled = peer.ask(asked.filled, opts, verb, pid, sibling, shuffle=len(filled.request))
    assert shuffled.request == filled.request
    assert shuffled.read == filled.read


def _odd_path_of_log(opts: CriuOpts) -> set[str]:
    """A path of a log is written to a configuration file, which cannot have every text."""
    log = opts.log_file
    is_odd = log is not None and "/" in log and not re.fullmatch(r"[\w./-]+", log)
    return {"log_file"} if is_odd else set()


def test_a_handle_leaves_no_memory(peer: Peer, wire_format: WireFormat) -> None:
    """Fields that libcriu does not free are freed: a hundred handles leave no memory in use."""

    @settings(max_examples=5, deadline=None, phases=[Phase.generate])
    @given(opts=st.builds(CriuOpts, **fields()))
    def nothing_stays(opts: CriuOpts) -> None:
        known = without(opts, unknown_to(wire_format, opts) | _odd_path_of_log(opts))
        inherited_by_criu(known)
        assert peer.ask(asked.leaked, known, Verb.DUMP, NOBODY, 100) < 100 * LEAST_CHUNK

    nothing_stays()


@wired
@given(data=st.data())
def test_the_request_has_the_options(
    peer: Peer, wire_format: WireFormat, objects: OptionObjects, data: st.DataObject
) -> None:
    """The request of a whole call, as a CRIU receives it, has the content of the options.

    Options that the loaded libcriu lacks are refused with their release.
    """
    verb = data.draw(verbs)
    opts = data.draw(criu_opts(objects, verb))
    pid = data.draw(pids) if verb in (Verb.DUMP, Verb.PRE_DUMP) else None
    unknown = unknown_to(wire_format, opts)
    if unknown:
        with pytest.raises(UnsupportedError) as caught:
            peer.ask(asked.called, opts, verb, pid)
        assert set(caught.value.options) == unknown
        opts = without(opts, unknown)
        try:
            peer.ask(asked.checked, opts, verb, pid)
        except OptionError:
            return  # it needed what had to go
    called = peer.ask(asked.called, opts, verb, pid)
    sent = wire_format.decode(called.request)
    requested = expect(opts, verb, pid, called.directories, sent)
    assert sent == {
        "type": wire_format.request_types[expected.REQUEST_TYPE[verb]],
        "opts": requested,
    }
    assert called.result == (1234 if verb is Verb.RESTORE else 0)


@pytest.mark.parametrize("name", list(BY_FIELD))
def test_each_option_at_its_limits(peer: Peer, wire_format: WireFormat, name: str) -> None:
    """Each field arrives alone with its limits; unknown fields are refused, not dropped."""
    row = BY_FIELD[name]

    @settings(max_examples=8, deadline=None, database=None)
    @given(value=values_of(row))
    def arrives(value: Any) -> None:
        opts = CriuOpts(**{name: value})
        opts = without(opts, _odd_path_of_log(opts))
        unknown = unknown_to(wire_format, opts)
        if unknown:
            with pytest.raises((UnsupportedError, LookupError)):
                peer.ask(asked.filled, opts, Verb.DUMP, NOBODY)
            return
        filled = peer.ask(asked.filled, opts, Verb.DUMP, NOBODY)
        sent = wire_format.decode(filled.request)
        assert sent["opts"] == expect(opts, Verb.DUMP, NOBODY, filled.directories, sent)

    arrives()


@pytest.mark.parametrize("row", TABLE, ids=[row.name for row in TABLE])
def test_what_is_unknown_is_refused_with_its_release(
    peer: Peer, wire_format: WireFormat, objects: OptionObjects, row: Row
) -> None:
    """A field or value that is younger than the loaded libcriu: the error names both releases."""
    if not row.wire or not row.field or release(row.since) <= release(peer.library.version):
        assert row.wire is None or row.wire in wire_format.fields()
        return

    @settings(max_examples=1, deadline=None, database=None)
    @given(value=objects.forms.get(row.name, values_of(row)).filter(lambda v: v != []))
    def refused(value: Any) -> None:
        opts = CriuOpts(**{row.name: value})
        with pytest.raises(UnsupportedError) as caught:
            peer.ask(asked.supported, opts)
        (problem,) = caught.value.problems
        assert problem.field == row.name
        assert f"needs libcriu {row.since}" in problem.rule
        assert peer.library.version in problem.rule

    refused()


def test_a_value_that_is_younger_than_its_option(peer: Peer) -> None:
    """``NetworkLock.SKIP`` is 3.19, the option 3.16; the number 3 elsewhere has no such date."""
    opts = CriuOpts(network_lock=NetworkLock.SKIP)
    if release(peer.library.version) < (3, 19):
        with pytest.raises(UnsupportedError, match=r"network_lock=.* needs libcriu 3\.19"):
            peer.ask(asked.supported, opts)
    else:
        peer.ask(asked.supported, opts)
    peer.ask(asked.supported, CriuOpts(log_level=3, timeout=3, manage_cgroups_mode=3), "3.17")


def test_a_program_that_is_older_than_libcriu(peer: Peer) -> None:
    """An old ``criu`` would ignore an unknown field: it is refused, with the program's release."""
    if release(peer.library.version) < (3, 19):
        return  # this library refuses it by itself
    with pytest.raises(UnsupportedError, match=r"display_stats.* needs CRIU 3\.19; .* is 3\.17"):
        peer.ask(asked.supported, CriuOpts(display_stats=True), "3.17")
    peer.ask(asked.supported, CriuOpts(display_stats=True), "3.19")


def test_requests_without_options(peer: Peer, wire_format: WireFormat) -> None:
    """``version`` and ``feature_check`` send no options."""
    for verb, features in ((Verb.VERSION, None), (Verb.FEATURE_CHECK, True)):
        sent = wire_format.decode(peer.ask(asked.filled, CriuOpts(), verb).request)
        assert sent.pop("type") == wire_format.request_types[expected.REQUEST_TYPE[verb]]
        sent.pop("opts", None)
        assert set(sent) == ({"features"} if features else set())
        if features:
            assert sent["features"] == dict.fromkeys(wire_format.fields("criu_features"), True)


@pytest.mark.parametrize("size", [2**18, 2**20, 4 * 2**20 - 2**16])
def test_requests_of_megabytes(
    peer: Peer, wire_format: WireFormat, objects: OptionObjects, size: int
) -> None:
    """A large request arrives complete; if the buffer cannot be enlarged, it is refused.

    The kernel needs memory without gaps for a message, which a machine can lack for 4 MiB.
    """
    opts = CriuOpts(images_directory=str(objects.images), cg_props="x" * size)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        widen(sock)
        room = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    if size + 1000 > room:
        with pytest.raises(OptionError, match="one request holds"):
            peer.ask(asked.called, opts, Verb.DUMP, NOBODY)
        return
    try:
        request = peer.ask(asked.called, opts, Verb.DUMP, NOBODY).request
    except MemoryError as error:
        if size < 2**21:
            raise
        pytest.skip(f"the kernel's memory is in small pieces now: {error}")
    sent: Any = wire_format.decode(request)
    assert sent["opts"]["cgroup_props"] == opts.cg_props


def test_more_than_a_socket_carries(peer: Peer, objects: OptionObjects) -> None:
    """The kernel has no space for a message above 4 MiB: it is refused, and not sent."""
    opts = CriuOpts(images_directory=str(objects.images), cg_props="x" * (5 * 2**20))
    with pytest.raises(OptionError, match=r"the options take .* bytes; one request holds"):
        peer.ask(asked.called, opts, Verb.DUMP, NOBODY)


def test_descriptors_that_crius_own_would_hide(peer: Peer, wire_format: WireFormat) -> None:
    """0 to 2 are CRIU's standard files: inherited descriptors get other numbers."""
    opts = CriuOpts(
        inherit_fds=[InheritFd(0, "a"), InheritFd(700, "b")], page_server=PageServer(fd=1)
    )
    filled = peer.ask(asked.filled, opts, Verb.RESTORE)
    sent: Any = wire_format.decode(filled.request)["opts"]
    numbers = [item["fd"] for item in sent["inherit_fd"]] + [sent["ps"]["fd"]]
    assert numbers[1] == 700  # which no test has open
    assert all(number > 2 for number in numbers)
    assert sorted(filled.keep) == sorted(numbers)


def test_no_verb_is_left_out() -> None:
    """Every verb with options that is a request of CRIU is tested here."""
    assert set(expected.LOG) == {verb for verb in VERB_MASK if str(verb) in REQUEST_TYPES}


def test_a_self_dump_has_no_notifications(peer: Peer, wire_format: WireFormat) -> None:
    """A dump of the caller or of a tree that contains it: no pid for itself, no notifications."""
    for pid in (None, 1):
        sent = wire_format.decode(peer.ask(asked.filled, CriuOpts(), Verb.DUMP, pid).request)[
            "opts"
        ]
        assert isinstance(sent, dict)
        assert "notify_scripts" not in sent
        assert sent.get("pid") == pid
