"""Build detr_fast._C from csrc/; kernels/ is detr_fast.kernels, by a link. Metadata is in pyproject.toml."""

from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import find_namespace_packages, setup

ParallelCompile().install()

setup(
    packages=find_namespace_packages(include=["detr_fast", "detr_fast.*"]),
    package_data={"detr_fast": ["py.typed", "_C.pyi"], "detr_fast.configs": ["*.yaml"]},
    ext_modules=[
        Pybind11Extension(
            "detr_fast._C",
            sorted(str(path) for path in Path("csrc").rglob("*.cpp") if "fuzz" not in path.parts),
            depends=sorted(str(path) for path in Path("csrc").rglob("*.h")),
            include_dirs=["csrc"],
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
