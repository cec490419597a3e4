"""``run`` and ``job``: commands with checkpoints at intervals, which can be resumed."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import click

from ..._support.unpatched import sleep
from ...errors import CriuError, ImagesError
from ...jobs import BUSY, CANNOT_RESTORE, INTERRUPTED, Checkpoint, Job, JobStatus, State
from ...jobs.arguments import MOST
from ...jobs.control import request_checkpoint, request_stop
from ...jobs.directory import META, CheckpointProgress, JobDirectory
from ...jobs.slurm import SlurmJob, run_in_slurm
from ..command import Call, Command, Group
from ..errors import in_flags
from ..exit_codes import Exit
from ..parameters import compress_option, encrypt_to_option, flag, identity_option, option
from ..standard_streams import is_lost
from ..text import columns, details, remaining, safe, size
from .archives import keys_of

UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")


def seconds_of(value: str) -> float:
    """A duration: a number of seconds, or one with the unit s, m, h or d."""
    match = _DURATION.fullmatch(value)
    if match is None:
        rule = "a number with s, m, h or d is accepted, such as 10m"
        raise click.BadParameter(f"{value!r}: {rule}")
    result = float(match[1]) * UNITS[match[2]]
    if result > MOST:
        raise click.BadParameter(f"{value!r}: {MOST:g} seconds are accepted at most")
    return result


DIRECTORY = click.Argument(["directory"], type=click.Path(file_okay=False))


def _duration(name: str, default: str, help: str) -> click.Option:
    return option(name, type=seconds_of, default=default, metavar="DURATION", help=help)


TIMEOUT = _duration("--timeout", "10m", help="Time limit for it.")


@Command(
    "run",
    help="Run a command with checkpoints at intervals, or resume it from the newest one.\n\n"
    "The same command line starts and resumes the job, whether it is typed in a shell or part "
    "of a systemd unit, a batch script or a container. The command's standard output and error "
    "are written to files in the directory; 'job log' prints them. On SIGTERM, SIGINT, SIGHUP, "
    "SIGUSR1 or a notice (--notice), the job takes a last checkpoint and ends. Without root "
    "the command runs in a user namespace.\n\n"
    "The exit code is that of the command (128 and the signal's number, if a signal ended it), "
    f"or {INTERRUPTED} if the job was interrupted and can be resumed, {CANNOT_RESTORE} if it "
    "has checkpoints but none can be restored (nothing was started), or "
    f"{BUSY} if another process runs the job. A job counts as interrupted if one of these "
    "signals or SIGKILL ended its command, or if the command failed after one of these signals "
    "was sent to 'run'. A job whose command has ended is not run again.",
    examples=[
        "pycriu-native run --every 10m --keep 3 --dir /ckpt/job1 -- python train.py",
        "pycriu-native run --dir job2 --also '/data/log*' -- ./simulate --steps 1000000",
        "pycriu-native run --dir job3 --notice http://10.0.0.1/preempted -- make",
        "pycriu-native run --slurm --grace 100s -- ./simulate",
        "pycriu-native run --dir /var/lib/job4 --storage s3://bucket/job4 -- python train.py",
    ],
    exits=(Exit.FAILED, Exit.UNSUPPORTED, Exit.IMAGES),
    params=[
        click.Argument(["command"], nargs=-1, required=True, type=click.UNPROCESSED),
        option(
            "--dir",
            "directory",
            type=click.Path(file_okay=False),
            help="Directory of the job, created if missing. Required without --slurm; with it, "
            "the default is pycriu-native-$SLURM_JOB_ID in the directory of sbatch.",
        ),
        flag(
            "--slurm",
            help="For batch scripts of SLURM: requeue the SLURM job ('scontrol requeue') after "
            "SIGUSR1 (sbatch --signal=B:USR1@120) or a notice has interrupted it.",
        ),
        _duration("--every", "10m", help="Time between two checkpoints, after those at the start."),
        _duration(
            "--first",
            "1s",
            help="Time from the start to the first checkpoint; the time between checkpoints "
            "then doubles until it is that of --every.",
        ),
        option(
            "--keep",
            type=click.IntRange(min=1),
            default=3,
            help="Number of checkpoints to keep; one more if a signal to stop the job precedes "
            "all of these.",
        ),
        option(
            "--incremental",
            type=click.IntRange(min=0),
            metavar="N",
            help="Largest number of incremental checkpoints, with the changed memory only, "
            "between two full ones; 0 for none. Default: 10 if root runs it and the kernel "
            "tracks changes of memory, else 0.",
        ),
        option(
            "--also",
            multiple=True,
            metavar="PATTERN",
            help="Absolute pattern of files that are saved even if they are closed at the time "
            "of a checkpoint; files open for writing are always saved.",
        ),
        _duration("--grace", "30s", help="Time limit of a last checkpoint."),
        option(
            "--notice",
            metavar="COMMAND|URL",
            help="Command or URL that announces an interruption by exit status 0 or HTTP "
            "status 200; polled every 5 seconds.",
        ),
        option(
            "--interrupted-code",
            type=click.IntRange(1, 255),
            default=INTERRUPTED,
            help="Exit code of an interrupted job.",
        ),
        flag("--or-start-over", help="Start from the beginning if no checkpoint can be restored."),
        flag(
            "--unprivileged",
            help="Run in a user namespace, without root; the default unless root runs it.",
        ),
        option(
            "--storage",
            metavar="URL",
            help="Upload checkpoints to this URL of fsspec, such as s3://bucket/job1, or path "
            "of a shared file system. Another host can resume the job from there.",
        ),
        _duration(
            "--lease",
            "60s",
            help="Time after which another host can take over the job if this one no longer "
            "updates the storage.",
        ),
        compress_option("Compression of uploads."),
        encrypt_to_option("the uploads"),
        identity_option(" to decrypt uploads with"),
    ],
).runs
def _run(
    call: Call,
    command: tuple[str, ...],
    directory: str | None,
    slurm: bool,
    unprivileged: bool,
    identity: tuple[str, ...],
    **settings: Any,
) -> int:
    """Run or resume a job. ``settings`` are the other arguments of ``Job``."""
    slurm_job = SlurmJob.current() if slurm else None
    if directory is None:
        if slurm_job is None:
            raise click.UsageError("Missing option '--dir'; with --slurm it may be left out.")
        directory = slurm_job.default_directory()
    job = Job(
        directory,
        command,
        decrypt_with=[key for path in identity for key in keys_of(path)],
        unprivileged=unprivileged or None,
        **settings,
    )
    had_ended = JobDirectory(job.directory).status().state is State.ENDED
    result = job.run() if slurm_job is None else run_in_slurm(job, slurm_job)
    if call.out.as_json:
        call.out.event("ended", asdict(result), "")
    elif (result.state is not State.ENDED or result.exit_code or had_ended) and not call.out.quiet:
        message = safe(in_flags(result.message))
        if had_ended:
            message += f"; nothing was started: remove {safe(directory)} to run it again"
        elif result.state is State.ENDED:
            log = safe(shlex.join(["pycriu-native", "job", "log", directory]))
            message += f"; its output: {log} [--stderr]"
        sys.stderr.write(f"pycriu-native: {message}\n")
    return result.exit_code


def _job_directory(directory: str) -> JobDirectory:
    """The directory of an existing job."""
    result = JobDirectory(directory)
    if result.command() is None:
        raise ImagesError(f"{directory} has no job: there is no job.json")
    return result


@Command(
    "status",
    help="Show the state of the job and of its checkpoints.",
    examples=[
        "pycriu-native job status /ckpt/job1",
        "pycriu-native job status /ckpt/job1 --json | jq .result.state",
    ],
    exits=(Exit.IMAGES,),
    params=[
        DIRECTORY,
        flag("--follow", help="Repeat until the job ends."),
    ],
).runs
def _status(call: Call, directory: str, follow: bool) -> Exit:
    job = _job_directory(directory)
    try:
        while follow and not is_lost() and (status := job.status()).state is State.RUNNING:
            if call.out.as_json:
                call.out.event("status", _status_body(job, status), "")
            else:
                click.clear()
                call.out.answer({}, _status_text(job, status))
            sleep(1)
    except KeyboardInterrupt:
        return Exit.DONE  # there is nothing to undo
    status = job.status()
    return call.out.answer(_status_body(job, status), _status_text(job, status))


def _status_body(job: JobDirectory, status: JobStatus) -> dict[str, Any]:
    return asdict(status) | {
        "directory": str(job.path),
        "command": (job.command() or {})["command"],
        "kept": len(job.all_checkpoints()),
    }


def _status_text(job: JobDirectory, status: JobStatus) -> str:
    newest = uploads = None
    if status.last_success is not None and status.last_duration is not None:
        newest = (
            f"{_when(status.last_success)}: {_kind(status.last_parents)}, "
            f"{size(status.last_bytes or 0)} in "
            f"{status.last_duration:.2f} s, frozen {status.last_frozen or 0:.3f} s"
        )
    if (storage := status.storage) is not None:
        uploads = f"{storage.uploads} uploaded, {storage.failures} failed: {storage.message}"
    kinds = f"{status.checkpoints} taken ({status.incremental} incremental)"
    rows = [
        ("command", safe(" ".join((job.command() or {})["command"]))),
        ("last", safe(status.message)),
        ("started", None if status.started is None else _when(status.started)),
        ("resumed", f"{status.resumed} times, from the beginning {status.restarted} times"),
        ("checkpoints", f"{kinds}, {status.failures} failed"),
        ("now", None if status.progress is None else _progress(status.progress)),
        ("newest", newest),
        ("storage", None if storage is None else safe(storage.url)),
        ("uploads", None if uploads is None else safe(uploads)),
    ]
    return details(f"{safe(str(job.path))}: {status.state}", rows)


def _progress(taken: CheckpointProgress) -> str:
    text = f"a checkpoint since {_when(taken.started)}: {taken.phase}"
    if taken.total:
        done = min(taken.done, taken.total)
        text += f" {100 * done // taken.total} %, {size(done)} of {size(taken.total)}"
    return text if taken.left is None else f"{text}, {remaining(taken.left)} left"


def _kind(parents: int | None) -> str:
    return "incremental" if parents else "full"


def _when(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(sep=" ", timespec="seconds")


@Command(
    "list",
    help="List the stored checkpoints, the newest first.",
    examples=["pycriu-native job list /ckpt/job1"],
    exits=(Exit.IMAGES,),
    params=[DIRECTORY],
).runs
def _list(call: Call, directory: str) -> Exit:
    checkpoints = _job_directory(directory).all_checkpoints()
    rows = [("number", "time", "kind", "size", "took", "frozen")]
    rows += [
        (
            str(each.number),
            _when(each.time),
            _kind(each.parents),
            size(each.bytes),
            f"{each.duration:.2f} s",
            f"{each.frozen:.3f} s",
        )
        if each.options is not None
        else (str(each.number), f"{META} cannot be read", "", "", "", "")
        for each in checkpoints
    ]
    body = {"checkpoints": list(map(_shape, checkpoints))}
    return call.out.answer(body, "\n".join(columns(rows)) if checkpoints else "no checkpoints")


def _shape(checkpoint: Checkpoint) -> dict[str, Any]:
    return {name: value for name, value in asdict(checkpoint).items() if name != "options"}


@contextlib.contextmanager
def _requested(effect: str) -> Iterator[None]:
    """In this context, an interruption does not undo the request that was sent to the job."""
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.add_note(f"only the wait has ended: {effect}")
        raise


@Command(
    "checkpoint",
    help="Take a checkpoint of a running job now, and wait until it is complete.",
    examples=["pycriu-native job checkpoint /ckpt/job1"],
    exits=(Exit.FAILED, Exit.NO_PROCESS, Exit.IMAGES, Exit.DEADLINE),
    params=[DIRECTORY, TIMEOUT],
).runs
def _checkpoint(call: Call, directory: str, timeout: float) -> Exit:
    job = _job_directory(directory)
    with _requested("the job takes the checkpoint"):
        made = request_checkpoint(job, timeout)
    text = f"checkpoint {made.number}: {size(made.bytes)}, {made.path}"
    return call.out.result(_shape(made), safe(text))


@Command(
    "stop",
    help="Take a last checkpoint of a running job, and end it; 'run' resumes it.",
    examples=["pycriu-native job stop /ckpt/job1"],
    exits=(Exit.FAILED, Exit.NO_PROCESS, Exit.IMAGES, Exit.DEADLINE, Exit.NO),
    params=[DIRECTORY, TIMEOUT],
).runs
def _stop(call: Call, directory: str, timeout: float) -> Exit:
    job = _job_directory(directory)
    with _requested("the job takes its last checkpoint and ends"):
        status = request_stop(job, timeout)
    lost = status.state is State.INTERRUPTED and not job.all_checkpoints()
    code = Exit.NO if lost else Exit.DONE
    return call.out.result(asdict(status), safe(f"{status.state}: {status.message}"), code=code)


@Command(
    "log",
    help="Print the standard output of the job's command.",
    examples=[
        "pycriu-native job log /ckpt/job1 --follow",
        "pycriu-native job log /ckpt/job1 --events | jq .message",
    ],
    exits=(Exit.FAILED, Exit.IMAGES),
    params=[
        DIRECTORY,
        flag("--stderr", help="Print its standard error instead."),
        flag("--events", help="Print the job's events as JSON lines."),
        flag("--follow", "-f", help="Continue until the job ends."),
    ],
).runs
def _log(call: Call, directory: str, stderr: bool, events: bool, follow: bool) -> Exit:
    if stderr and events:
        raise click.UsageError("--stderr and --events: one is accepted.")
    job = _job_directory(directory)
    path = job.path / ("events.jsonl" if events else "stderr" if stderr else "stdout")
    if not path.exists():
        raise CriuError(f"{path} does not exist: the job was not started yet")
    if not path.is_file():
        raise ImagesError(f"{path} is not a regular file")
    if call.out.as_json:
        text = path.read_bytes().decode(errors="replace")
        return call.out.result({"path": str(path), "text": text}, "")
    with open(path, "rb") as file:
        while True:
            running = follow and job.status().state is State.RUNNING
            if os.fstat(file.fileno()).st_size < file.tell():
                file.seek(0)  # a resume truncated it to its size at the checkpoint
            shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()
            if not running or is_lost():
                return Exit.DONE
            try:
                sleep(0.2)
            except KeyboardInterrupt:
                return Exit.DONE  # there is nothing to undo


JOB = Group(
    "job",
    help="Show a job of 'run', take a checkpoint of it now, or stop it.\n\n"
    "DIRECTORY is the argument of 'run --dir'.",
    commands=[_status, _list, _checkpoint, _stop, _log],
)
