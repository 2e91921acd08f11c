"""Banded attention for NVIDIA's Hopper GPUs, in JAX's Mosaic GPU backend of Pallas: TMA, warpgroup products."""

from pallas_kernels.mosaic.attention import COMPUTE_CAPABILITY, DTYPES, HEAD_DIMS, attention, unsupported

__all__ = ["COMPUTE_CAPABILITY", "DTYPES", "HEAD_DIMS", "attention", "unsupported"]
