"""Trains a character language model, or pretrains a masked one; `python train.py --help` says how."""

from longformer_jax.scripts import longformer_train

if __name__ == "__main__":
    longformer_train()
