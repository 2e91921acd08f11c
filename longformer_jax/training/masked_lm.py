"""Masked-LM pretraining as an experiment: from RoBERTa to Longformer (section 5), or from scratch."""

import dataclasses
import functools
import hashlib
import importlib.resources
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from safetensors.numpy import load_file

from longformer_jax.checksums import check_sum, recording
from longformer_jax.data import TokenCorpus, load_token_corpus, mask_tokens, row_batches
from longformer_jax.data.packing import Packer
from longformer_jax.errors import InputError
from longformer_jax.models import ForMaskedLM, LongformerConfig
from longformer_jax.models.finite import apply_marked
from longformer_jax.training.config import ExperimentConfig
from longformer_jax.training.encoder_init import KEPT, check_tokenizer, load_init
from longformer_jax.training.flops import encoder_flops_per_token
from longformer_jax.training.serialization import check, convert_fields
from longformer_jax.training.validation import Validator
from longformer_jax.weights import load_tokenizer, save_pretrained
from longformer_jax.weights.conversion import POSITIONS
from longformer_jax.weights.hub import find_directory
from longformer_jax.weights.pretrained import read_model_config
from longformer_jax.weights.tensor_files import write_tensors
from longformer_jax.weights.tokenizer import TOKENIZER, save_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

GLOBAL_FILE = "global_projections.safetensors"

_PROJECTIONS = ("query", "key", "value")

