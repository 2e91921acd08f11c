"""OntoNotes coreference: which spans of a document refer to the same thing.

  python train.py --config=configs/tasks/coreference.py --workdir=runs/coreference --config.data.path=DIRECTORY
  python eval.py --workdir=runs/coreference --split=test --predictions=predictions.conll
  python -m longformer_jax.predict --workdir=runs/coreference --whole story.txt

DIRECTORY has OntoNotes in CoNLL-2012's format (https://conll.cemantix.org/2012/data.html; the text is licensed by the
LDC): train.english.v4_gold_conll and dev and test like it, or its folders train, development and test.

Read from the paper: sequences of 4096 tokens without global attention, the rate of 1e-5 for the encoder and 1e-4 for
what is on it. Not in the paper, so Joshi et al. 2019's: a document a step, 20 epochs.

Hardware: base and large, one GPU with 80 GB; of several, each has a part of the document (mesh.sequence). Not run to
the end with this code.
Expected: mean F1 on dev 78.6 with base (paper, table 7). Measured: nothing yet.

Variants:
  base   the default: Longformer-base.
  large  Longformer-large.
  smoke  two narrow layers from random weights, 256 tokens at once, two epochs.
"""

import dataclasses

from ml_collections import ConfigDict

from configs.tasks import paper
from longformer_jax.tasks.coreference import Coreference
from longformer_jax.training import MeshConfig

VARIANTS = paper.VARIANTS


def get_config(variant: str = "") -> ConfigDict:
    """The configuration, which is base, or that of a variant."""
    if variant == "smoke":
        return paper.smoke(Coreference(max_span_width=10, hidden_size=64)).to_config_dict()
    config = paper.experiment(Coreference(), variant, epochs=20)
    (phase,) = config.phases
    phase = dataclasses.replace(phase, learning_rate=1e-5, batch_size=1, sequences_per_device=None)
    optimizer = dataclasses.replace(config.optimizer, head_factor=10.0)
    mesh = MeshConfig(data=1, sequence=-1)  # one document, whatever number of devices
    return dataclasses.replace(config, phases=(phase,), optimizer=optimizer, mesh=mesh).to_config_dict()
