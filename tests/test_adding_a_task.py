"""The task that docs/adding_a_task.md adds: its files, as they stand there, run as the page says."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.tiny_tokenizer import WORDS
from tests.tasks.sets import write_records

PAGE = Path(__file__).parents[1] / "docs" / "adding_a_task.md"
FILES = dict(re.findall(r"^```python (\w+\.py)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL))


def contracts(count: int, seed: int) -> list[dict]:
    rng = random.Random(seed)
    records = []
    for number in range(count):
        words = [rng.choices(WORDS[:9], k=rng.randint(1, 60)) for _ in range(2)]
        before, after = (" ".join(part) for part in words)
        answer = f"{rng.randint(1, 28)} May {rng.randint(2030, 2039)}"
        text = f"{before} It ends on {answer}. {after}"
        records.append({"id": str(number), "text": text, "answer": answer, "start": text.index(answer)})
    return records


def test_the_page_has_the_files() -> None:
    assert FILES.keys() == {"passage.py", "passage_config.py"}


@pytest.mark.slow
def test_the_page(tmp_path: Path, run_python: Callable) -> None:
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    data = tmp_path / "data"
    data.mkdir()
    write_records(data / "train.jsonl", contracts(400, 1))
    validation = contracts(40, 2)
    write_records(data / "validation.jsonl", validation)
    run, path = f"--workdir={tmp_path / 'run'}", {"PYTHONPATH": f"{PAGE.parents[1]}:{tmp_path}"}

    def command(*arguments: object) -> str:
        result = run_python(*arguments, **path)
        assert result.returncode == 0, result.stderr + result.stdout
        return result.stdout

    config = f"--config={tmp_path / 'passage_config.py'}"
    command("train.py", config, run, f"--config.data.path={data}", f"--config.data.cache_dir={tmp_path / 'cache'}")
    scored = command("eval.py", run, f"--predictions={tmp_path / 'out.jsonl'}")
    exact = float(re.findall(r"exact (\S+)", scored)[0])
    assert scored.startswith("validation, step ") and exact > 0.8
    predictions = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for prediction, record in zip(predictions, validation, strict=True):
        start = prediction["start"]
        assert record["text"][start : start + len(prediction["answer"])] == prediction["answer"]
    hits = sum(p["answer"].strip() == r["answer"] for p, r in zip(predictions, validation, strict=True))
    assert hits / len(validation) == pytest.approx(exact, abs=1e-4)
    (tmp_path / "own.txt").write_text("".join(f"{record['text']}\n" for record in validation))
    answers = command("-m", "longformer_jax.predict", run, tmp_path / "own.txt").splitlines()
    assert answers == [prediction["answer"].strip() for prediction in predictions]
