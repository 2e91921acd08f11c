"""A small RoBERTa from scratch on IMDB's 50,000 unlabelled reviews, on two CPU cores.

  tar xzf aclImdb_v1.tar.gz -C runs
  python train.py --config=configs/pretrain/reviews.py --workdir=runs/short
  python eval.py --workdir=runs/short --split=validation

The data is the archive of https://ai.stanford.edu/~amaas/data/sentiment; --config.data.path is its folder train/unsup.
The tokenizer is learnt from it, too. At the end runs/short/model is a model that transformers can load.
"""

from ml_collections import ConfigDict

from longformer_jax.errors import InputError
from longformer_jax.models import LongformerConfig
from longformer_jax.training import MaskedLMExperiment, OptimizerConfig, Phase, TokenDataConfig

SEQUENCE_LENGTH = 128

MODEL = LongformerConfig(
    vocab_size=8000,
    hidden_size=192,
    num_hidden_layers=4,
    num_attention_heads=3,
    intermediate_size=768,
    max_position_embeddings=SEQUENCE_LENGTH + 2,
    attention_mode="full",
    global_projections=False,
    hidden_dropout_prob=0.0,  # hardly a review is seen twice
    attention_probs_dropout_prob=0.0,
    initializer_range=0.05,  # narrower than RoBERTa, so larger
)


def get_config(variant: str = "") -> ConfigDict:
    """The configuration; it has no variants."""
    if variant:
        raise InputError(f"config variant is {variant!r}; expected none")
    return MaskedLMExperiment(
        model=MODEL,
        phases=(Phase(sequence_length=SEQUENCE_LENGTH, learning_rate=3e-3, batch_size=64, steps=3000),),
        data=TokenDataConfig(path="runs/aclImdb/train/unsup"),
        # The first ids that a tokenizer of one's own has: <s>, <pad>, </s>, <unk>, <mask>.
        mask_token_id=4,
        special_token_ids=(0, 1, 2, 3, 4),
        # Muon, as with AdamW at 1.5e-3 all words are long predicted by their frequency alone; see docs/results.md.
        optimizer=OptimizerConfig(name="muon", b2=0.98, eps=1e-6, clip_norm=1.0, warmup_steps=200, decay="linear"),
        log_interval=50,
        eval_interval=500,
        checkpoint_interval=250,
        eval_sequences=512,
    ).to_config_dict()
