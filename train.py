"""Trains a character LM, pretrains a masked LM, or fine-tunes on a task; `python train.py --help` says how."""

from longformer_jax.scripts import longformer_train

if __name__ == "__main__":
    longformer_train()
