"""Checks that precede a call."""
