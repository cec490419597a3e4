"""The library's rules compared with CRIU: it refuses only values that CRIU refuses or ignores.

A request to dump an unused pid, or to restore from an empty directory, is sent without the rules.
CRIU checks the options first: it responds with EBADRQC if it refuses one, and with another error
otherwise. So each verdict takes some 30 ms and touches no process.

For values that CRIU accepts although the library refuses them, ``TAKEN`` has their effect. Options
that use the network, need a kernel feature, or name a file of options are left out.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pycriu_native
from pycriu_native import CriuOpts, OptionError, Version, Worker, WorkerDiedError
from pycriu_native._calls.exchange import Exchange
from pycriu_native._checks import option_rules
from pycriu_native._failures.explain import EBADRQC
from pycriu_native._wire.messages import Handle, knows
from pycriu_native._wire.requests import LibcriuCall
from pycriu_native.enums import Verb
from pycriu_native.errors import Problem
from pycriu_native.options.table import BY_FIELD, release
from pycriu_native.options.value_types import Flag
from pycriu_native.options.values import WireValue

from ..unit.support import expected
from ..unit.support.strategies import COMPANIONS, OptionObjects, criu_opts, rows_for, values_of
from ..unit.test_refusals import REFUSED
from .conftest import WHY_NOT

NOBODY = 2**22 + 1
"""Above the highest possible pid."""

RELEASE = Version.parse("0.0") if WHY_NOT else pycriu_native.version()

pytestmark = pytest.mark.skipif(
    not Version.parse("4.2") <= RELEASE < Version.parse("4.3"),
    reason=f"the verdicts in this test are those of CRIU 4.2, this is {RELEASE}",
)

TAKEN: list[tuple[str, str, str]] = [
    ("images_dir", "not together with images_directory", "ignores it beside a descriptor"),
    ("log_file", "standard output", "logs '-' there"),
    ("log_file", "a name that no image", "logs into the image"),
    ("log_to_stderr", "not together with log_file", "ignores it"),
    ("status_fd", "runc's rule", "never writes to it"),
    ("parent_image", "runc's rule", "keeps an absolute path, which fits this host only"),
    ("parent_image", "a directory with images", "saves all memory again"),
    ("page_server", "is required", "listens on every address"),
    ("page_server", "a numeric address", "listens on every address (4.2)"),
    ("page_server", "the descriptor only", "ignores address and port"),
    ("page_server", "in clear text", "has the memory cross the network as it is"),
    ("tls", "needs page_server", "has no connection to encrypt"),
    ("tls_\\w+", "needs tls", "ignores it"),
    ("\\w+", "belongs to", "ignores what belongs to another verb"),
    ("pidfile", "a file that does not exist", "fails when it writes it, after the restore"),
    ("config_file", "an existing file", "ignores a file that does not exist"),
    ("cg_props_file", "an existing file", "fails when it reads it, in the middle of the dump"),
    ("action_scripts", "an existing executable file", "fails when it runs it, in mid-call"),
    ("action_scripts", "without a slash", "searches PATH"),
    ("libdir", "an existing directory", "loads no plugin"),
    ("irmap_paths", "an absolute path", "drops the first character"),
    ("external", "is accepted; others do nothing", "ignores a key that it does not know"),
    ("external", "needs ':value'", "ignores a key without its value"),
    (
        "external",
        "not together with auto_ext_mnt=False",
        "has the field switch the key off",
    ),
    ("lsm_profile", "is accepted", "fails in the middle of the dump or restore"),
    ("veth_pairs", "at most 198 bytes", "cuts the rest"),
    ("leave_running", "not together with leave_stopped", "stops it"),
    ("tcp_established", "not together with tcp_close", "drops them"),
    ("manage_cgroups", "not together with manage_cgroups_mode", "ignores it"),
    ("unix_sks", "needs external_unix_connections", "ignores them"),
    ("ext_(sharing|masters)", "needs auto_ext_mnt", "ignores it"),
    ("timeout", "at most 4294967", "overflows"),
    ("\\w+", "leaves it out", "leaves it out"),
    ("join_ns", "for user only", "ignores it"),
]
"""What CRIU 4.2 takes though we refuse it: the field, our reason, what CRIU does with it."""

REFUSED_ON_ANOTHER_VERB = ("mntns_compat_mode",)
"""What "belongs to" is said of and CRIU does not ignore, if it is True."""

ELSEWHERE = {
    "images_directory", "work_directory",  # the call opens them
    "config_file",  # a file of more options
    "page_server", "lazy_pages", "status_fd",  # over the network
    "tls", "tls_no_cn_verify", "tls_cacert", "tls_cacrl", "tls_cert", "tls_key",
    "track_mem", "pidfd_store_sk", "parent_image",  # need the kernel, or images
    "unprivileged",  # moves the cache of kernel features
    "pre_dump", "images_dir", "log_to_stderr",
}  # fmt: skip
"""Fields that generated options leave out."""


def _is_tried(name: str) -> bool:
    row = BY_FIELD[name]
    return name not in ELSEWHERE and release(row.since) <= (RELEASE.major, RELEASE.minor)


TRIED = [name for name in BY_FIELD if _is_tried(name)]


def thoroughly(examples: int) -> settings:
    """Run this number of examples, without a time limit."""
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def criu_refuses(verb: Verb, opts: CriuOpts, images: Path) -> bool:
    """Whether CRIU refuses these options, or crashes with them."""
    log = opts.log_file or "log"
    if os.path.isdir(images / os.path.dirname(log)):
        log = os.path.basename(log)  # the request has no path: a call puts that into a file
    wire = {**expected.message(opts, verb), "log_file": log}
    keep = [item.fd for item in opts.inherit_fds or () if _is_open(item.fd)]  # type: ignore[union-attr]
    return is_refused(verb, wire, images, keep)  # type: ignore[arg-type]


def is_refused(
    verb: Verb, wire: dict[str, WireValue], images: Path, keep: Sequence[int] = ()
) -> bool:
    """Whether CRIU refuses these fields of the wire format, or crashes with them."""
    wire = {"log_file": "log", **wire, "notify_scripts": False}
    if verb is Verb.DUMP:
        wire["pid"] = NOBODY
    with ExitStack() as owned:
        handle = owned.enter_context(Handle())
        directory = os.open(images, os.O_RDONLY | os.O_DIRECTORY)
        owned.callback(os.close, directory)
        for field, value in {**wire, "images_dir_fd": directory}.items():
            handle.set_wire(field, value)
        line = Worker().connect(keep)
        owned.callback(line.wait)
        exchange = Exchange(line, verb)
        owned.callback(exchange.close)
        try:
            answer, _ = exchange.run(LibcriuCall(verb, handle).request())
        except WorkerDiedError:
            return True
    return answer.get("cr_errno") == EBADRQC


def _is_open(fd: Any) -> bool:
    return os.path.exists(f"/proc/self/fd/{fd}")


def taken(field: str, rule: str) -> str | None:
    """The effect in CRIU of a value that this rule refuses; None: CRIU refuses it too."""
    for name, reason, what in TAKEN:
        if re.fullmatch(name, field) and reason in rule:
            return what
    return None


@pytest.fixture
def objects(tmp_path: Path) -> Iterator[OptionObjects]:
    """Existing files and directories."""
    result = OptionObjects(tmp_path)
    yield result
    result.close()


CASES = [
    (verb, fields, culprit)
    for verb, fields, culprit, _ in REFUSED
    if verb in (Verb.DUMP, Verb.RESTORE)
    and not {"images_directory", "work_directory"} & set(fields)
    and all(knows(str(BY_FIELD[name].wire)) for name in fields)
    and not ("page_server" in fields and "lazy_pages" not in fields)  # CRIU would connect to it
]


@pytest.mark.parametrize(("verb", "fields", "culprit"), CASES)
def test_what_we_refuse(verb: Verb, fields: dict[str, Any], culprit: str, images: Path) -> None:
    """CRIU refuses each value that the library refuses, or accepts it with the documented loss."""
    images.mkdir()
    opts = CriuOpts(**fields)
    with pytest.raises(OptionError) as caught:
        option_rules.check(CriuOpts(images_directory=str(images), **fields), verb)
    rule = next(problem.rule for problem in caught.value.problems if problem.field == culprit)
    message = taken(culprit, rule)
    refused = message is None or culprit in REFUSED_ON_ANOTHER_VERB
    assert criu_refuses(verb, opts, images) == refused, message or "CRIU takes it"


RAW: list[tuple[str, WireValue, bool]] = [
    ("empty_ns", 0x20000000, True),
    ("empty_ns", 1, True),
    ("empty_ns", 0x40000000, False),
    ("empty_ns", 0, False),
    ("manage_cgroups_mode", 7, True),
    ("manage_cgroups_mode", 6, False),
    ("network_lock", 4, True),
    ("network_lock", 3, False),
    ("pre_dump_mode", 3, True),
    ("log_file", "a/b", True),
    ("log_file", "", True),
    ("log_level", 5, False),  # the same as 4
    ("cgroup_dump_controller", "", False),
    ("timeout", 0, False),
    ("timeout", 2**32 - 1, False),
    ("ghost_limit", 2**32 - 1, False),
    ("cpu_cap", 2**32 - 1, False),
    ("external", "", False),
    ("root", "", False),
    ("cgroup_props", "", False),
]
"""Values that ``CriuOpts`` cannot hold, and some at their limits; whether CRIU refuses them."""


@pytest.mark.parametrize(("field", "value", "refuses"), RAW)
def test_values_at_their_limits(field: str, value: WireValue, refuses: bool, images: Path) -> None:
    """The bounds in the table are CRIU's, or narrower if CRIU treats two values as one."""
    images.mkdir()
    assert is_refused(Verb.DUMP, {field: value}, images) == refuses


