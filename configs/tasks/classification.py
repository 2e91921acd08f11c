r"""Your own documents with a label each, in JSON lines, CSV or TSV.

  python train.py --config=configs/tasks/classification.py --workdir=runs/mine --config.data.path=DIRECTORY \
      --config.task.labels=neg,pos
  python eval.py --workdir=runs/mine
  python eval.py --workdir=runs/mine --data=FILE.jsonl --predictions=predictions.jsonl

DIRECTORY holds train.jsonl and, if you have them, validation.jsonl and test.jsonl (or .csv, .tsv, each also with .gz);
--config.data.path may also be a single file to train on. A record has the fields text and label;
--config.task.text_field and --config.task.label_field name others. Without a file for validation a tenth of the
training records is set aside: --config.task.validation_fraction. --config.task.metric=f1 selects the best checkpoint by
F1, which is the mean over all labels, or that of --config.task.positive_label. '--config.phases[0].epochs' and
'--config.phases[0].learning_rate' may need other values for your data.

Hardware: base, one GPU with 80 GB; with '--config.phases[0].sequences_per_device=2' a smaller one.

Variants:
  base       the default: Longformer-base, the paper's hyperparameters for IMDB and Hyperpartisan.
  large      Longformer-large.
  miniature  the small model of docs/from_scratch.md, 1,024 tokens of each document, three epochs; on two CPU cores.
  smoke      two narrow layers from random weights, 256 tokens of each document, two epochs; minutes on two CPU cores.
"""

from ml_collections import ConfigDict

from configs.tasks import paper
from longformer_jax.tasks.classification import TextClassification

VARIANTS = (*paper.VARIANTS, "miniature")


def get_config(variant: str = "") -> ConfigDict:
    """The configuration, which is base, or that of a variant."""
    return paper.experiment(TextClassification(labels=("0", "1")), variant, miniature_epochs=3).to_config_dict()
