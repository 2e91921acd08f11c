"""Longformer small on text8: 12 layers, 41M parameters, five phases up to sequences of 23,040 characters.

  python train.py --config=configs/char_lm/text8_small.py --workdir=runs/text8_small
  python eval.py --workdir=runs/text8_small --split=test --protocol=paper

Hardware: one GPU with 80 GB or more of them; the batch is split over all. The paper took 16 days on four RTX8000.
Expected: 1.04 bits per character on dev, 1.10 on test (paper, table 2). Not run to the end with this code.

Variants:
  smoke  an eighth of the size, 750 steps, for two cores and minutes, on the embedded text or a file of your own:
         --config=configs/char_lm/text8_small.py:smoke --config.data.path=FILE
"""

from ml_collections import ConfigDict

from configs.char_lm import paper

STEPS = (430_000, 50_000, 50_000, 35_000, 5_000)


VARIANTS = paper.VARIANTS


def get_config(variant: str = "") -> ConfigDict:
    """The configuration, or that of a variant."""
    config = paper.experiment("text8", paper.SMALL_WINDOWS, paper.SMALL_DILATIONS, STEPS, dropout_rate=0.2)
    return paper.variant(config, variant).to_config_dict()
