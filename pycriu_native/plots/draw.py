"""Drawing of the plots. matplotlib is imported on use, and its global state is not changed.

The colours are those of Okabe and Ito, which can be distinguished with any colour vision.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .._support.sizes import size_text
from ..errors import ImagesError, OptionError, Problem, UnsupportedError, missing_extra
from .dump_timeline import Span, Timeline, read_timeline
from .parent_chain import read_rounds
from .start_timings import read_starts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..images import ImageSet, Process
    from ..snapshots import StartTimings

Place = str | os.PathLike[str]

FORMATS = (".png", ".svg")
LONGEST_NAME = 14
"""Characters of a directory's name that are shown."""

MOST = 16
"""Number of processes that are shown; the others are added up in one row."""

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PINK, YELLOW, GREY = "#56B4E9", "#CC79A7", "#F0E442", "#BBBBBB"
PALE, INK, FAINT = "#A6C8E0", "#222222", "#777777"

_PHASE_COLOURS = {
    "start": GREY,
    "prepare": "#999999",
    "collect": SKY,
    "save processes": BLUE,
    "finish": GREEN,
    "resume": PINK,
    "close": "#DDDDDD",
}


def timeline(directory: Place, to: Place, *, log: Place | None = None) -> None:
    """Draw the phases of a dump, and the time in which the processes were frozen.

    ``directory`` contains the log and the statistics of the dump; ``to`` is a ``.png`` or ``.svg``
    file. If the log was written with a ``log_level`` below 3, it has no times, and only durations
    are drawn. Raises ``ImagesError``, ``OptionError`` for another kind of file,
    ``UnsupportedError`` without matplotlib.
    """
    _check(to)
    result = read_timeline(directory, log)
    if result.frozen is not None:
        _draw_timeline(result, to)
    else:
        _draw_durations(result, to)


def rounds(directory: Place, to: Place) -> None:
    """Draw the size and the frozen time of a dump and of the pre-dumps before it.

    ``directory`` is that of the dump. Raises as :func:`timeline`.
    """
    _check(to)
    chain = read_rounds(directory)
    scale, unit = _size_unit(max(each.written + (each.in_parent or 0) for each in chain))
    names = [_short(os.path.basename(each.directory)) for each in chain]
    timed = [each.frozen for each in chain]
    figure = _figure(max(6, 1.6 + 0.8 * len(chain)), 5.2)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    places = range(len(chain))
    written = [each.written / scale for each in chain]
    bars = above.bar(places, written, width=0.62, color=BLUE, label="written")
    above.bar_label(bars, [size_text(each.written) for each in chain], padding=2, fontsize=8)
    skipped = [(each.in_parent or 0) / scale for each in chain]
    if any(skipped):
        above.bar(places, skipped, bottom=written, width=0.62, color=GREY, alpha=0.6,
                  label="left in the parents")  # fmt: skip
    above.set_ylabel(f"memory, {unit}")
    above.margins(y=0.14)
    seconds = [each or 0.0 for each in timed]
    by, time_unit = _unit(max(seconds))
    bars = below.bar(places, [each * by for each in seconds], width=0.62, color=RED, label="frozen")
    labels = ["unknown" if each is None else _time(each) for each in timed]
    below.bar_label(bars, labels, padding=2, fontsize=8)
    below.set_ylabel(f"frozen, {time_unit}")
    below.margins(y=0.25)
    below.set_xticks(places, names)
    below.set_xlabel("round, the last one is the dump")
    _save(figure, to, f"{len(chain)} round{'s' * (len(chain) > 1)} of one chain", above)


def memory(directory: Place, to: Place) -> None:
    """Draw the memory of an image set by kind, and that of its largest processes.

    Raises as :func:`timeline`; needs the extra ``[images]`` as well.
    """
    _check(to)
    try:
        from .. import images
    except ImportError as error:
        raise UnsupportedError([Problem("installation", None, str(error))]) from None
    result = images.inspect(directory)
    if not any(process.mappings for process in result.processes):
        raise ImagesError(f"{result.directory}: these images have no process with memory")
    _draw_memory(result, to)


