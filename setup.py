"""Build detr_fast._C from csrc/; kernels/ is detr_fast.kernels, by a link. Metadata is in pyproject.toml."""

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import find_namespace_packages, setup
from setuptools.errors import CompileError, PlatformError

# isort: split
from distutils.ccompiler import new_compiler  # after setuptools, which has its own distutils
from distutils.sysconfig import customize_compiler

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


def has_compiler() -> bool:
    """Whether a C++ compiler runs. One that is named by CXX counts, so that the build fails where it does not."""
    if "CXX" in os.environ:
        return True
    compiler = new_compiler()
    customize_compiler(compiler)
    with TemporaryDirectory() as folder:
        source = Path(folder, "empty.cpp")
        source.touch()
        try:
            compiler.compile([str(source)], output_dir=folder)
        except (CompileError, PlatformError) as error:  # the latter without Visual Studio
            print(
                f"detr_fast is installed without its C++ extension, as no compiler runs ({error}). The ops run on "
                "slower backends. For the extension, install a C++17 compiler and then detr_fast again.",
                file=sys.stderr,
            )
            return False
    return True


class BuildExtension(build_ext):
    """Compile with the flags of the compiler that was found."""

    def build_extensions(self) -> None:
        for extension in self.extensions:
            extension.extra_compile_args += MSVC_FLAGS if self.compiler.compiler_type == "msvc" else GNU_FLAGS
        super().build_extensions()


extension = Pybind11Extension(
    "detr_fast._C",
    sorted(str(path) for path in Path("csrc").rglob("*.cpp") if "fuzz" not in path.parts),
    depends=sorted(str(path) for path in Path("csrc").rglob("*.h")),
    include_dirs=["csrc"],
    cxx_std=17,
)

setup(
    packages=packages,
    package_dir=package_dir,
    package_data={"detr_fast": ["py.typed", "_C.pyi"], "detr_fast.configs": ["*.yaml"]},
    ext_modules=[extension] if has_compiler() else [],
    cmdclass={"build_ext": BuildExtension},
)
