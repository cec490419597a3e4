"""Jobs: commands with checkpoints at intervals, which are resumed after an interruption.

``Job(directory, command).run()`` starts the command, or resumes it from the newest valid checkpoint
in the directory. It returns when the command has ended or was interrupted.
"""

from .directory import BUSY, CANNOT_RESTORE, INTERRUPTED, Checkpoint, JobStatus, State
from .job import Job, JobResult

__all__ = [
    "BUSY",
    "CANNOT_RESTORE",
    "INTERRUPTED",
    "Checkpoint",
    "Job",
    "JobResult",
    "JobStatus",
    "State",
]
