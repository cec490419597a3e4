"""Pictures: their data, and that they are drawn."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pycriu_native import ImagesError, OptionError, plots

from .support.statistics_image import write_dump_statistics

pytest.importorskip("matplotlib", reason="pictures need matplotlib")

PAGE = 4096

LOG = """\
(00.000100) Version: 4.2.1 (gitid 0)
(00.010000) Dumping processes (pid: 7 comm: boss)
(00.020000) Seized task 7, state 1
(00.030000) Dumping task (pid: 7 comm: boss)
(00.031000) page-pipe: Create page pipe for 2048 segs
(00.035000) page-pipe: Killing page pipe
(00.040000) Dumping task (pid: 9 comm: wor) ker)
(00.042000) page-pipe: Create page pipe for 2048 segs
(00.048000) page-pipe: Killing page pipe
(00.050000) Dumping file-locks
(00.055000) Unfreezing tasks into 2
(00.060000) Writing stats
(00.061000) Dumping finished successfully
"""
"""The milestones of a log at ``log_level=4``, as CRIU 4.2.1 words them."""

PRE_DUMP = """\
(00.010000) Pre-dumping processes (pid: 7 comm: boss)
(00.020000) Seized task 7, state 1
(00.030000) Pre-dumping task (pid: 7 comm: boss)
(00.031000) page-pipe: Create page pipe for 2048 segs
(00.040000) Unfreezing tasks into 1
(00.041000) Pre-dumping tasks' memory
(00.080000) page-pipe: Killing page pipe
(00.090000) Writing stats
"""


def test_a_log_is_read(tmp_path: Path) -> None:
    """Phases are consecutive, processes have their memory, the frozen time is CRIU's."""
    (tmp_path / "dump.log").write_text(LOG)
    write_dump_statistics(tmp_path, frozen_time=39_000, pages_written=3)
    result = plots.read_timeline(tmp_path)
    assert [(p.name, p.begin, p.end) for p in result.phases] == [
        ("start", 0.0, 0.01), ("prepare", 0.01, 0.02), ("collect", 0.02, 0.03),
        ("save processes", 0.03, 0.05), ("finish", 0.05, 0.055), ("resume", 0.055, 0.06),
        ("close", 0.06, 0.061),
    ]  # fmt: skip
    assert [(p.pid, p.name, p.begin, p.end) for p in result.processes] == [
        (7, "boss", 0.03, 0.04), (9, "wor) ker", 0.04, 0.05),
    ]  # fmt: skip
    assert [(m.pid, m.begin, m.end) for m in result.memory] == [
        (7, 0.031, 0.035), (9, 0.042, 0.048),
    ]  # fmt: skip
    assert result.frozen is not None
    assert result.frozen == pytest.approx((0.021, 0.06))
    assert result.end == 0.061


def test_a_log_of_an_old_criu(tmp_path: Path) -> None:
    """CRIU up to 3.17 logs no names of processes."""
    (tmp_path / "dump.log").write_text(re.sub(r" comm: .*\)", ")", LOG))
    result = plots.read_timeline(tmp_path)
    assert [(each.pid, each.name) for each in result.processes] == [(7, "pid"), (9, "pid")]
    plots.timeline(tmp_path, tmp_path / "x.svg")
    assert "pid 9" in (tmp_path / "x.svg").read_text()


def test_a_long_name_of_a_directory(tmp_path: Path) -> None:
    """A long name is shortened."""
    place = tmp_path / ("long" * 50 + "end")
    place.mkdir()
    write_dump_statistics(place, pages_written=3, frozen_time=2000)
    plots.rounds(place, tmp_path / "x.svg")
    assert "longlonglo…end" in (tmp_path / "x.svg").read_text()


def test_a_pre_dump_writes_after_the_freeze(tmp_path: Path) -> None:
    """The processes are frozen until their memory is read, not until it is written."""
    (tmp_path / "pre-dump.log").write_text(PRE_DUMP)
    result = plots.read_timeline(tmp_path)
    assert result.frozen == (0.02, 0.041)
    assert result.memory[0].end == 0.08
    plots.timeline(tmp_path, tmp_path / "x.svg")


def test_a_log_without_times(tmp_path: Path) -> None:
    """Without phases in the log there are only durations; without statistics too, an error."""
    (tmp_path / "dump.log").write_text("Warn  (criu/x.c:1): nothing\n")
    with pytest.raises(ImagesError, match="log_level=4"):
        plots.timeline(tmp_path, tmp_path / "x.png")
    write_dump_statistics(tmp_path, frozen_time=39_000)
    assert plots.read_timeline(tmp_path).frozen is None
    plots.timeline(tmp_path, tmp_path / "x.svg")
    assert "39.0 ms" in (tmp_path / "x.svg").read_text()
    with pytest.raises(ImagesError, match=r"none\.log cannot be read: No such file"):
        plots.timeline(tmp_path, tmp_path / "x.svg", log=tmp_path / "none.log")


