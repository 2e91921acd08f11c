"""Answers of a fine-tuned model.

  python -m longformer_jax.predict --workdir=runs/imdb reviews.txt
  cat reviews.txt | python -m longformer_jax.predict --workdir=runs/imdb -
  python -m longformer_jax.predict --workdir=runs/imdb --json reviews.jsonl > answers.jsonl
  python -m longformer_jax.predict --workdir=runs/triviaqa --question="Who dug the harbour?" harbour.txt

A file of text holds a document in each line, or with --whole one document. Files whose name says JSON lines, CSV or
another form that the task knows are read as the task reads them; of CoNLL-2012 the first line says it, too. For each
document a line is printed. With --question, each file is one document, and the line is the answer in it, its score and
its sentence. --html=PAGE shows answers in their documents.
"""

import argparse
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from longformer_jax.command_line import Parser, check_devices, one_line_for_errors, print_anything
from longformer_jax.errors import InputError
from longformer_jax.evaluation import load_task
from longformer_jax.files import check_output, read_file, read_stream, user_path, write_text
from longformer_jax.scripts.page import page
from longformer_jax.settings import keep_compiled
from longformer_jax.tasks import Example, Task


def run(arguments: Sequence[str] | None = None) -> None:
    """The command line; exits with 2 on bad input."""
    parser = Parser(
        prog="python -m longformer_jax.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="documents; - is standard input")
    parser.add_argument("--workdir", required=True, help="directory of the run")
    parser.add_argument("--question", help="what to ask of each file, where the task answers questions")
    parser.add_argument("--json", action="store_true", help="print all that is predicted, a JSON object a line")
    parser.add_argument("--html", metavar="PAGE", help="write a page that shows each answer in its document")
    parser.add_argument("--whole", action="store_true", help="a file of text is one document")
    parser.add_argument("--step", type=int, help="which checkpoint (default: the best)")
    parser.add_argument(
        "--batch_size", type=int, default=8, help="documents of the full length at once (default: %(default)s)"
    )
    with one_line_for_errors():
        options = parser.parse_args(arguments)
        print_anything()
        keep_compiled()
        check_devices()
        html = None if options.html is None else user_path("--html", options.html)
        if html is not None:
            check_output("--html", html)
        model = load_task(options.workdir, step=options.step, batch_size=options.batch_size)
        if html is not None and type(model.task).marked is Task.marked:
            raise InputError(
                f"task is {model.task.kind!r}, whose answers are no passages of a text; expected no --html"
            )
        if options.question is None:
            examples = [example for file in options.files for example in _read(model.task, file, options.whole)]
        else:
            examples = [
                model.task.from_question(options.question, _text(path), name)
                for name, path in map(_named, options.files)
            ]
        examples = _numbered(examples)
        features = model.features(examples)
        for line in model.cuts(features):
            print(line, file=sys.stderr)
        predictions = model.score(features, labelled=False).predictions
        for prediction in predictions:
            line = json.dumps(prediction, ensure_ascii=False) if options.json else model.task.describe(prediction)
            print(line, flush=True)
        if html is not None:
            marked = map(model.task.marked, examples, predictions)
            write_text(html, page(marked))


def _read(task: Task, file: str, whole: bool) -> Iterator[Example]:
    """The examples of a file."""
    name, path = _named(file)
    if path is not None and not whole and task.is_own(path):
        yield from task.read_own(path)
        return
    text = _text(path)
    documents = [text] if whole else [line.rstrip("\n") for line in io.StringIO(text, newline=None)]
    if not any(document.strip() for document in documents):
        raise InputError(f"{name} is empty; expected a document" + ("" if whole else " in each line"))
    for number, document in enumerate(documents, start=1):
        yield task.from_text(document, name if whole else f"line {number} of {name}")


def _named(file: str) -> tuple[str, Path | None]:
    """What a FILE is called, and its path; None for standard input."""
    path = None if file == "-" else user_path("FILE", file)
    return "standard input" if path is None else str(path), path


def _text(path: Path | None) -> str:
    name = "standard input" if path is None else str(path)
    try:
        content = read_stream(sys.stdin.buffer, name) if path is None else read_file(path)
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is no UTF-8 at byte {error.start:,}; expected text in UTF-8") from None
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"FILE is {name!r}, which is no file; expected one with documents, or -") from None


def _numbered(examples: list[Example]) -> list[Example]:
    """With ids that differ, where files have the same."""
    if len({example["id"] for example in examples}) < len(examples):
        return [{**example, "id": f"{number}: {example['id']}"} for number, example in enumerate(examples, start=1)]
    return examples
