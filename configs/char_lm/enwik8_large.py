"""Longformer large on enwik8: 30 layers, 102M parameters, five phases up to sequences of 23,040 characters.

  python train.py --config=configs/char_lm/enwik8_large.py --workdir=runs/enwik8_large
  python eval.py --workdir=runs/enwik8_large --split=test --protocol=paper

Hardware: eight GPUs with 80 GB; fewer work too. The paper took 13 days on eight RTX8000.
Expected: 0.99 bits per character on test (paper, table 3). Not run to the end with this code.

The windows of the layers are inferred: the sizes of the small model, 32 to 512, each for six of the 30 layers.

Variants:
  smoke  an eighth of the size, 300 steps, for two cores and minutes, on the embedded text or a file of your own:
         --config=configs/char_lm/enwik8_large.py:smoke --config.data.path=FILE
"""

from ml_collections import ConfigDict

from configs.char_lm import paper

STEPS = (350_000, 25_000, 10_000, 5_000, 5_000)


VARIANTS = paper.VARIANTS


def get_config(variant: str = "") -> ConfigDict:
    """The configuration, or that of a variant."""
    config = paper.experiment("enwik8", paper.LARGE_WINDOWS, paper.LARGE_DILATIONS, STEPS, dropout_rate=0.4)
    return paper.variant(config, variant).to_config_dict()
