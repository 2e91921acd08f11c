"""Models as StableHLO, by `jax.export`, for programs that have JAX but not this library.

A directory gets one NAME.stablehlo for each function, `params.npz` with the parameters by their paths, the tokenizer
where there is one, and README.txt: what the functions take and give, and a program that runs them.

The batch is a symbol, so that a function takes any number of rows. The length is a number: blockwise attention walks
over tiles, whose number and places are Python integers when a call is traced.
"""

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from longformer_jax.errors import InputError
from longformer_jax.files import check_unused, replacing, user_path, write_text
from longformer_jax.integers import check_integer
from longformer_jax.models import (
    CharLM,
    CharLMConfig,
    ForMaskedLM,
    ForMultipleChoice,
    ForQuestionAnswering,
    ForSequenceClassification,
    Longformer,
    LongformerConfig,
    decode_step,
)
from longformer_jax.settings import pinned
from longformer_jax.training import ExperimentConfig
from longformer_jax.training.config import runs_of_seeds
from longformer_jax.training.workdir import restore_chosen
from longformer_jax.weights import load_pretrained
from longformer_jax.weights.architectures import ModelFactory, make_module
from longformer_jax.weights.hub import find_directory
from longformer_jax.weights.hugging_face_config import CHAR_LM, CONFIG, read_values
from longformer_jax.weights.pretrained import find_model
from longformer_jax.weights.tokenizer import TOKENIZER, load_tokenizer

PLATFORMS = ("cpu", "cuda")
PARAMS, README = "params.npz", "README.txt"

# Heads that find their global tokens in the ids, but need to know how many there may be.
_FIND_THEIR_GLOBAL_TOKENS = (ForQuestionAnswering, ForMultipleChoice)


@dataclasses.dataclass(frozen=True)
class Function:
    """What becomes a file.

    Attributes:
      name: of the file.
      call: of the parameters, a tree, and inputs, a mapping; gives a mapping. Traced.
      inputs: shapes and dtypes of the inputs, a mapping of trees.
    """

    name: str
    call: Callable[[Any, dict[str, Any]], Mapping[str, Any]]
    inputs: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Model:
    """A model to be exported.

    Attributes:
      what: in words.
      params: a tree.
      lengths: those of rows that it is usually used with; empty where it has none.
      most: the largest length; None where there is none.
      function: for a symbolic batch size and a length.
      others: those without a length.
      notes: what has to be known of inputs and outputs, a line each.
    """

    what: str
    params: Any
    lengths: Sequence[int]
    most: int | None
    function: Callable[[Any, int], Function]
    others: Callable[[Any], Sequence[Function]] = lambda batch: ()
    notes: Sequence[str] = ()


@pinned()
def export_stablehlo(
    source: str | Path,
    out: str | Path,
    *,
    lengths: Sequence[int] | None = None,
    step: int | None = None,
    global_tokens: int | None = None,
) -> Path:
    """Writes a model as StableHLO.

    Args:
      source: the workdir of a run, the directory of a model, or its name on the Hugging Face hub.
      out: a new or empty directory.
      lengths: tokens of a row; each number gets a function of its own. None is the length that a run was trained on, or
        the largest of an encoder.
      step: which checkpoint of a run; None is the best, where the run keeps that, else the latest.
      global_tokens: of an encoder, for how many global tokens a row has room. None is no global tokens but those that a
        head always has.

    Returns:
      The path of `out`.

    Raises:
      InputError: the source holds no model, or it is damaged; an argument does not fit it; or there is something in
        `out`.
    """
    out = user_path("out", out)
    check_unused("out", out)
    directory = find_directory(source)
    model = _open(directory, str(source), step, global_tokens)
    exported = {}
    for function in _functions(model, lengths):
        exported[function.name] = _export(function, model.params)
    with replacing(out) as partial:
        partial.mkdir()
        flat: Any = flatten_dict(jax.device_get(model.params), sep="/")
        np.savez(partial / PARAMS, **flat)
        for name, function in exported.items():
            (partial / f"{name}.stablehlo").write_bytes(function.serialize())
        if "objective" in read_values(directory) and (directory / TOKENIZER).is_file():  # as the run has recorded it
            shutil.copyfile(directory / TOKENIZER, partial / TOKENIZER)
        elif any((directory / name).is_file() for name in (TOKENIZER, "vocab.json")):
            load_tokenizer(directory).save(str(partial / TOKENIZER))
        write_text(partial / README, _readme(model, exported))
    return out


