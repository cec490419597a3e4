"""Jobs in a cluster of SLURM with one node, which ``make test-slurm`` has the programs of."""
