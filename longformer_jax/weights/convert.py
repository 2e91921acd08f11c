"""The command that converts RoBERTa to Longformer: python -m longformer_jax.weights.convert; see command.py."""

from longformer_jax.loading import run_command

if __name__ == "__main__":
    run_command("longformer_jax.weights.command")
