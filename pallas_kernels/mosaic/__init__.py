"""Banded attention in Mosaic GPU, JAX's living GPU backend of Pallas: for Hopper (TMA, warpgroup products), and for any
NVIDIA GPU from Ampere on (mma.sync, TMA or cp.async)."""

from pallas_kernels.mosaic.attention import DTYPES, HEAD_DIMS, SHARED_HEAD_DIMS, attention, filled_up_dims, unsupported
from pallas_kernels.mosaic.tiling import Gpu

__all__ = ["DTYPES", "HEAD_DIMS", "SHARED_HEAD_DIMS", "Gpu", "attention", "filled_up_dims", "unsupported"]
