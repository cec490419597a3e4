"""Messages of CRIU's RPC, encoded and decoded by libcriu."""