def judge(objects: OptionObjects, verb: Verb, fields: dict[str, Any]) -> None:
    """Run CRIU, and compare its result with the rules."""
    problems: Sequence[Problem] = ()
    try:  # first, since CRIU makes files
        option_rules.check(CriuOpts(images_directory=str(objects.images), **fields), verb)
    except OptionError as error:
        problems = error.problems
    if criu_refuses(verb, CriuOpts(**fields), objects.images):
        assert problems, "CRIU refuses it"
    else:
        unknown = [p for p in problems if taken(p.field, p.rule) is None]
        assert not unknown, f"CRIU takes it: {unknown}"


@pytest.mark.parametrize("name", TRIED)
def test_each_option_by_itself(objects: OptionObjects, name: str) -> None:
    """Each option is compared by itself, with valid and with invalid values."""
    for verb in (Verb.DUMP, Verb.RESTORE):

        @thoroughly(10)
        @given(value=objects.forms.get(name, st.nothing()) | values_of(BY_FIELD[name]))
        def same(value: object) -> None:
            companions = dict.fromkeys(COMPANIONS.get(name, ()), True)
            judge(objects, verb, {**companions, name: value})  # noqa: B023 (called at once)

        same()


def test_what_does_not_go_together(objects: OptionObjects) -> None:
    """All pairs of options that the library refuses: CRIU refuses or ignores one of them, too."""

    @thoroughly(1)
    @given(values=st.fixed_dictionaries({name: _plainly(objects, name) for name in TRIED}))
    def same(values: dict[str, Any]) -> None:
        for verb in (Verb.DUMP, Verb.RESTORE):
            alone = {name for name in TRIED if _is_accepted(objects, verb, {name: values[name]})}
            for one, other in itertools.combinations(sorted(alone), 2):
                pair = {one: values[one], other: values[other]}
                if not _is_accepted(objects, verb, pair):
                    judge(objects, verb, pair)

    same()


