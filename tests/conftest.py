"""Tests run on the CPU whatever the machine has, and so do the processes that they start."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
