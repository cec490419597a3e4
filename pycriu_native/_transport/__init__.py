"""Ways to reach a criu process: worker, service, socket, pool."""
