"""The models that have weights, and what Hugging Face calls them."""

import functools
from collections.abc import Callable, Mapping, Set
from typing import Any

import flax.linen as nn
import jax

from longformer_jax.errors import InputError
from longformer_jax.models import (
    ForMaskedLM,
    ForMultipleChoice,
    ForQuestionAnswering,
    ForSequenceClassification,
    ForTokenClassification,
    Longformer,
    LongformerConfig,
)
from longformer_jax.models.parameters import abstract_params, one_token
from longformer_jax.settings import pinned_random

# A class of models, which is called with its configuration, or a functools.partial of one.
ModelFactory = Callable[[Any], nn.Module]

# Without a pooler.
BARE_LONGFORMER = functools.partial(Longformer, add_pooling_layer=False)

# By the ending of Hugging Face's name, which begins with Longformer or Roberta.
_MODELS = {
    "Model": Longformer,
    "ForMaskedLM": ForMaskedLM,
    "ForSequenceClassification": ForSequenceClassification,
    "ForTokenClassification": ForTokenClassification,
    "ForQuestionAnswering": ForQuestionAnswering,
    "ForMultipleChoice": ForMultipleChoice,
}


def make_module(model: ModelFactory, config: LongformerConfig) -> nn.Module:
    """The module; raises InputError unless `model` is a class that has weights here, or a functools.partial of one."""
    if getattr(model, "func", model) not in _MODELS.values():
        names = ", ".join(cls.__name__ for cls in _MODELS.values())
        raise InputError(f"model is {model!r}; expected one of {names}")
    return model(config)


def differences(found: Mapping[str, tuple[int, ...]], module: nn.Module) -> str:
    """How the shapes of parameters, by path, differ from those of a module's; "" where they do not."""
    expected = {path: x.shape for path, x in abstract_params(module).items()}
    return listing(
        [
            f"{path} is {found.get(path, 'missing')} instead of {expected.get(path, 'absent')}"
            for path in sorted(found.keys() | expected.keys())
            if found.get(path) != expected.get(path)
        ]
    )


def listing(wrong: list[str]) -> str:
    """The first few of what is wrong with tensors; "" where nothing is."""
    return f"{len(wrong)} tensors differ: {'; '.join(wrong[:4])}{'; …' if len(wrong) > 4 else ''}" if wrong else ""


@pinned_random()
def init_params(module: nn.Module, seed: int) -> Any:
    """Parameters as training from scratch has them."""
    return module.init(jax.random.key(seed), one_token(module))["params"]


def ending_of(module: nn.Module) -> str:
    """What follows Longformer or Roberta in Hugging Face's name, as "ForMaskedLM"."""
    return next(ending for ending, cls in _MODELS.items() if cls is type(module))


def model_called(name: object) -> ModelFactory | None:
    """The model of one of Hugging Face's names; None where there is none."""
    return next((cls for ending, cls in _MODELS.items() if str(name).endswith(ending)), None)


def model_of(modules: Set[str], classifier_width: int | None) -> ModelFactory:
    """The model with a head of these modules ("lm_head/dense", …); `classifier_width` is of a classifier's output."""
    for module, model in (
        ("lm_head/dense", ForMaskedLM),
        ("qa_outputs", ForQuestionAnswering),
        ("classifier/dense", ForSequenceClassification),
    ):
        if module in modules:
            return model
    if "classifier" in modules:
        is_choice = classifier_width == 1 and "pooler" in modules
        return ForMultipleChoice if is_choice else ForTokenClassification
    return Longformer if "pooler" in modules else BARE_LONGFORMER