# Streams of random numbers beside that of dropout, which counts microbatches.
_TRAINING_MASKS, _VALIDATION_MASKS = 2**32 - 1, 2**32 - 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenDataConfig:
    """Where the documents come from, and how they become tokens; see `load_token_corpus`.

    Attributes:
      path: a file of UTF-8 text with a blank line between documents, a directory or a glob pattern of such files, or
        "tfds:NAME"; None is the embedded text.
      validation_path: documents for validation, in place of a fraction of `path`.
      validation_fraction: the fraction of the documents that validate where there is no `validation_path`.
      tokenizer: a tokenizer.json, or a model (a directory or a name on the hub) whose tokenizer is meant. None is that
        of the experiment's `init`; where there is none, byte-level BPE is learnt from `path`.
      cache_dir: where packed tokens are kept; None is ~/.cache/longformer_jax.
    """

    path: str | None = None
    validation_path: str | None = None
    validation_fraction: float = 0.01
    tokenizer: str | None = None
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        convert_fields(self)

    def load(self, tokenizer: "Tokenizer", sequence_length: int) -> TokenCorpus:
        """The corpus in rows of so many tokens; raises InputError where `load_token_corpus` does."""
        try:
            return load_token_corpus(
                _embedded_text() if self.path is None else self.path,
                tokenizer=tokenizer,
                sequence_length=sequence_length,
                cache_dir=self.cache_dir,
                validation_fraction=self.validation_fraction if self.validation_path is None else None,
                validation_source=self.validation_path,
            )
        except InputError as error:
            raise InputError(f"data: {error}") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenData:
    """What a run reads.

    Attributes:
      tokenizer: what made tokens of the documents.
      corpora: for each phase, the documents in rows of its length.
      global_projections: those that `init` has of its own, stacked over the layers, by their paths in `layers`.
    """

    tokenizer: "Tokenizer"
    corpora: tuple[TokenCorpus, ...]
    global_projections: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the documents."""
        return self.corpora[0].name

    @property
    def fingerprint(self) -> str:
        """A digest of all rows."""
        return hashlib.sha256("".join(corpus.fingerprint for corpus in self.corpora).encode()).hexdigest()

    @property
    def parts(self) -> dict[str, str]:
        """Digests of the rows of each length."""
        return {str(corpus.sequence_length): corpus.fingerprint for corpus in self.corpora}

    def rows(self, phase: int, split: str) -> np.ndarray:
        """uint16 or uint32 `[N, T]`; raises InputError where there is no such split or it is empty."""
        return self.corpora[phase].split(split)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedLMExperiment(ExperimentConfig):
    """Training of a masked LM: some tokens of a text are hidden, and predicted from both sides.

    There are no global tokens in it (section 5), so no projections of global tokens are trained. The model that is
    written, where its config asks for them, gets those of `init`; where `init` has none, or only copies of its ordinary
    ones, it gets copies of the trained ordinary ones.

    Attributes:
      model: the model to train and write.
      init: of RoBERTa's or Longformer's kind. RoBERTa becomes a Longformer where `model` is one.
      positions: how the rows of the position table beyond those of `init` are made, "copied" (over and over) or
        "random".
      mask_probability: the part of the tokens that is to be predicted; of these 80% are masked, 10% replaced, 10% kept.
      mask_token_id: of the tokenizer's <mask>.
      special_token_ids: ids that are never predicted, nor put in a token's place.
    """

    model: LongformerConfig
    data: TokenDataConfig = TokenDataConfig()
    positions: str = "copied"
    mask_probability: float = 0.15
    mask_token_id: int = 50264
    special_token_ids: tuple[int, ...] = (0, 1, 2, 3, 50264)

    objective: ClassVar[str] = "masked_lm"
    model_class: ClassVar[str] = "ForMaskedLM"
    score_name: ClassVar[str] = "bits per masked token"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.positions in POSITIONS, "positions", self.positions, f"one of {', '.join(POSITIONS)}")
        check(0 < self.mask_probability < 1, "mask_probability", self.mask_probability, "a number between 0 and 1")
        for field, ids in (("mask_token_id", [self.mask_token_id]), ("special_token_ids", self.special_token_ids)):
            expected = f"ids from 0 to {self.model.vocab_size - 1}, as model.vocab_size is {self.model.vocab_size}"
            check(all(0 <= i < self.model.vocab_size for i in ids), field, getattr(self, field), expected)
        for index, phase in enumerate(self.phases):
            field, length = f"phases[{index}].sequence_length", phase.sequence_length
            check(length >= 3, field, length, "at least 3, room for <s>, a token and </s>")
            check(length <= self.model.max_length, field, length, f"at most {self.model.max_length}, model.max_length")

    @property
    def validates_first(self) -> bool:
        """Always: what the model knew before is the paper's first figure."""
        return True

    @property
    def trained_model(self) -> LongformerConfig:
        """The model as it is trained, without projections of global tokens."""
        return dataclasses.replace(self.model, global_projections=False)

    # Parameters.

    def init_params(self) -> Any:
        """Parameters from the seed."""
        return ForMaskedLM(self.trained_model).init(jax.random.key(self.seed), jnp.zeros((1, 1), jnp.int32))["params"]

    def pretrained_params(self) -> Any:
        """The parameters of `init`, converted to `model`; None where there is no `init`.

        Raises:
          InputError: the weights cannot be loaded, or are not those of such a model.
        """
        if self.init is None:
            return None
        params = load_init(self, ForMaskedLM, self.positions)
        layers = {name: leaf for name, leaf in params["longformer"]["layers"].items() if not name.endswith("_global")}
        return params | {"longformer": params["longformer"] | {"layers": layers}}

    def with_global_projections(self, params: Any, workdir: Path | None) -> Any:
        """The parameters of `model`, where those of `trained_model` are given; `workdir` is of the run."""
        if not self.model.global_projections:
            return params
        layers = params["longformer"]["layers"]
        own = {} if workdir is None else _read_global(workdir)
        added = unflatten_dict(own, sep="/") or {f"{name}_global": layers[name] for name in _PROJECTIONS}
        return params | {"longformer": params["longformer"] | {"layers": layers | added}}

    def write_model(self, directory: Path, params: Any, *, phase: int, workdir: Path | None = None) -> None:
        """Writes the model, for transformers, too, and its tokenizer."""
        save_pretrained(directory, self.model, self.with_global_projections(params, workdir), ForMaskedLM)
        save_tokenizer(directory, self.tokenizer(workdir), self.model.max_length)

    # Data.

    def tokenizer(self, workdir: Path | None = None) -> "Tokenizer":
        """That of a run's workdir; of a new run, see `TokenDataConfig`. It neither cuts texts nor pads them."""
        kept = None if workdir is None else workdir / TOKENIZER
        if kept is not None and kept.is_file():
            return load_tokenizer(kept)
        source = self.data.tokenizer or self.init
        if source is not None:
            return load_tokenizer(source)
        from longformer_jax.data.tokenizer_training import learn_tokenizer

        text = _embedded_text() if self.data.path is None else self.data.path
        return learn_tokenizer(text, self.model.vocab_size)

    def load_data(self, workdir: Path | None = None) -> TokenData:
        """The documents for each phase. What is quickly seen to be wrong is, before they are tokenized.

        Raises:
          InputError: the tokenizer or the documents cannot be had, the tokenizer's ids are not the experiment's, or
            the model to begin with is another one.
        """
        if workdir is None:
            self.check_init(read_model_config, *KEPT, "tie_word_embeddings")
        global_projections = self._global_of_init() if workdir is None else _read_global(workdir)
        tokenizer = self.tokenizer(workdir)
        self.check_tokens(Packer.of(tokenizer, self.phases[0].sequence_length))
        corpora = {length: self.data.load(tokenizer, length) for length in {p.sequence_length for p in self.phases}}
        if self.eval_interval:
            for corpus in corpora.values():
                if not len(corpus.splits["validation"]):
                    raise InputError(
                        f"data.validation_fraction is {self.data.validation_fraction}, which leaves {corpus.name} "
                        "without validation; expected a larger one, or eval_interval=0"
                    )
        phases = tuple(corpora[phase.sequence_length] for phase in self.phases)
        return TokenData(tokenizer=tokenizer, corpora=phases, global_projections=global_projections)

    def _global_of_init(self) -> dict[str, np.ndarray]:
        """`TokenData.global_projections` of a new run."""
        if self.init is None or not self.model.global_projections:
            return {}
        if not read_model_config(find_directory(self.init)).global_projections:
            return {}
        layers = jax.device_get(load_init(self, ForMaskedLM, self.positions)["longformer"]["layers"])
        own, ordinary = ({f"{name}_global": layers[name + end] for name in _PROJECTIONS} for end in ("_global", ""))
        if jax.tree.all(jax.tree.map(np.array_equal, own, ordinary)):
            return {}
        flat: Any = flatten_dict(own, sep="/")
        return flat

    def check_tokens(self, tokens: Packer | TokenCorpus) -> None:
        """Raises InputError unless token ids are those of the experiment."""
        check_tokenizer(self.model, tokens)
        found, expected = self.mask_token_id, tokens.mask_token_id
        check(found == expected, "mask_token_id", found, f"{expected}, that of the tokenizer")
        found, expected = self.special_token_ids, tokens.special_token_ids
        check(set(found) == set(expected), "special_token_ids", found, f"{expected}, those of the tokenizer")

    def save_data(self, workdir: Path, data: TokenData) -> None:
        """As in the base class; the rest of `data`, too, so that the run needs no other directory from then on."""
        with recording(workdir / TOKENIZER) as partial:
            data.tokenizer.save(str(partial))
        if data.global_projections:
            with recording(workdir / GLOBAL_FILE) as partial:
                write_tensors(partial, data.global_projections)
        else:
            (workdir / GLOBAL_FILE).unlink(missing_ok=True)
        super().save_data(workdir, data)

    def train_batches(self, data: TokenData, phase: int, **position: int) -> Iterator[np.ndarray]:
        """Tokens `[B / P, T]`, of the dtype of `batch_spec`."""
        rows, dtype = data.rows(phase, "train"), self.batch_spec(phase).dtype
        size, seed = self.phases[phase].batch_size, self.data_seed(phase)
        batches = row_batches(rows, batch_size=size, seed=seed, **position)
        return (batch.astype(dtype, copy=False) for batch in batches)

    def batch_spec(self, phase: int) -> jax.ShapeDtypeStruct:
        """Tokens `[B, T]`."""
        dtype = jnp.uint16 if self.model.vocab_size <= 2**16 else jnp.uint32
        return jax.ShapeDtypeStruct((self.phases[phase].batch_size, self.phases[phase].sequence_length), dtype)

    # The compiled step.

    def prepare(self, batch: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        """Masks a batch `[A, B / A, T]`. A row's masks follow from its place in the batch, however that is cut."""
        count, rows = batch.shape[:2]
        index = jnp.arange(count)[:, None] + count * jnp.arange(rows)[None]
        masked = jax.vmap(functools.partial(self.mask_rows, key=jax.random.fold_in(key, _TRAINING_MASKS)))(batch, index)
        weights = masked["weights"]  # the mean over microbatches of their weighted sums is the mean over all targets
        return masked | {"weights": weights * (count / jnp.maximum(weights.sum(), 1))}

    def mask_rows(self, rows: jax.Array, index: jax.Array, *, key: jax.Array) -> dict[str, jax.Array]:
        """Hides tokens and notes what they were.

        Args:
          rows: integers `[B, T]`.
          index: integers `[B]`; the masks of a row follow from its number here, the key and nothing else.
          key: of the masks.

        Returns:
          `input_ids` int32 `[B, T]`, `attention_mask` bool `[B, T]`, and for M targets a row, as many as there may be,
          `positions` and `targets` int32 `[B, M]` and `weights` float32 `[B, M]`, 1 for a target and 0 for padding.
        """
        model, length = self.model, rows.shape[1]
        # Six standard deviations above the mean: of a billion rows, 2 (of 4,096 tokens) to 82 (of 32) have more, and
        # keep the first of their targets.
        deviation = math.sqrt(length * self.mask_probability * (1 - self.mask_probability))
        room = min(length, math.ceil(length * self.mask_probability + 6 * deviation))

        def mask_row(tokens: jax.Array, number: jax.Array) -> dict[str, jax.Array]:
            tokens = tokens.astype(jnp.int32)
            (inputs,), (is_target,) = mask_tokens(
                jax.random.fold_in(key, number),
                tokens[None],
                vocab_size=model.vocab_size,
                mask_token_id=self.mask_token_id,
                special_token_ids=self.special_token_ids,
                mask_probability=self.mask_probability,
            )
            (positions,) = jnp.nonzero(is_target, size=room, fill_value=0)
            return {
                "input_ids": inputs,
                "attention_mask": tokens != model.pad_token_id,
                "positions": positions,
                "targets": tokens[positions],
                "weights": (jnp.arange(room) < is_target.sum()).astype(jnp.float32),
            }

        return jax.vmap(mask_row)(rows, index)

    def loss(
        self, phase: int, params: Any, microbatch: dict[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Nats of the targets, by their weights."""
        nats, marks = self._nats(params, microbatch, deterministic=False, rngs={"dropout": key})
        return jnp.sum(nats * microbatch["weights"]), marks

    def _nats(self, params: Any, rows: dict[str, jax.Array], **kwargs: Any) -> tuple[jax.Array, jax.Array]:
        """The cross entropy of the targets, float32 `[B, M]`, and the model's marks."""
        inputs = (rows["input_ids"], rows["attention_mask"])
        model = ForMaskedLM(self.trained_model)
        output, marks = apply_marked(model, params, *inputs, positions=rows["positions"], **kwargs)
        return optax.softmax_cross_entropy_with_integer_labels(output.logits, rows["targets"]), marks

    # Validation.

    def nats(self, phase: int, params: Any, rows: dict[str, jax.Array], weights: jax.Array) -> jax.Array:
        """The sum of nats over the targets of rows from `validation_rows` with weight 1, not 0, in float32 `[B]`."""
        nats, _ = self._nats(params, rows, deterministic=True)
        return jnp.sum(nats * rows["weights"] * weights[:, None])

    def validation_rows(self, rows: np.ndarray, index: np.ndarray) -> dict[str, np.ndarray]:
        """Masks rows `[N, T]` of a split, whose numbers in it are `index` `[N]`; a row always gets the same masks."""
        key = jax.random.fold_in(jax.random.key(self.seed), _VALIDATION_MASKS)
        return jax.device_get(_mask_rows(self, rows, index, key))

    def validator(self, phase: int, data: TokenData, batch_size: int, mesh: Mesh) -> Validator:
        """Bits per masked token of the first `eval_sequences` sequences of the validation split."""
        rows = data.rows(phase, "validation")[: self.eval_sequences]
        rows = self.validation_rows(rows, np.arange(len(rows)))
        masked = int(rows["weights"].sum())
        self.check_masked(masked, len(rows["weights"]))
        sees = (
            f"{masked:,} masked tokens in the first {len(rows['weights'])} sequences of "
            f"{len(data.rows(phase, 'validation')):,}"
        )
        return Validator(self, phase, rows, masked, batch_size, mesh, sees)

    def check_masked(self, tokens: int, rows: int) -> None:
        """Raises InputError if there is no masked token in so many rows of a split."""
        if not tokens:
            raise InputError(
                f"mask_probability is {self.mask_probability}, by which no token of the {rows} sequences to score is "
                "masked; expected a larger one, or more text"
            )

    def flops_per_token(self, phase: int, params: Any, data: TokenData) -> float:
        """Of the encoder, and of the head where there are targets."""
        model, length = self.model, self.phases[phase].sequence_length
        head = 2 * model.hidden_size * (model.hidden_size + model.vocab_size)
        return encoder_flops_per_token(model, length) + 3 * head * self.mask_probability


@functools.partial(jax.jit, static_argnums=0)
def _mask_rows(config: MaskedLMExperiment, rows: jax.Array, index: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
    return config.mask_rows(rows, index, key=key)


def _read_global(workdir: Path) -> dict[str, np.ndarray]:
    """`TokenData.global_projections` of a run that has begun."""
    path = workdir / GLOBAL_FILE
    if not path.is_file():
        return {}
    check_sum(path)
    return load_file(path)


def _embedded_text() -> str:
    return str(importlib.resources.files("longformer_jax.data") / "tiny_shakespeare.txt")