def test_a_chain(tmp_path: Path) -> None:
    """A chain begins with the oldest set; each has its written bytes, or counted pages."""
    for number, written in enumerate((100, 40, 5), 1):
        place = tmp_path / str(number)
        place.mkdir()
        if number > 1:
            (place / "parent").symlink_to(f"../{number - 1}")
        if number == 1:
            (place / "pages-1.img").write_bytes(bytes(written * PAGE))
        else:
            write_dump_statistics(
                place, pages_written=written, pages_skipped_parent=100 - written, frozen_time=2000
            )
    result = plots.read_rounds(tmp_path / "3")
    assert [each.written for each in result] == [100 * PAGE, 40 * PAGE, 5 * PAGE]
    assert [each.in_parent for each in result] == [None, 60 * PAGE, 95 * PAGE]
    assert [each.frozen for each in result] == [None, 0.002, 0.002]
    plots.rounds(tmp_path / "3", tmp_path / "x.svg")
    text = (tmp_path / "x.svg").read_text()
    assert "3 rounds of one chain" in text
    assert "unknown" in text
    assert text.count("2.0 ms") == 2


def test_a_chain_in_a_circle(tmp_path: Path) -> None:
    """A cycle of parents is an error."""
    (tmp_path / "parent").symlink_to(".")
    (tmp_path / "pages-1.img").write_bytes(bytes(PAGE))
    with pytest.raises(ImagesError, match="cyclic"):
        plots.read_rounds(tmp_path)


def test_a_directory_without_images(tmp_path: Path) -> None:
    """It is an error, not a picture of a dump of 0 bytes."""
    (tmp_path / "dump.log").write_text(LOG)
    with pytest.raises(ImagesError, match="neither pages of images nor the statistics"):
        plots.rounds(tmp_path, tmp_path / "x.svg")
    assert not (tmp_path / "x.svg").exists()


def test_the_picture_shows_the_log(tmp_path: Path) -> None:
    """The picture has the title, each process and the frozen time, and is the same each time."""
    (tmp_path / "dump.log").write_text(LOG)
    write_dump_statistics(tmp_path, frozen_time=39_000)
    plots.timeline(tmp_path, tmp_path / "x.svg")
    text = (tmp_path / "x.svg").read_text()
    for response in (
        "A dump of 2 processes, 61.0 ms",
        "frozen for 39.0 ms",
        "boss 7",
        "its memory",
    ):
        assert response in text
    plots.timeline(tmp_path, tmp_path / "y.PNG")
    assert (tmp_path / "y.PNG").read_bytes().startswith(b"\x89PNG")


def test_many_processes(tmp_path: Path) -> None:
    """The longest processes have their own lanes, the others share one."""
    lines = [f"(00.{100 + n:03}000) Dumping task (pid: {n + 1} comm: p)" for n in range(40)]
    log = LOG.replace("(00.040000) Dumping task (pid: 9 comm: wor) ker)\n", "")
    head, tail = log.split("(00.050000)")
    tail = re.sub(r"\(00\.0", "(00.9", "(00.050000)" + tail)
    (tmp_path / "dump.log").write_text(head + "\n".join(lines) + "\n" + tail)
    plots.timeline(tmp_path, tmp_path / "x.svg")
    assert "25 more" in (tmp_path / "x.svg").read_text()


@pytest.mark.parametrize("name", ["x.jpg", "x", "png"])
def test_another_kind_of_file(name: str, tmp_path: Path) -> None:
    """An unknown format is refused by name, before anything is read."""
    with pytest.raises(OptionError, match=r"\.png or \.svg"):
        plots.timeline(tmp_path / "none", tmp_path / name)


def test_values_need_no_extra(tmp_path: Path) -> None:
    """A timeline can be read without matplotlib."""
    (tmp_path / "dump.log").write_text(LOG)
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from pycriu_native import plots\n"
        f"print(len(plots.read_timeline({str(tmp_path)!r}).phases))"
    )
    message = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert message.stdout == "7\n"


START = {
    "number": 3,
    "way": "shared",
    "phases": [
        {"name": "check", "begin": 0.0, "end": 0.001},
        {"name": "restore", "begin": 0.001, "end": 0.0125},
    ],
}


def test_starts(tmp_path: Path) -> None:
    """A bar for each line of the file, with its total; the values are those of the file."""
    pytest.importorskip("matplotlib")
    path = tmp_path / "starts.jsonl"
    path.write_text(json.dumps(START) + "\n" + json.dumps({**START, "number": 4}) + "\n")
    found = plots.read_starts(path)
    assert [(each.number, each.total) for each in found] == [(3, 0.0125), (4, 0.0125)]
    assert found[0].to_dict() == {**START, "phases": tuple(START["phases"])}  # type: ignore[arg-type]
    for source in (path, found):
        plots.start(source, tmp_path / "x.svg")
        text = (tmp_path / "x.svg").read_text()
        for shown in ("2 starts of a snapshot", "4 shared", "12.5 ms", "check", "restore"):
            assert shown in text
    with pytest.raises(OptionError, match="at least one start"):
        plots.start([], tmp_path / "x.svg")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is empty"),
        ("{", "has no timings"),
        ('{"number": 1}', "are not the timings"),
        ("[]", "no"),
        ("[" * 100_000, "has no timings"),
        ('{"number": Infinity, "way": "shared", "phases": []}', "are not the timings"),
    ],
)
def test_no_timings(tmp_path: Path, text: str, why: str) -> None:
    """An invalid file is refused."""
    path = tmp_path / "starts.jsonl"
    path.write_text(text)
    with pytest.raises(ImagesError, match=f"{re.escape(str(path))} .*{why}"):
        plots.read_starts(path)
    with pytest.raises(ImagesError, match="cannot be read"):
        plots.read_starts(tmp_path / "none")
