"""TriviaQA: questions about Wikipedia, or the web, that a span of a long document answers.

  python train.py --config=configs/tasks/triviaqa.py --workdir=runs/triviaqa --config.data.path=triviaqa-rc
  python eval.py --workdir=runs/triviaqa --split=validation
  python eval.py --workdir=runs/triviaqa --split=test --predictions=predictions.json
  python -m longformer_jax.predict --workdir=runs/triviaqa --question="Who dug the harbour?" harbour.txt

The data is triviaqa-rc.tar.gz of https://nlp.cs.washington.edu/triviaqa, or the folder that it unpacks to. For the
documents of the web, --config.task.domain=web.

Hardware: base, one GPU with 80 GB; large, four of them. Not run to the end with this code.
Expected, on Wikipedia: F1 on dev 75.2 with base (paper, table 7), on test 77.3 with large (table 8). Measured: nothing
yet.

Variants:
  base   the default: Longformer-base, the paper's hyperparameters.
  large  Longformer-large, the same hyperparameters.
  smoke  two narrow layers from random weights, 256 tokens of each document, two epochs.
"""

from ml_collections import ConfigDict

from configs.tasks import paper
from longformer_jax.tasks.triviaqa import TriviaQA

VARIANTS = paper.VARIANTS


def get_config(variant: str = "") -> ConfigDict:
    """The configuration, which is base, or that of a variant."""
    return paper.experiment(TriviaQA(), variant, epochs=5, warmup_steps=1000).to_config_dict()
