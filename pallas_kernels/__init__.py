"""GPU kernels for banded attention, written in Pallas. Imports jax, and nothing of longformer_jax.

spec.py: what a kernel is asked for. walk.py: which blocks a program visits. spans.py: what documents and masks save of
them. dropout.py: the hash that all implementations share. triton/, with block_sizes.py: JAX's deprecated backend, for
NVIDIA GPUs since Ampere. mosaic/: its living one, for Hopper and for the same GPUs.
"""
