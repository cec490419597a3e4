"""Kernel interfaces: /proc, descriptors, mounts, sockets, trusted paths."""
