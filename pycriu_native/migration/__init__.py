"""Live migration of processes: one call at the source, one at the destination."""

from __future__ import annotations

from .migrate import MigrationMode, MigrationResult, migrate_in, migrate_out

__all__ = ["MigrationMode", "MigrationResult", "migrate_in", "migrate_out"]
