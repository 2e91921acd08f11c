"""Answers of a fine-tuned model: python -m longformer_jax.predict; see scripts/predict.py."""

from longformer_jax.loading import run_command

if __name__ == "__main__":
    run_command("longformer_jax.scripts.predict")
