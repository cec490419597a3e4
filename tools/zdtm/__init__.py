"""CRIU's own test suite, with this library in place of the program ``criu``."""
