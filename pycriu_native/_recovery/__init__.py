"""Recovery of what a killed CRIU leaves behind."""
