"""Longformer small on enwik8: 12 layers, 41M parameters, five phases up to sequences of 23,040 characters.

  python train.py --config=configs/char_lm/enwik8_small.py --workdir=runs/enwik8_small
  python eval.py --workdir=runs/enwik8_small --split=test --protocol=paper

Hardware: one GPU with 80 GB or more of them; the batch is split over all. The paper took 16 days on four RTX8000.
Expected: 1.02 bits per character on dev, 1.00 on test (paper, table 2). Not run to the end with this code.

Variants:
  smoke       an eighth of the size, 750 steps, for two cores and minutes, on the embedded text or a file of your own:
              --config=configs/char_lm/enwik8_small.py:smoke --config.data.path=FILE
  hour, day   as many steps as an H100 takes in that time if it uses 19% of its 989 TFLOP/s, as steps of the first phase
              did on an H200 (docs/results.md); neither has been run. The recipe is not the paper's: Muon, ReLU², a rate
              that falls to zero in each phase, weight decay 0.1. Expected: 1.26 and 1.25 bits per character, roughly:
              extrapolated from fifteen trainings of 0.3M to 4.9M parameters on another text, the largest with 1/5,300
              of an hour's FLOPs (docs/recipe.md)
  hour_smoke  that recipe at the size of smoke
"""

import dataclasses

from ml_collections import ConfigDict

from configs.char_lm import paper, quickstart
from longformer_jax.errors import InputError
from longformer_jax.training import CharLMExperiment

STEPS = (430_000, 50_000, 50_000, 35_000, 5_000)
# 60, 12, 12, 10 and 6% of an hour's 6.76e17 FLOPs.
STEPS_AN_HOUR = (23_100, 2_140, 1_860, 614, 193)
HOURS = {"hour": 1, "day": 24}
VARIANTS = (*paper.VARIANTS, *HOURS, "hour_smoke")


def get_config(variant: str = "") -> ConfigDict:
    """The configuration, or that of a variant."""
    if variant not in ("", *VARIANTS):
        raise InputError(f"config variant is {variant!r}; expected none, or one of {', '.join(VARIANTS)}")
    budget, _, smoke = variant.partition("_")
    if budget not in HOURS:
        return _paper(STEPS, variant).to_config_dict()
    steps = tuple(HOURS[budget] * steps for steps in STEPS_AN_HOUR)
    return _with_our_recipe(_paper(steps, smoke, dropout_rate=0.1 if budget == "hour" else 0.2)).to_config_dict()


def _paper(steps: tuple[int, ...], variant: str, dropout_rate: float = 0.2) -> CharLMExperiment:
    config = paper.experiment("enwik8", paper.SMALL_WINDOWS, paper.SMALL_DILATIONS, steps, dropout_rate)
    return paper.variant(config, variant)


def _with_our_recipe(config: CharLMExperiment) -> CharLMExperiment:
    """As the quickstart, with less weight decay; the rate is halved in each phase, as in the paper."""
    optimizer = dataclasses.replace(quickstart.OPTIMIZER, weight_decay=0.1)
    phases = tuple(dataclasses.replace(phase, learning_rate=2e-3 / 2**i) for i, phase in enumerate(config.phases))
    model = dataclasses.replace(config.model, activation=quickstart.MODEL.activation)
    return dataclasses.replace(config, model=model, phases=phases, optimizer=optimizer)
