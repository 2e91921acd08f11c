"""Models as StableHLO on the command line: python -m longformer_jax.export; see scripts/export.py."""

from longformer_jax.loading import run_command

if __name__ == "__main__":
    run_command("longformer_jax.scripts.export")
