"""GPU kernels for banded attention, written in Pallas. Imports jax, and nothing of longformer_jax.

walk.py: which blocks a program visits. spans.py: what documents and masks save of them. block_sizes.py: how large they
are. dropout.py: the hash that all implementations share. triton/: the portable backend, for NVIDIA GPUs since Ampere.
"""
