"""Jobs that survive: a command that is checkpointed at intervals, and resumed where it stopped.

``Job(directory, command).run()`` starts the command, or resumes it from its newest good checkpoint
in the directory. It returns when the command has ended, or was interrupted.
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
