"""Tests of jobs as units of a systemd that is the first process of a pid namespace."""
