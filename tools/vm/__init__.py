"""Virtual machines (QEMU) whose kernels differ from this one; ``python -m tools.vm --help``."""
