"""``run`` and ``job``: commands that are checkpointed at intervals, and resumed."""

from __future__ import annotations

import os
import re
import shutil
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import click

from ..._support.unpatched import sleep
from ...errors import CriuError, ImagesError
from ...jobs import BUSY, CANNOT_RESTORE, INTERRUPTED, Job, JobStatus, State
from ...jobs.control import request_checkpoint, request_stop
from ...jobs.directory import JobDirectory
from ...jobs.job import MOST
from ...jobs.slurm import SlurmJob, run_in_slurm
from .. import option_parameters
from ..command import Call, Command, compress_option, encrypt_to_option, identity_option
from ..exit_codes import Exit
from ..text import columns, safe, size
from .archives import keys_of

UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")


class Duration(option_parameters.ParamType):
    """Seconds, or a number with s, m, h or d."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """In seconds."""
        if isinstance(value, float):
            return value
        match = _DURATION.fullmatch(str(value))
        if match is None:
            self.fail(f"{value!r}: a number with s, m, h or d is accepted, such as 10m", param, ctx)
        result = float(match[1]) * UNITS[match[2]]
        if result > MOST:
            self.fail(f"{value!r}: {MOST:g} seconds are accepted at most", param, ctx)
        return result


def _run(
    call: Call,
    command: tuple[str, ...],
    directory: str | None,
    slurm: bool,
    every: float,
    keep: int,
    also: tuple[str, ...],
    grace: float,
    notice: str | None,
    interrupted_code: int,
    or_start_over: bool,
    storage: str | None,
    lease: float,
    compress: str,
    encrypt_to: tuple[str, ...],
    identity: tuple[str, ...],
) -> int:
    slurm_job = SlurmJob.current() if slurm else None
    if directory is None:
        if slurm_job is None:
            raise click.UsageError("Missing option '--dir'; with --slurm it may be left out.")
        directory = slurm_job.default_directory()
    job = Job(
        directory,
        command,
        storage=storage,
        lease=lease,
        compress=compress,  # type: ignore[arg-type]
        encrypt_to=encrypt_to,
        decrypt_with=[key for path in identity for key in keys_of(path)],
        every=every,
        keep=keep,
        also=also,
        grace=grace,
        notice=notice,
        interrupted_code=interrupted_code,
        or_start_over=or_start_over,
    )
    result = job.run() if slurm_job is None else run_in_slurm(job, slurm_job)
    if call.out.as_json:
        call.out.event("ended", asdict(result), "")
    elif result.state is not State.ENDED and not call.out.quiet:
        sys.stderr.write(f"pycriu-native: {safe(result.message)}\n")
    return result.exit_code


def _known(directory: str) -> JobDirectory:
    """The directory of a job that exists."""
    result = JobDirectory(directory)
    if result.command() is None:
        raise ImagesError(f"{directory} holds no job: there is no job.json")
    return result


def _status(call: Call, directory: str, follow: bool) -> Exit:
    job = _known(directory)
    while follow and not call.out.as_json and job.status().state is State.RUNNING:
        click.clear()
        call.out.answer({}, _words(job, job.status()))
        sleep(1)
    status = job.status()
    body = asdict(status) | {
        "directory": str(job.path),
        "command": (job.command() or {})["command"],
        "kept": len(job.all_checkpoints()),
    }
    return call.out.answer(body, _words(job, status))


def _words(job: JobDirectory, status: JobStatus) -> str:
    rows = [("command", safe(" ".join((job.command() or {})["command"]))), ("last", status.message)]
    if status.started is not None:
        rows.append(("started", _when(status.started)))
    rows.append(("resumed", f"{status.resumed} times, from the beginning {status.restarted} times"))
    rows.append(("checkpoints", f"{status.checkpoints} taken, {status.failures} failed"))
    if status.last_success is not None and status.last_duration is not None:
        rows.append(
            (
                "newest",
                f"{_when(status.last_success)}: {size(status.last_bytes or 0)} in "
                f"{status.last_duration:.2f} s, frozen {status.last_frozen or 0:.3f} s",
            )
        )
    if (storage := status.storage) is not None:
        done = f"{storage.uploads} uploaded, {storage.failures} failed: {storage.message}"
        rows += [("storage", safe(storage.url)), ("uploads", safe(done))]
    return "\n".join([f"{job.path}: {status.state}", *columns(rows, indent=2)])


def _when(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(sep=" ", timespec="seconds")


def _list(call: Call, directory: str) -> Exit:
    checkpoints = _known(directory).all_checkpoints()
    rows = [("number", "time", "size", "took", "frozen")]
    rows += [
        (
            str(each.number),
            _when(each.time),
            size(each.bytes),
            f"{each.duration:.2f} s",
            f"{each.frozen:.3f} s",
        )
        for each in checkpoints
    ]
    body = [{k: v for k, v in asdict(each).items() if k != "options"} for each in checkpoints]
    return call.out.answer(
        {"checkpoints": body}, "\n".join(columns(rows)) if checkpoints else "no checkpoints"
    )


def _checkpoint(call: Call, directory: str, timeout: float) -> Exit:
    made = request_checkpoint(_known(directory), timeout)
    body = {k: v for k, v in asdict(made).items() if k != "options"}
    return call.out.result(body, f"checkpoint {made.number}: {size(made.bytes)}, {made.path}")


def _stop(call: Call, directory: str, timeout: float) -> Exit:
    status = request_stop(_known(directory), timeout)
    return call.out.result(asdict(status), f"{status.state}: {status.message}")


def _log(call: Call, directory: str, stderr: bool, events: bool, follow: bool) -> Exit:
    if stderr and events:
        raise click.UsageError("--stderr and --events: one is accepted.")
    job = _known(directory)
    path = job.path / ("events.jsonl" if events else "stderr" if stderr else "stdout")
    if not path.exists():
        raise CriuError(f"{path} does not exist: the job was not started yet")
    if call.out.as_json:
        text = path.read_bytes().decode(errors="replace")
        return call.out.result({"path": str(path), "text": text}, "")
    with open(path, "rb") as file:
        while True:
            running = job.status().state is State.RUNNING
            if os.fstat(file.fileno()).st_size < file.tell():
                file.seek(0)  # it was put back to a checkpoint
            shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()
            if not (follow and running):
                return Exit.DONE
            sleep(0.2)


def _directory() -> click.Argument:
    return click.Argument(["directory"], type=click.Path(file_okay=False))


def _timeout() -> click.Option:
    return click.Option(
        ["--timeout"], type=Duration(), default="10m", show_default=True, metavar="DURATION",
        help="How long to wait for it.",
    )  # fmt: skip


JOB = click.Group(
    "job",
    help="Look at a job of 'run', take a checkpoint of it now, or stop it.\n\n"
    "DIR is the directory that was given to 'run --dir'.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    commands=[
        Command(
            "status",
            title="job status",
            function=_status,
            help="What the job is doing, and how its checkpoints went.",
            examples=[
                "pycriu-native job status /ckpt/job1",
                "pycriu-native job status /ckpt/job1 --json | jq .result.state",
            ],
            exits=(Exit.IMAGES,),
            params=[
                _directory(),
                click.Option(["--follow"], is_flag=True, help="Show it again until it ends."),
            ],
        ),
        Command(
            "list",
            title="job list",
            function=_list,
            help="The checkpoints that are kept, the newest first.",
            examples=["pycriu-native job list /ckpt/job1"],
            exits=(Exit.IMAGES,),
            params=[_directory()],
        ),
        Command(
            "checkpoint",
            title="job checkpoint",
            function=_checkpoint,
            help="Have a running job take a checkpoint now, and wait until it is complete.",
            examples=["pycriu-native job checkpoint /ckpt/job1"],
            exits=(Exit.FAILED, Exit.NO_PROCESS, Exit.IMAGES, Exit.DEADLINE),
            params=[_directory(), _timeout()],
        ),
        Command(
            "stop",
            title="job stop",
            function=_stop,
            help="Have a running job take a last checkpoint and end; 'run' resumes it.",
            examples=["pycriu-native job stop /ckpt/job1"],
            exits=(Exit.FAILED, Exit.NO_PROCESS, Exit.IMAGES, Exit.DEADLINE),
            params=[_directory(), _timeout()],
        ),
        Command(
            "log",
            title="job log",
            function=_log,
            help="Print what the command has written to its standard output.",
            examples=[
                "pycriu-native job log /ckpt/job1 --follow",
                "pycriu-native job log /ckpt/job1 --events | jq .message",
            ],
            exits=(Exit.FAILED, Exit.IMAGES),
            params=[
                _directory(),
                click.Option(["--stderr"], is_flag=True, help="Its standard error instead."),
                click.Option(["--events"], is_flag=True, help="The job's events, as JSON lines."),
                click.Option(["--follow", "-f"], is_flag=True, help="Go on until it ends."),
            ],
        ),
    ],
)

COMMANDS = {
    "job": JOB,
    "run": Command(
        "run",
        function=_run,
        help="Run a command with checkpoints at intervals, or resume it from the newest one.\n\n"
        "The same command line starts and resumes it: in a shell, a systemd unit, a batch script "
        "or a container. Standard output and error go to files in the directory ('job log' prints "
        "them). SIGTERM, SIGINT, SIGHUP and SIGUSR1 take a last checkpoint; so does a notice. "
        "Without root it runs in a user namespace.\n\n"
        "The exit code is that of the command (128 and the number of the signal that ended it), "
        f"or {INTERRUPTED} if it was interrupted and can be resumed, {CANNOT_RESTORE} if there are "
        f"checkpoints and none can be restored (nothing was started), {BUSY} if another supervisor "
        "runs it. A command that was ended by one of these signals, or SIGKILL, was interrupted; "
        "so was one that ends with another code than 0 after such a signal to 'run'. "
        "The job of a command that has ended is not run again.",
        examples=[
            "pycriu-native run --every 10m --keep 3 --dir /ckpt/job1 -- python train.py",
            "pycriu-native run --dir job2 --also '/data/log*' -- ./simulate --steps 1000000",
            "pycriu-native run --dir job3 --notice http://10.0.0.1/preempted -- make",
            "pycriu-native run --slurm --grace 100s -- ./simulate",
            "pycriu-native run --dir /var/lib/job4 --storage s3://bucket/job4 -- python train.py",
        ],
        exits=(Exit.FAILED, Exit.IMAGES),
        params=[
            click.Argument(["command"], nargs=-1, required=True, type=click.UNPROCESSED),
            click.Option(
                ["--dir", "directory"],
                type=click.Path(file_okay=False),
                help="Where the job is kept; made if it is missing. Needed without --slurm, and by "
                "default with it: pycriu-native-$SLURM_JOB_ID where sbatch was called.",
            ),
            click.Option(
                ["--slurm"],
                is_flag=True,
                help="It runs in a batch script of SLURM, and is queued again ('scontrol requeue') "
                "when SIGUSR1 (sbatch --signal=B:USR1@120) or a notice has interrupted it.",
            ),
            click.Option(
                ["--every"],
                type=Duration(),
                default="10m",
                show_default=True,
                metavar="DURATION",
                help="Time between two checkpoints; the first comes after a tenth of it.",
            ),
            click.Option(
                ["--keep"],
                type=click.IntRange(min=1),
                default=3,
                show_default=True,
                help="How many checkpoints are kept.",
            ),
            click.Option(
                ["--also"],
                multiple=True,
                metavar="PATTERN",
                help="Files that the command opens, writes and closes again; those that it holds "
                "open are saved in any case. Absolute.",
            ),
            click.Option(
                ["--grace"],
                type=Duration(),
                default="30s",
                show_default=True,
                metavar="DURATION",
                help="How long a last checkpoint may take.",
            ),
            click.Option(
                ["--notice"],
                metavar="COMMAND|URL",
                help="Tells of an interruption to come, by exit status 0 or HTTP status 200; tried "
                "every 5 seconds.",
            ),
            click.Option(
                ["--interrupted-code"],
                type=click.IntRange(1, 255),
                default=INTERRUPTED,
                show_default=True,
                help="Exit code of an interrupted job.",
            ),
            click.Option(
                ["--or-start-over"],
                is_flag=True,
                help="Start from the beginning if no checkpoint can be restored.",
            ),
            click.Option(
                ["--storage"],
                metavar="URL",
                help="Where checkpoints are uploaded: a URL of fsspec, such as s3://bucket/job1, "
                "or a path on a shared file system. Another host resumes the job from there.",
            ),
            click.Option(
                ["--lease"],
                type=Duration(),
                default="60s",
                show_default=True,
                metavar="DURATION",
                help="How long a host of which the storage sees nothing keeps the job.",
            ),
            compress_option("How uploads are compressed."),
            encrypt_to_option("the uploads"),
            identity_option(", for uploads that are encrypted"),
        ],
    ),
}
