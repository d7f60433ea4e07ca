"""Build detr_fast._C from csrc/; kernels/ is detr_fast.kernels, by a link. Metadata is in pyproject.toml."""

from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import find_namespace_packages, setup

ParallelCompile().install()

# The same roundings on every machine; no errno and no traps from floating point, and sums in vectors where a pragma
# asks for them.
GNU_FLAGS = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd"]
MSVC_FLAGS = ["/O2", "/fp:precise", "/permissive-", "/utf-8", "/DNOMINMAX"]

packages = find_namespace_packages(include=["detr_fast", "detr_fast.*"])
package_dir = {}
if not Path("detr_fast/kernels").is_dir():  # a checkout on Windows has a file in place of the link
    packages.append("detr_fast.kernels")
    package_dir["detr_fast.kernels"] = "kernels"


class BuildExtension(build_ext):
    """Compile with the flags of the compiler that was found."""

    def build_extensions(self) -> None:
        for extension in self.extensions:
            extension.extra_compile_args += MSVC_FLAGS if self.compiler.compiler_type == "msvc" else GNU_FLAGS
        super().build_extensions()


setup(
    packages=packages,
    package_dir=package_dir,
    package_data={"detr_fast": ["py.typed", "_C.pyi"], "detr_fast.configs": ["*.yaml"]},
    ext_modules=[
        Pybind11Extension(
            "detr_fast._C",
            sorted(str(path) for path in Path("csrc").rglob("*.cpp") if "fuzz" not in path.parts),
            depends=sorted(str(path) for path in Path("csrc").rglob("*.h")),
            include_dirs=["csrc"],
            cxx_std=17,
        )
    ],
    cmdclass={"build_ext": BuildExtension},
)
