"""IMDB: whether a review of a film is positive or negative; 25,000 reviews to train on, 25,000 others to test.

  python train.py --config=configs/tasks/imdb.py --workdir=runs/imdb --config.data.path=aclImdb_v1.tar.gz
  python eval.py --workdir=runs/imdb --split=test --predictions=predictions.jsonl
  python -m longformer_jax.predict --workdir=runs/imdb reviews.txt

The data is the archive of https://ai.stanford.edu/~amaas/data/sentiment, or the folder that it unpacks to. Validation
is 2,632 of the training reviews, those of a tenth of the films.

Hardware: base, one GPU with 80 GB; large, four of them. Not run to the end with this code.
Expected: accuracy on dev 95.7 with base (paper, table 7). Measured: 88.1 with miniature (docs/from_scratch.md).

Variants:
  base       the default: Longformer-base, the paper's hyperparameters.
  large      Longformer-large, the same hyperparameters; the paper has no figure.
  miniature  the small model of docs/from_scratch.md, 1,024 tokens of each review, two epochs; on two CPU cores.
  smoke      two narrow layers from random weights, 256 tokens of each review, two epochs; minutes on two CPU cores.
"""

from ml_collections import ConfigDict

from configs.tasks import paper
from longformer_jax.tasks.imdb import Imdb

VARIANTS = (*paper.VARIANTS, "miniature")


def get_config(variant: str = "") -> ConfigDict:
    """The configuration, which is base, or that of a variant."""
    return paper.experiment(Imdb(), variant, miniature_epochs=2).to_config_dict()
