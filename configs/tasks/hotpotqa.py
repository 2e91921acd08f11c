r"""HotpotQA, distractor setting: an answer from ten paragraphs, and the sentences that it follows from.

In two stages (paper, appendix): the second one reads only the paragraphs that the first one's model finds relevant.

  python train.py --config=configs/tasks/hotpotqa.py --workdir=runs/stage1 --config.data.path=DIRECTORY
  python eval.py --workdir=runs/stage1 --split=train --predictions=runs/stage1_train.json
  python eval.py --workdir=runs/stage1 --split=validation --predictions=runs/stage1_dev.json
  python train.py --config=configs/tasks/hotpotqa.py --workdir=runs/stage2 --config.data.path=DIRECTORY \
    --config.task.stage_one=runs/stage1_train.json,runs/stage1_dev.json
  python eval.py --workdir=runs/stage2 --split=validation --predictions=predictions.json

DIRECTORY has hotpot_train_v1.1.json and hotpot_dev_distractor_v1.json of https://hotpotqa.github.io.

Hardware: base, one GPU with 80 GB; large, four of them. Not run to the end with this code.
Expected: joint F1 on dev 64.4 with base (paper, table 7), on test 73.2 with large (table 9). Measured: nothing yet.

Variants:
  base   the default: Longformer-base, the paper's hyperparameters.
  large  Longformer-large, the same hyperparameters.
  smoke  two narrow layers from random weights, 256 tokens of each question, two epochs.
"""

from ml_collections import ConfigDict

from configs.tasks import paper
from longformer_jax.tasks.hotpotqa import HotpotQA

VARIANTS = paper.VARIANTS


def get_config(variant: str = "") -> ConfigDict:
    """The configuration, which is base, or that of a variant."""
    return paper.experiment(HotpotQA(), variant, epochs=5, warmup_steps=1000).to_config_dict()
