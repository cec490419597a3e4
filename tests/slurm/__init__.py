"""Tests of jobs in a SLURM cluster with one node; ``make test-slurm`` unpacks its programs."""