def start(timings: Place | Sequence[StartTimings], to: Place) -> None:
    """Draw the phases of starts of snapshots, with a bar for each start.

    ``timings`` are those of started copies (``Process.timings``), or the file of
    ``pycriu-native start --timings``. Only the last 16 are drawn. Raises as :func:`timeline`.
    """
    _check(to)
    if isinstance(timings, str | os.PathLike):
        timings = read_starts(timings)
    if not any(each.total for each in timings):
        raise OptionError([Problem("timings", timings, "timings of at least one start")])
    starts = timings[-MOST:]
    longest = max(each.total for each in starts)
    scale, unit = _unit(longest)
    figure = _figure(10, 2.1 + 0.36 * len(starts))
    axes = figure.subplots()
    for place, each in enumerate(starts):
        for phase in each.phases:
            colour = _START_COLOURS.get(phase.name, INK)
            _bar(axes, place, phase, scale, color=colour, label=phase.name)
        _note_beside(axes, _time(each.total), each.total * scale, place)
    axes.set_yticks(range(len(starts)), [f"{each.number} {each.way}" for each in starts])
    axes.invert_yaxis()
    axes.set_xlim(0, longest * scale * 1.1)
    axes.set_xlabel(f"time since the call began, {unit}")
    _save(figure, to, f"{len(starts)} start{'s' * (len(starts) > 1)} of a snapshot", axes)


# ---- the plots ----


