"""Guests in QEMU with other kernels than this machine; ``python -m tools.vm --help``."""
