"""The meaning of CRIU's messages."""
