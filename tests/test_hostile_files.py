"""Files that claim to be enormous, or are nested without end, take one sentence, bounded time and bounded memory."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from longformer_jax import save_pretrained
from tests.models import small

TERABYTES = 2**42
DEEP = b"[" * 10_000_000
# Reads files by the functions that users call, in 4 GiB beside what Python and JAX have taken before.
PROGRAM = """
import gzip, json, resource, sys
from pathlib import Path
import jax, numpy as np
from longformer_jax import CharLM, ForMaskedLM, InputError, load_pretrained, load_tokenizer
from longformer_jax.command_line import one_line_for_errors
from longformer_jax.data.documents import TextFiles
from longformer_jax.scripts.predict import _text
from longformer_jax.tasks.records import read_list, read_records
from longformer_jax.training import ExperimentConfig
jax.numpy.ones(3).block_until_ready()
import safetensors.numpy, tokenizers
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**32, taken + 2**32))
CALLS = {
    "char_lm": lambda path: load_pretrained(path, CharLM),
    "encoder": lambda path: load_pretrained(path, ForMaskedLM),
    "tokenizer": load_tokenizer,
    "run": ExperimentConfig.load,
    "text": _text,
    "records": lambda path: list(read_records(path)),
    "list": lambda path: list(read_list(path)),
    "lines": lambda path: list(TextFiles(path).lines()),
}
for line in sys.stdin:
    call, path = json.loads(line)
    try:
        CALLS[call](Path(path))
        said = "nothing"
    except InputError as error:
        said = f"InputError: {error}"
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
    print(json.dumps(said[:300]), flush=True)
"""


def hole(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(TERABYTES)


@pytest.mark.slow
def test_hostile_files(tmp_path: Path, start_python: Callable) -> None:
    try:
        hole(tmp_path / "hole")
    except OSError as error:
        pytest.skip(f"the file system has no such files ({error})")
    cases: list[tuple[str, Path, str]] = []

    def case(call: str, name: str, expected: str, **files: object) -> None:
        """A directory of files, or a file, to be read by a call, which is to say something."""
        folder = tmp_path / f"{len(cases)}"
        folder.mkdir()
        for file, content in files.items():
            path = folder / file.replace("_dot_", ".")
            if content is hole:
                hole(path)
            else:
                assert isinstance(content, bytes)
                path.write_bytes(content)
        cases.append((call, folder / name, expected))

    def header(text: bytes, length: int | None = None) -> bytes:
        return (len(text) if length is None else length).to_bytes(8, "little") + text

    save_pretrained(tmp_path / "model", small.SMALL, small.random_params(small.SMALL))
    config = (tmp_path / "model/config.json").read_bytes()
    sums = (tmp_path / "model/checksums.json").read_bytes()
    huge = {"embed.embedding": {"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [0, 2**64 - 4]}}
    for tensors, expected in (
        (hole, "damaged"),
        (header(b"{}", 2**63 - 1), "damaged"),
        (header(b"{}", 99_999_999), "damaged"),
        (header(b'{"a":' * 10_000_000), "damaged"),
        (header(json.dumps(huge).encode()), "damaged"),
    ):
        case("char_lm", "", expected, config_dot_json=config, model_dot_safetensors=tensors)
    case("char_lm", "", "has changed", config_dot_json=config, model_dot_safetensors=hole, checksums_dot_json=sums)
    for content, expected in ((hole, "more than"), (DEEP, "damaged"), (b"1" * 10_000_000, "damaged")):
        case("char_lm", "", expected, config_dot_json=content)
        case("run", "", expected, config_dot_json=content)
        case("tokenizer", "tokenizer.json", "damaged", tokenizer_dot_json=content)
    roberta = b'{"model_type": "roberta"}'
    case("encoder", "", "damaged", config_dot_json=roberta, pytorch_model_dot_bin=hole)
    case("encoder", "", "damaged", config_dot_json=roberta, pytorch_model_dot_bin=b"\x80\x02" + b"(" * 30_000_000)
    case("encoder", "", "more than", **{"config_dot_json": roberta, "model_dot_safetensors_dot_index_dot_json": hole})
    case("text", "file", "more than", file=hole)
    case("records", "file.jsonl", "more than", file_dot_jsonl=hole)
    case("records", "file.jsonl", "is no JSON", file_dot_jsonl=DEEP)
    case("records", "file.csv", "more than", file_dot_csv=hole)
    case("list", "file.json", "expected a list in JSON", file_dot_json=hole)
    case("list", "file.json", "has values within 101 others; expected a list in JSON", file_dot_json=DEEP)
    case("lines", "file.txt", "more than", file_dot_txt=hole)
    with start_python("-c", PROGRAM) as process:
        lines = "".join(json.dumps([call, str(path)]) + "\n" for call, path, _ in cases)
        output, errors = process.communicate(lines, timeout=500)
    said = [json.loads(line) for line in output.splitlines()]
    assert len(said) == len(cases), errors
    for (call, path, expected), sentence in zip(cases, said, strict=True):
        assert re.match(rf"InputError: .*{expected}", sentence), (call, path, sentence)