def _functions(model: Model, lengths: Sequence[int] | None) -> Iterator[Function]:
    try:
        lengths = [
            check_integer("length", x, maximum=model.most) for x in (model.lengths if lengths is None else lengths)
        ]
    except TypeError:
        raise InputError(f"lengths is {lengths!r}; expected a list of lengths") from None
    if not lengths:
        raise InputError(
            f"length is not given; expected one, such as --length=512, as {model.what} has none of its own"
        )
    if len({*lengths}) < len(lengths):
        raise InputError(f"length is {', '.join(map(str, lengths))}; expected each number once")
    (batch,) = jax.export.symbolic_shape("batch")
    for length in lengths:
        yield model.function(batch, length)
    yield from model.others(batch)


def _export(function: Function, params: Any) -> jax.export.Exported:
    def call(params: dict[str, Any], inputs: dict[str, Any]) -> Mapping[str, Any]:
        return function.call(unflatten_dict(params, sep="/"), inputs)

    flat: Any = flatten_dict(params, sep="/")
    spec = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in flat.items()}
    return jax.export.export(jax.jit(call), platforms=PLATFORMS)(spec, function.inputs)


# What there is to export.


def _open(directory: Path, source: str, step: int | None, global_tokens: int | None) -> Model:
    """The model in a directory; raises InputError where there is none, or the options do not fit it."""
    if global_tokens is not None:
        check_integer("global_tokens", global_tokens)
    if not (directory / CONFIG).exists() and (runs := runs_of_seeds(directory)):
        raise InputError(
            f"source is {source!r}, which holds several runs; expected one of them, such as {str(runs[0])!r}"
        )
    values = read_values(directory)
    if "objective" in values:
        return _run(directory, source, step, global_tokens)
    if step is not None:
        raise InputError(f"step is {step}, but {source!r} is a model and no run; expected no step")
    if values.get("model_type") == CHAR_LM:
        _refuse(global_tokens, source, "a character LM")
        return _char_lm(*load_pretrained(directory, CharLM), ())
    factory = find_model(directory)
    return _encoder(factory, *load_pretrained(directory, factory), (), global_tokens)


def _run(workdir: Path, source: str, step: int | None, global_tokens: int | None) -> Model:
    experiment: Any = ExperimentConfig.load(workdir)
    step, params = restore_chosen(workdir, step)
    phase = experiment.last_phase(step)
    length = experiment.phases[phase].sequence_length
    if experiment.objective == "masked_lm":
        model = experiment.trained_model
        if global_tokens is not None:
            model, params = experiment.model, experiment.with_global_projections(params, workdir)
        return _encoder(ForMaskedLM, model, params, (length,), global_tokens)
    _refuse(global_tokens, source, f"a {experiment.objective} run")
    if experiment.objective == "char_lm":
        return _char_lm(experiment.model_in_phase(phase), params, (length,))
    return _task(experiment, phase, params)


def _refuse(global_tokens: int | None, source: str, what: str) -> None:
    if global_tokens is not None:
        raise InputError(f"global_tokens is {global_tokens}, but {source!r} is {what}; expected it for an encoder only")


