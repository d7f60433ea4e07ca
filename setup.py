"""Builds detr_fast._C from csrc/ and installs kernels/ as detr_fast.kernels; metadata is in pyproject.toml."""

from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup

setup(
    # Listed by name: discovery would install a top-level package called "kernels".
    packages=[
        "detr_fast",
        "detr_fast.checkpoints",
        "detr_fast.configs",
        "detr_fast.data",
        "detr_fast.integrations",
        "detr_fast.integrations.huggingface",
        "detr_fast.kernels",
        "detr_fast.models",
        "detr_fast.ops",
        "detr_fast.training",
    ],
    package_dir={"detr_fast": "detr_fast", "detr_fast.kernels": "kernels"},
    package_data={"detr_fast": ["py.typed"], "detr_fast.configs": ["*.yaml"]},
    ext_modules=[
        Pybind11Extension(
            "detr_fast._C",
            sorted(str(path) for path in Path("csrc").glob("*.cpp")),
            depends=sorted(str(path) for path in Path("csrc").glob("*.h")),
            cxx_std=17,
            # The same roundings on every machine; no errno and no traps from floating point, and sums in vectors
            # where a pragma asks for them.
            extra_compile_args=[
                *("-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd"),
            ],
        )
    ],
    cmdclass={"build_ext": build_ext},
)
