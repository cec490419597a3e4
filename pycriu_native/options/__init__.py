"""Options of CRIU: the value, its table, and its other forms."""