def _char_lm(config: CharLMConfig, params: Any, lengths: Sequence[int]) -> Model:
    config = dataclasses.replace(config, remat=False, implementation="xla")

    def forward(params: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"logits": CharLM(config).apply({"params": params}, inputs["tokens"])}

    def decode(params: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        logits, cache = decode_step(config, params, inputs["cache"], inputs["token"])
        return {"logits": logits, "cache": cache}

    def init_cache(params: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"cache": jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), config.cache_spec(*inputs["token"].shape))}

    def others(batch: Any) -> list[Function]:
        token = jax.ShapeDtypeStruct((batch,), "int32")
        return [
            Function("init_cache", init_cache, {"token": token}),
            Function("decode", decode, {"token": token, "cache": config.cache_spec(batch)}),
        ]

    return Model(
        f"A character language model of {config.num_layers} layers",
        params,
        lengths,
        None,
        lambda batch, length: Function(
            f"forward_{length}", forward, {"tokens": jax.ShapeDtypeStruct((batch, length), "int32")}
        ),
        others,
        (
            f"tokens are characters, from 0 to {config.vocab_size - 1}; logits are of the character after each.",
            "decode reads one character of a text after the other; init_cache makes the cache that a text begins with.",
            "A text that is shorter than forward's length may end with anything: no character sees what follows it.",
        ),
    )


