"""Files that a process tree writes: saved with a dump, and put back with a restore."""
