"""General helpers without knowledge of CRIU."""