def _encoder(
    factory: ModelFactory, config: LongformerConfig, params: Any, lengths: Sequence[int], global_tokens: int | None
) -> Model:
    config = dataclasses.replace(config, remat=False, implementation="xla")
    module = make_module(factory, config)
    name = type(module).__name__
    own = isinstance(module, ForSequenceClassification) and config.attention_mode != "full"  # a global token
    options: dict[str, Any] = {} if global_tokens is None else {"max_global_tokens": global_tokens + own}
    if global_tokens is None and isinstance(module, _FIND_THEIR_GLOBAL_TOKENS) and config.attention_mode != "full":
        raise InputError(
            f"global_tokens is None, but the model is a {name}, whose questions are global; expected "
            "--global_tokens=N, room for the longest"
        )
    if global_tokens is not None and config.attention_mode == "full":
        raise InputError(f"global_tokens is {global_tokens}, but the model has full attention; expected none")

    def forward(params: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        if own and global_tokens is not None:
            inputs = inputs | {"global_attention_mask": inputs["global_attention_mask"].at[:, 0].set(True)}
        output: Any = module.apply({"params": params}, **inputs, **options)
        if not isinstance(module, Longformer):
            return {"logits": output.logits}
        found = {"last_hidden_state": output.last_hidden_state, "pooler_output": output.pooler_output}
        return {name: x for name, x in found.items() if x is not None}

    def function(batch: Any, length: int) -> Function:
        shape = (batch, length)
        if isinstance(module, ForMultipleChoice):
            shape = (batch, *jax.export.symbolic_shape("choices", scope=batch.scope), length)
        ids, mask = (jax.ShapeDtypeStruct(shape, dtype) for dtype in ("int32", "bool"))
        inputs = {"input_ids": ids, "attention_mask": mask}
        if global_tokens is not None and not isinstance(module, _FIND_THEIR_GLOBAL_TOKENS):
            inputs["global_attention_mask"] = mask
        if config.type_vocab_size > 1:
            inputs["token_type_ids"] = ids
        return Function(f"forward_{length}", forward, inputs)

    notes = [
        f"input_ids are tokens, from 0 to {config.vocab_size - 1}; a shorter text is filled up with "
        f"{config.pad_token_id}, where attention_mask is False.",
    ]
    if global_tokens is not None:
        notes.append(f"A row with more than {global_tokens} global tokens{' beside its first' * own} gives NaN.")
    return Model(
        f"A {name} of {config.num_hidden_layers} layers",
        params,
        lengths or (config.max_length,),
        config.max_length,
        function,
        notes=(*notes, *_labels(config)),
    )


def _task(experiment: Any, phase: int, params: Any) -> Model:
    task, sequence_length = experiment.task, experiment.phases[phase].sequence_length
    config = dataclasses.replace(experiment.task_model, remat=False, implementation="xla")
    longer = [length for length in experiment.phase_lengths(phase) if length > sequence_length]

    def forward(params: Any, inputs: dict[str, Any]) -> Mapping[str, Any]:
        head = task.head(config)
        arguments = task.inputs(inputs, config, sequence_length)
        output: Any = head.apply({"params": params}, **arguments)
        found = task.outputs(output, inputs)
        return found if isinstance(found, Mapping) else {"outputs": found}

    def function(batch: Any, length: int) -> Function:
        if length > sequence_length and length not in longer:
            expected = f"at most {sequence_length}" + (f", or one of {', '.join(map(str, longer))}" if longer else "")
            raise InputError(f"length is {length}; expected {expected}, as the run has it")
        fields = experiment.batch_spec(phase, length)
        inputs = {
            name: jax.ShapeDtypeStruct((batch, x.shape[1]), "int32" if name == "input_ids" else x.dtype)
            for name, x in fields.items()
            if name != "weight" and name not in task.targets
        }
        return Function(f"forward_{length}", forward, inputs)

    return Model(
        f"A model of {config.num_hidden_layers} layers for the task {task.kind}",
        params,
        (sequence_length,),
        None,
        function,
        notes=(
            f"input_ids are tokens, from 0 to {config.vocab_size - 1}; a shorter row is filled up with "
            f"{config.pad_token_id}.",
            *_labels(config),
        ),
    )


def _labels(config: LongformerConfig) -> list[str]:
    return [f"The labels are, in this order: {', '.join(config.id2label)}."] if config.id2label else []


# README.txt.

_TEXT = """\
{what}, as StableHLO, written with JAX {version} for {platforms}.
It needs jax, numpy and flatbuffers. Versions of JAX that are up to six months newer can read such files.

{program}
{functions}
{notes}
"""


def _readme(model: Model, exported: Mapping[str, jax.export.Exported]) -> str:
    functions = []
    for name, function in exported.items():
        (_, inputs), _ = jax.tree.unflatten(function.in_tree, function.in_avals)
        outputs = jax.tree.unflatten(function.out_tree, function.out_avals)
        functions += [f"{name}.stablehlo", *_arrays("takes", inputs), *_arrays("gives", outputs), ""]
    return _TEXT.format(
        what=model.what,
        version=jax.__version__,
        platforms=" and ".join(PLATFORMS),
        program="".join(f"    {line}".rstrip() + "\n" for line in _program(exported)),
        functions="\n".join(functions),
        notes="\n".join(model.notes),
    )


def _program(exported: Mapping[str, jax.export.Exported]) -> Iterator[str]:
    """Lines of Python that run the functions, two rows of ones at once, without global tokens."""
    yield "from pathlib import Path"
    yield "import jax, jax.export, numpy as np"
    yield ""
    yield f'params = dict(np.load("{PARAMS}"))'
    for name in exported:
        yield f'{name} = jax.jit(jax.export.deserialize(Path("{name}.stablehlo").read_bytes()).call)'
    for name, function in exported.items():
        (_, inputs), _ = jax.tree.unflatten(function.in_tree, function.in_avals)
        arrays = []
        for key, x in inputs.items():
            if not isinstance(x, dict):
                values = "zeros" if key == "global_attention_mask" else "ones"
                shape = tuple(n if isinstance(n, int) else 2 for n in x.shape)
                arrays.append(f'"{key}": np.{values}({shape}, "{x.dtype}")')
        if "cache" in inputs:
            arrays.append('"cache": outputs["cache"]')
        yield f"outputs = {name}(params, {{{', '.join(arrays)}}})"


def _arrays(verb: str, tree: Mapping[str, Any]) -> Iterator[str]:
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        yield f"  {verb} {name}: {x.dtype} [{', '.join(map(str, x.shape))}]"
