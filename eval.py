"""Evaluates what train.py left in a workdir, or a model; `python eval.py --help` says how."""

from longformer_jax.scripts import longformer_eval

if __name__ == "__main__":
    longformer_eval()
