"""One call, from its checks to its result."""
