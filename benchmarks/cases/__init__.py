"""The cases, one module for each op or step; see :mod:`benchmarks.registry`."""
