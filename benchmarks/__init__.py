"""Benchmarks: `make bench`, and `make bench-page` for docs/performance.md."""
