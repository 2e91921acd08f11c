"""Banded attention for JAX's Triton backend of Pallas, which runs on NVIDIA GPUs from Ampere on.

JAX has deprecated that backend: everything that needs it is in this folder, to be deleted with it.
"""

from pallas_kernels.triton.attention import attention, unsupported

__all__ = ["attention", "unsupported"]
