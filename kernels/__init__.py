"""Triton kernels, one file per hot path, installed as ``detr_fast.kernels``.

The folder stands in the repository's root. From there Python would also find it as a
top-level package, which is another project's name and would register every op twice.
"""

if __name__ == "kernels":
    raise ImportError("this folder is detr_fast.kernels; the package 'kernels' is not installed here")
