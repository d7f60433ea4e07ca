"""Side-by-side timings of the hot paths' backends; run with ``pytest benchmarks``."""
