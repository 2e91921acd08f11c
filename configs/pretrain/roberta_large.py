"""RoBERTa-large becomes Longformer-large: masked-LM pretraining at length 4096, 435M parameters (paper, section 5).

  python train.py --config=configs/pretrain/roberta_large.py --workdir=runs/roberta_large --config.data.path=DIRECTORY
  python eval.py --workdir=runs/roberta_large --split=validation

`load_pretrained("runs/roberta_large/model")` reads what comes out. `roberta-large` is fetched from the Hugging Face
hub; --config.init=DIRECTORY takes it from a directory.

Hardware: eight GPUs with 80 GB; fewer work too. Not run to the end with this code.
Expected, in bits per masked token on the paper's held-out text (its table 5): 8.738 before training with random new
positions, 1.597 with copied ones, 1.414 after 2K steps, 1.358 after 65K; RoBERTa itself has 1.496 at length 512.

Variants:
  copied_positions  the same: RoBERTa's position embeddings are repeated over the new length.
  random_positions  the new position embeddings are random: the paper's ablation.
  positions_only    only the position embeddings are trained (paper: 1.504 after 65K steps).
"""

from ml_collections import ConfigDict

from configs.pretrain import paper
from longformer_jax.models import LongformerConfig

VARIANTS = paper.VARIANTS


def get_config(variant: str = "") -> ConfigDict:
    """The configuration, which is copied_positions, or that of a variant."""
    model = LongformerConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        dtype="bfloat16",
        remat=True,
    )
    return paper.variant(paper.experiment("roberta-large", model, sequences_per_device=8), variant).to_config_dict()
