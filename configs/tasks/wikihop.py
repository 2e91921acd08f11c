"""WikiHop: which of some candidates answers a question that takes facts of several documents.

  python train.py --config=configs/tasks/wikihop.py --workdir=runs/wikihop --config.data.path=qangaroo_v1.1/wikihop
  python eval.py --workdir=runs/wikihop --split=validation --predictions=predictions.json

The data is qangaroo_v1.1.zip of http://qangaroo.cs.ucl.ac.uk.

Hardware: base, one GPU with 80 GB; large, four of them. Not run to the end with this code.
Expected: accuracy on dev 75.0 with base (paper, table 7), on test 81.9 with large (table 8). Measured: nothing yet.

Variants:
  base                   the default: Longformer-base, the paper's hyperparameters, 15 epochs.
  large                  Longformer-large, 5 epochs.
  smoke                  two narrow layers from random weights, 256 tokens at once, two epochs.
The paper's ablation (table 10), all with base and 5 epochs, with the accuracy on dev that it has beside 73.8:
  ablation               nothing changed: 73.8.
  length_2048            pieces of 2,048 tokens, 16 at most in place of 8: -0.7.
  length_512             pieces of 512 tokens, 64 at most, with full attention: -2.1.
  no_global_projections  global tokens with the projections of all others: -1.6.
  no_global_attention    neither those nor global attention: -8.3.
  no_pretraining         RoBERTa as it was converted: -0.6.
  positions_only         only the position embeddings have been pretrained: -0.3; begins with
                         runs/positions_only/model, which configs/pretrain/roberta_base.py:positions_only leaves.
"""

import dataclasses

from ml_collections import ConfigDict

from configs.tasks import paper
from longformer_jax.errors import InputError
from longformer_jax.tasks.wikihop import WikiHop
from longformer_jax.training import TaskExperiment

ABLATIONS = (
    *("ablation", "length_2048", "length_512", "no_global_projections", "no_global_attention"),
    *("no_pretraining", "positions_only"),
)
VARIANTS = (*paper.VARIANTS, *ABLATIONS)


def get_config(variant: str = "") -> ConfigDict:
    """The configuration, which is base, or that of a variant."""
    if variant not in ("", *VARIANTS):
        raise InputError(f"config variant is {variant!r}; expected none, or {' or '.join(VARIANTS)}")
    if variant in ABLATIONS:
        return ablation(variant).to_config_dict()
    epochs = 5 if variant == "large" else 15
    return paper.experiment(WikiHop(), variant, epochs=epochs, warmup_steps=200).to_config_dict()


def ablation(variant: str) -> TaskExperiment:
    """A row of the paper's table 10."""
    task = WikiHop()
    config = paper.experiment(task, "", epochs=5, warmup_steps=200)
    model = config.model
    (phase,) = config.phases
    if variant.startswith("length_"):  # of as many tokens, of which more are the query and the candidates
        length = int(variant.removeprefix("length_"))
        task = dataclasses.replace(task, max_pieces=task.max_pieces * phase.sequence_length // length)
    if variant == "length_2048":
        phase = dataclasses.replace(phase, sequence_length=2048)
        return dataclasses.replace(config, task=task, phases=(phase,))
    if variant == "length_512":
        model = dataclasses.replace(model, attention_mode="full", global_projections=False)
        task = dataclasses.replace(task, global_attention=False)
        phase = dataclasses.replace(phase, sequence_length=512, sequences_per_device=32)
        return dataclasses.replace(config, model=model, task=task, phases=(phase,))
    if variant == "no_global_projections":
        return dataclasses.replace(config, model=dataclasses.replace(model, global_projections=False))
    if variant == "no_global_attention":
        model = dataclasses.replace(model, global_projections=False)
        return dataclasses.replace(config, model=model, task=WikiHop(global_attention=False))
    inits = {"no_pretraining": "roberta-base", "positions_only": "runs/positions_only/model"}
    return dataclasses.replace(config, init=inits.get(variant, config.init))