def _draw_timeline(dump: Timeline, to: Place) -> None:
    shown, rest = _lanes(dump.processes)
    lanes = 1 + len(shown) + bool(rest)
    figure = _figure(10, 1.9 + 0.36 * lanes)
    axes = figure.subplots()
    scale, unit = _unit(dump.end)
    assert dump.frozen is not None
    begin, end = (at * scale for at in dump.frozen)
    axes.axvspan(begin, end, color=YELLOW, alpha=0.28, linewidth=0)
    for at in (begin, end):
        axes.axvline(at, color=RED, linewidth=1.1, linestyle=(0, (4, 2)))
    for phase in dump.phases:
        label = phase.name if phase.name != "resume" or phase.end > phase.begin else None
        _bar(axes, 0, phase, scale, color=_PHASE_COLOURS[phase.name], label=label)
    labels = ["CRIU"]
    for row, span in enumerate(shown, 1):
        _lane(axes, row, [span], dump.memory, scale)
        labels.append(f"{span.name} {span.pid}")
    if rest:
        _lane(axes, len(labels), rest, dump.memory, scale)
        labels.append(f"{len(rest)} more")
    axes.barh(0, 0, color=PALE, label="a process")
    axes.barh(0, 0, color=ORANGE, label="its memory")
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlim(0, dump.end * scale * 1.005)
    axes.set_xlabel(f"time since CRIU began, {unit}")
    frozen = dump.frozen[1] - dump.frozen[0]
    axes.annotate(
        f"frozen for {_time(frozen)}",
        ((begin + end) / 2, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(0, 4),
        textcoords="offset points",
        ha="center",
        va="bottom",
        color=RED,
        fontweight="bold",
    )
    _save(figure, to, f"A dump of {_processes(len(dump.processes))}, {_time(dump.end)}", axes)


def _lane(
    axes: Axes, row: int, spans: Sequence[Span], memory: Sequence[Span], scale: float
) -> None:
    for span in spans:
        _bar(axes, row, span, scale, color=PALE)
    pids = {span.pid for span in spans}
    for each in memory:
        if each.pid in pids:
            _bar(axes, row, each, scale, color=ORANGE, height=0.3)


def _bar(
    axes: Axes, row: int, span: Any, scale: float, *, height: float = 0.62, **style: Any
) -> None:
    """Draw the time from ``span.begin`` to ``span.end``."""
    width = (span.end - span.begin) * scale
    axes.barh(row, width, left=span.begin * scale, height=height, **style)


def _lanes(processes: Sequence[Span]) -> tuple[list[Span], list[Span]]:
    """The spans with the longest durations, in their order, and the others."""
    if len(processes) <= MOST:
        return list(processes), []
    longest = sorted(processes, key=lambda span: span.begin - span.end)[:MOST]
    return [p for p in processes if p in longest], [p for p in processes if p not in longest]


def _draw_durations(timing: Timeline, to: Place) -> None:
    statistics = timing.statistics
    assert statistics is not None
    rows = {
        "freezing": statistics.freezing_time,
        "frozen": statistics.frozen_time,
        "memory dump": statistics.memdump_time,
        "memory write": statistics.memwrite_time,
    }
    scale, unit = _unit(max(rows.values()) / 1e6)
    figure = _figure(8, 2.9)
    axes = figure.subplots()
    values = [value / 1e6 * scale for value in rows.values()]
    bars = axes.barh(list(rows), values, color=[SKY, RED, ORANGE, GREEN], height=0.62)
    axes.bar_label(bars, [_time(value / 1e6) for value in rows.values()], padding=4)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel(f"{unit}; the log has no times (dump with --verbosity=4 for them)")
    _save(figure, to, "How long a dump took, by CRIU's statistics")


_START_COLOURS = {
    "check": GREY,
    "memory": YELLOW,
    "namespaces": GREEN,
    "worker": SKY,
    "prepare": ORANGE,
    "restore": BLUE,
    "fork": PINK,
    "finish": "#666666",
}


_KIND_COLOURS = {
    "anonymous": BLUE,
    "heap": SKY,
    "stack": GREEN,
    "file": ORANGE,
    "shared": PINK,
    "shared file": YELLOW,
    "vdso": GREY,
    "other": "#555555",
}
_PLACES = {
    "stored": ("in these images", BLUE),
    "in_parent": ("in the parents", SKY),
    "lazy": ("left for a lazy restore", ORANGE),
    "zero": ("zeros, never written", "#E4E4E4"),
}


def _draw_memory(images: ImageSet, to: Place) -> None:
    kinds: dict[str, dict[str, int]] = {}
    seen: set[tuple[int, int]] = set()
    for mapping in (each for process in images.processes for each in process.mappings):
        if mapping.shared is not None:
            # The images contain the pages of shared memory once.
            if (mapping.shared, mapping.offset) in seen:
                continue
            seen.add((mapping.shared, mapping.offset))
        row = kinds.setdefault(str(mapping.kind), dict.fromkeys(_PLACES, 0))
        for place in _PLACES:
            # Reserved address space of Go and others would be much larger than the memory.
            if place != "zero" or mapping.protection[:3] != "---":
                row[place] += getattr(mapping, place)
    total = sum(row["stored"] for row in kinds.values())
    kinds = {kind: row for kind, row in kinds.items() if any(row.values())}
    by_size = sorted((p for p in images.processes if p.mappings), key=_stored, reverse=True)
    shown, rest = by_size[:MOST], by_size[MOST:]
    lanes = len(shown) + bool(rest)
    figure = _figure(10, 2.4 + 0.36 * (len(kinds) + lanes))
    above, below = figure.subplots(2, 1, height_ratios=[len(kinds) + 1, lanes + 1])
    _by_kind(above, dict(sorted(kinds.items(), key=lambda each: -each[1]["stored"])))
    _by_process(below, shown, rest)
    whose = _processes(len(images.processes))
    _save(figure, to, f"Memory in the images: {size_text(total)} of {whose}")


def _by_kind(axes: Axes, kinds: dict[str, dict[str, int]]) -> None:
    in_images = {kind: sum(row.values()) - row["zero"] for kind, row in kinds.items()}
    # Address space that is reserved and never written can be much larger than all memory.
    most = 2 * max(in_images.values()) or max(row["zero"] for row in kinds.values())
    drawn = {
        kind: {**row, "zero": min(row["zero"], most - in_images[kind])}
        for kind, row in kinds.items()
    }
    scale, unit = _size_unit(max(sum(row.values()) for row in drawn.values()))
    ends = _stacked(axes, list(drawn), list(drawn.values()), _PLACES, scale)
    for number, (kind, row) in enumerate(kinds.items()):
        cut = row["zero"] > drawn[kind]["zero"]
        zeros = f" and {size_text(row['zero'])} of zeros" if cut else ""
        _note_beside(axes, size_text(in_images[kind]) + zeros, ends[number], number)
    axes.margins(x=0.1)
    axes.set_xlabel(f"by kind, {unit}; the totals exclude zeros")


def _stacked(
    axes: Axes,
    names: Sequence[str],
    rows: Sequence[dict[str, int]],
    parts: dict[str, tuple[str, str]],
    scale: float,
) -> list[float]:
    """Draw a bar for each row, of parts with a label and a colour; returns the ends of the bars."""
    ends = [0.0] * len(rows)
    for part, (label, colour) in parts.items():
        values = [row.get(part, 0) / scale for row in rows]
        if any(values):
            axes.barh(range(len(rows)), values, left=ends, height=0.62, color=colour, label=label)
        ends = [a + b for a, b in zip(ends, values, strict=True)]
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.legend(loc="lower right", frameon=False, fontsize=8)
    return ends


def _note_beside(axes: Axes, text: str, end: float, row: int) -> None:
    """Write the text to the right of the bar of a row."""
    style: dict[str, Any] = {"va": "center", "fontsize": 8, "color": FAINT}
    axes.annotate(text, (end, row), xytext=(4, 0), textcoords="offset points", **style)


def _by_process(axes: Axes, shown: Sequence[Process], rest: Sequence[Process]) -> None:
    rows = [(f"{process.name} {process.pid}", _kinds([process])) for process in shown]
    if rest:
        rows.append((f"{len(rest)} more", _kinds(rest)))
    scale, unit = _size_unit(max(sum(sizes.values()) for _, sizes in rows))
    kinds = {kind: (kind, colour) for kind, colour in _KIND_COLOURS.items()}
    _stacked(axes, [name for name, _ in rows], [sizes for _, sizes in rows], kinds, scale)
    axes.margins(x=0.22)
    axes.set_xlabel(f"in the images by process, {unit}; shared memory counts for each process")


def _kinds(processes: Sequence[Process]) -> dict[str, int]:
    result: dict[str, int] = {}
    for process in processes:
        for kind, sizes in process.memory_by_kind.items():
            result[kind] = result.get(kind, 0) + sizes["stored"]
    return result


def _stored(process: Process) -> int:
    return sum(mapping.stored for mapping in process.mappings)


# ---- shared functions ----


def _check(to: Place) -> None:
    if os.path.splitext(os.fspath(to))[1].lower() not in FORMATS:
        rule = f"a file name that ends in {' or '.join(FORMATS)} is accepted"
        raise OptionError([Problem("to", os.fspath(to), rule)])
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise missing_extra("a picture", str(error.name), "plot") from None


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    style: dict[str, Any] = {"loc": "outside lower center", "frameon": False, "fontsize": 8}
    figure.legend(list(once.values()), list(once), ncols=min(len(once), 5), **style)


def _save(figure: Figure, to: Place, title: str, legend: Axes | None = None) -> None:
    """Write the figure to a file, with a title, and with a legend of these axes."""
    figure.suptitle(title, fontsize=12, fontweight="bold", color=INK)
    if legend is not None:
        _legend(figure, legend)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK, labelsize=9)
        axes.set_axisbelow(True)
        axes.grid(axis="x" if axes.yaxis_inverted() else "y", color="#EEEEEE", linewidth=0.8)
    settings: Any = {"svg.hashsalt": "pycriu-native", "svg.fonttype": "none"}
    import matplotlib

    try:
        with matplotlib.rc_context(settings):
            figure.savefig(os.fspath(to), dpi=150)
    except OSError as error:
        raise ImagesError(f"{os.fspath(to)} cannot be written: {error.strerror}") from None


def _short(name: str) -> str:
    """Shorten a name to fit below a bar."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 4]}…{name[-3:]}"


def _unit(seconds: float) -> tuple[float, str]:
    return (1, "s") if seconds >= 1 else (1e3, "ms")


def _time(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} µs"


def _size_unit(most: float) -> tuple[float, str]:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if most >= scale:
            return scale, unit
    return 1024, "KiB"


def _processes(number: int) -> str:
    return "1 process" if number == 1 else f"{number} processes"
