"""Guests in QEMU, for what the kernel of this machine cannot do; ``python -m tools.vm --help``."""
