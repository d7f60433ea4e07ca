from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

if "benchmarks" not in sys.modules:  # not on the path: beside it lies kernels, which is no one's to import
    _folder = Path(__file__).parents[2] / "benchmarks"
    _spec = spec_from_file_location("benchmarks", _folder / "__init__.py", submodule_search_locations=[str(_folder)])
    assert _spec is not None
    sys.modules["benchmarks"] = module_from_spec(_spec)
