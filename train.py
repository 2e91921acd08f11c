"""Trains a character language model, or pretrains a masked one; `python train.py --help` says how."""

from longformer_jax.scripts.train import run

if __name__ == "__main__":
    run()
