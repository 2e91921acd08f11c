"""The paper's ablation of windows and dilation on text8: the first phase of the small model, for 150K steps.

  python train.py --config=configs/char_lm/text8_ablation.py:increasing --workdir=runs/text8_increasing
  python eval.py --workdir=runs/text8_increasing --split=validation --protocol=paper

Hardware: one GPU with 80 GB or more of them. Not run to the end with this code.

| variant     | windows, bottom to top layer | dilation    | dev bits per character (paper, table 4) |
|-------------|------------------------------|-------------|------|
| decreasing  | 512 to 32                    | none        | 1.24 |
| fixed       | 230 in every layer           | none        | 1.23 |
| increasing  | 32 to 512                    | none        | 1.21 |
| no_dilation | 32 to 512 (as `increasing`)  | none        | 1.21 |
| dilation    | 32 to 512                    | on 2 heads  | 1.20 |

Each has a small form for two cores and minutes, VARIANT_smoke, on the embedded text or a file of your own:
  --config=configs/char_lm/text8_ablation.py:dilation_smoke --config.data.path=FILE
"""

from ml_collections import ConfigDict

from configs.char_lm import paper
from longformer_jax.errors import InputError

STEPS = (150_000,)
NO_DILATION = (1,) * len(paper.SMALL_WINDOWS)
LAYERS = {
    "decreasing": (paper.SMALL_WINDOWS[::-1], NO_DILATION),
    "fixed": ((230,) * len(paper.SMALL_WINDOWS), NO_DILATION),
    "increasing": (paper.SMALL_WINDOWS, NO_DILATION),
    "no_dilation": (paper.SMALL_WINDOWS, NO_DILATION),
    "dilation": (paper.SMALL_WINDOWS, paper.SMALL_DILATIONS),
}
VARIANTS = (*LAYERS, *(f"{name}_smoke" for name in LAYERS))


def get_config(variant: str = "") -> ConfigDict:
    """The configuration of a variant."""
    if variant not in VARIANTS:
        raise InputError(f"config variant is {variant!r}; expected one of {', '.join(VARIANTS)}")
    name = variant.removesuffix("_smoke")
    config = paper.experiment("text8", *LAYERS[name], STEPS, dropout_rate=0.2)
    return paper.variant(config, "smoke" if variant.endswith("_smoke") else "").to_config_dict()
