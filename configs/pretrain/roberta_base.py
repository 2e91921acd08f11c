"""RoBERTa-base becomes Longformer-base: masked-LM pretraining at length 4096, 149M parameters (paper, section 5).

  python train.py --config=configs/pretrain/roberta_base.py --workdir=runs/roberta_base --config.data.path=DIRECTORY
  python eval.py --workdir=runs/roberta_base --split=validation

`load_pretrained("runs/roberta_base/model")` reads what comes out. `roberta-base` is fetched from the Hugging Face hub;
--config.init=DIRECTORY takes it from a directory.

Hardware: one GPU with 80 GB or more of them; the batch is split over all. Not run to the end with this code.
Expected, in bits per masked token on the paper's held-out text (its table 5): 10.299 before training with random new
positions, 1.957 with copied ones, 1.753 after 2K steps, 1.705 after 65K; RoBERTa itself has 1.846 at length 512.

Variants:
  copied_positions  the same: RoBERTa's position embeddings are repeated over the new length.
  random_positions  the new position embeddings are random: the paper's ablation.
  positions_only    only the position embeddings are trained (paper: 1.850 after 65K steps).
"""

from ml_collections import ConfigDict

from configs.pretrain import paper
from longformer_jax.models import LongformerConfig

VARIANTS = paper.VARIANTS


def get_config(variant: str = "") -> ConfigDict:
    """The configuration, which is copied_positions, or that of a variant."""
    model = LongformerConfig(dtype="bfloat16", remat=True)  # the defaults are Longformer-base
    return paper.variant(paper.experiment("roberta-base", model, sequences_per_device=16), variant).to_config_dict()
