"""Triton kernels, one file per hot path, installed as ``detr_fast.kernels``.

The folder stands in the repository's root. From there Python also finds it under the name ``kernels``, which is
another project's; it then makes way for that one, or is an empty module that has no files, which transformers takes
for nothing installed.
"""

if __name__ == "kernels":
    import sys
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec
    from pathlib import Path

    _root = Path(__file__).resolve().parents[1]
    _spec = PathFinder.find_spec("kernels", [entry for entry in sys.path if Path(entry).resolve() != _root])
    if _spec is not None and _spec.loader is not None:
        sys.modules["kernels"] = module_from_spec(_spec)
        _spec.loader.exec_module(sys.modules["kernels"])
    __file__, __path__ = None, []  # type: ignore[assignment]  # so that nothing is imported from here by that name
