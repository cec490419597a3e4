"""Completeness of an image set."""