def _plainly(objects: OptionObjects, name: str) -> st.SearchStrategy[Any]:
    """An effective value of an option: True, or a list that is not empty."""
    if isinstance(BY_FIELD[name].kind, Flag):
        return st.just(True)
    return objects.forms.get(name, values_of(BY_FIELD[name])).filter(lambda value: value != [])


def _is_accepted(objects: OptionObjects, verb: Verb, fields: dict[str, Any]) -> bool:
    try:
        option_rules.check(CriuOpts(images_directory=str(objects.images), **fields), verb)
    except OptionError:
        return False
    return True


def test_generated_options(objects: OptionObjects) -> None:
    """Many options together: the library accepts all that CRIU accepts and uses, and refuses all
    that CRIU refuses.
    """

    @thoroughly(150)
    @given(data=st.data())
    def same(data: st.DataObject) -> None:
        verb = data.draw(st.sampled_from([Verb.DUMP, Verb.RESTORE]))
        drawn = data.draw(criu_opts(objects, verb))
        fields = {row.name: value for row, value in drawn.items() if _is_tried(row.name)}
        wild = [row for row in rows_for(verb) if _is_tried(row.name)]
        for row in data.draw(st.lists(st.sampled_from(wild), max_size=3)):
            # Without the rules, with which the values were generated.
            fields[row.name] = data.draw(objects.forms.get(row.name, st.nothing()) | values_of(row))
        judge(objects, verb, fields)

    same()
