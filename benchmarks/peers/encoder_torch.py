"""transformers' base-size encoders on two threads of a CPU: float32, B = 1, dropout off, random weights.

See side.py for the command line; needs torch and transformers.

- huggingface: LongformerModel with window 512 in every layer, no global tokens.
- huggingface_roberta: RobertaModel (SDPA) of the same size.
"""

from collections.abc import Callable

import torch
import transformers

from side import QUICK, Prepare, main

SIZES = dict(
    vocab_size=50265, type_vocab_size=1, layer_norm_eps=1e-5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
)


def maker(model_class: type, config_class: type, **settings: object) -> Callable[[str, int], Prepare]:
    def make(work: str, length: int) -> Prepare:
        torch.manual_seed(0)
        layers = 2 if QUICK else 12
        config = config_class(**SIZES, num_hidden_layers=layers, max_position_embeddings=length + 2, **settings)
        model = model_class(config, add_pooling_layer=False).eval()
        ids = torch.randint(3, SIZES["vocab_size"], (1, length))
        cotangent = torch.randn(1, length, config.hidden_size)

        def forward() -> torch.Tensor:
            return model(ids).last_hidden_state

        def both() -> list[torch.Tensor]:
            return torch.autograd.grad(forward(), list(model.parameters()), cotangent, allow_unused=True)

        return lambda: both if work == "both" else torch.no_grad()(forward)

    return make


MAKERS = {
    "huggingface": maker(transformers.LongformerModel, transformers.LongformerConfig, attention_window=512),
    "huggingface_roberta": maker(transformers.RobertaModel, transformers.RobertaConfig),
}

if __name__ == "__main__":
    torch.set_num_threads(2)
    main(MAKERS, torch=torch.__version__, transformers=transformers.__version__)
