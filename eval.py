"""Evaluates what train.py left in a workdir, or a model; `python eval.py --help` says how."""

from longformer_jax.scripts.evaluate import run

if __name__ == "__main__":
    run()
