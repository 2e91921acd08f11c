"""TriviaQA learnt by heart by a tiny model from random weights: features, loss, decoding and metric close the loop."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from longformer_jax import InputError, load_task
from longformer_jax.evaluation import evaluate
from longformer_jax.scripts.predict import run as predict
from longformer_jax.tasks.answers import triviaqa_score
from longformer_jax.tasks.triviaqa import TriviaQA
from longformer_jax.training import TaskExperiment, train
from tests.tasks import sets
from tests.tasks.sets import SHARED
from tests.training.tiny_task import by_heart

SAMPLE = SHARED / "triviaqa-sample.tgz"
LENGTH = 128


def experiment(path: Path, cache: Path, length: int, steps: int) -> TaskExperiment:
    return by_heart(TriviaQA(), path, cache, length=length, steps=steps, learning_rate=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("domain", ["wikipedia", "web"])
@pytest.mark.skipif(not SAMPLE.is_file(), reason="needs the sample of TriviaQA")
def test_it_learns_the_sample(tmp_path: Path, domain: str) -> None:
    """All questions, whose documents' first 4,096 tokens answer them: the ceiling is 1."""
    config = experiment(SAMPLE, tmp_path / "cache", 4096, 30)
    train(dataclasses.replace(config, task=TriviaQA(domain=domain)), tmp_path / "run")
    result = evaluate(tmp_path / "run", split="train")
    assert (result.metrics["exact_match"], result.metrics["f1"]) == (1.0, 1.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a run on the made-up set, which is beside it."""
    folder = tmp_path_factory.mktemp("triviaqa")
    train(experiment(sets.triviaqa(folder / "data"), folder / "cache", LENGTH, 30), folder / "run")
    return folder / "run"


def texts(run: Path) -> list[dict[str, Any]]:
    return list(TriviaQA().read_own(run.parent / "data" / "qa" / "wikipedia-train.json"))


def test_it_learns_the_made_up_set(run: Path, tmp_path: Path) -> None:
    result = evaluate(run, split="train", predictions=tmp_path / "predictions.json")
    assert (result.metrics["exact_match"], result.metrics["f1"]) == (1.0, 1.0)
    answers = json.loads((tmp_path / "predictions.json").read_text())
    assert answers.keys() == {"tc_1", "tc_2"} and answers["tc_2"] == "İzgür"
    own = evaluate(run, data=str(run.parent / "data" / "qa" / "wikipedia-train.json"))
    assert own.metrics == pytest.approx(result.metrics)


def test_the_test_has_no_answers(run: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="^split is 'test', which has no labels; expected labels, or --predictions=FILE"
    ):
        evaluate(run, split="test")
    assert evaluate(run).split == "validation"
    result = evaluate(run, split="test", predictions=tmp_path / "predictions.json")
    assert result.metrics == {} and json.loads((tmp_path / "predictions.json").read_text()).keys() == {"tc_1"}
    verified = evaluate(run, split="verified")
    assert verified.what.startswith("1 of ") and verified.metrics["exact_match"] == 1.0


def test_several_documents_are_as_one_at_a_time(run: Path) -> None:
    single = load_task(run, batch_size=1)
    together = load_task(run).predict(texts(run))
    for example, prediction in zip(texts(run), together, strict=True):
        alone = [
            single({"question": example["question"], "text": text})[0] for text in example["texts"] if text.strip()
        ]
        best = max(alone, key=lambda found: found["score"])
        assert prediction["score"] == pytest.approx(best["score"], abs=1e-3)
        same = ("answer", "start", "end", "sentence")
        assert [prediction[name] for name in same] == [best[name] for name in same]


def test_a_question_and_a_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = texts(run)[0]
    file = tmp_path / "tolk.md"
    file.write_text(example["texts"][1], encoding="utf-8")
    arguments = [f"--workdir={run}", f"--question={example['question']}", str(file)]
    (expected,) = load_task(run)({"question": example["question"], "text": example["texts"][1]})
    assert triviaqa_score(expected["answer"], example["answers"]) == (1.0, 1.0)
    assert expected["sentence"].startswith("Anna Maria Tolk (1570") and expected["sentence"].endswith("an engineer.")
    predict(arguments)
    line = f"{expected['answer']}\t{expected['score']:.4f}\t{expected['sentence']}\n"
    assert capsys.readouterr().out == line
    page = tmp_path / "page.html"
    predict([*arguments, "--json", f"--html={page}"])
    text = re.sub("<[^>]*>", "", page.read_text().partition("<article>")[2].partition("</article>")[0])
    assert text == example["texts"][1]
    (shown,) = re.findall(r'<mark id="answer1" class="answer sentence">(.*?)</mark>', page.read_text())
    assert shown == expected["answer"]
    named = {"id": str(file), "document": str(file)}
    assert json.loads(capsys.readouterr().out) == expected | named
    for bad, message in (
        (
            [f"--workdir={run}", str(run / "config.json"), "--whole"],
            "has no question, which task 'triviaqa' needs; exp",
        ),
        ([f"--workdir={run}", "--question= ", str(file)], "question is empty; expected a question"),
    ):
        with pytest.raises(SystemExit) as stopped:
            predict(bad)
        assert stopped.value.code == 2 and message in capsys.readouterr().err
    for bad in ({"question": "Who?"}, {"question": "Who?", "text": 5}, 7):
        with pytest.raises(
            InputError, match='^text 1 is .*; expected a text, or {"question": a text, "text": a text}$'
        ):
            load_task(run)([bad])  # pyrefly: ignore[bad-argument-type]
    with pytest.raises(
        InputError, match="^text 1 has no question, which task 'triviaqa' needs; expected one beside th"
    ):
        load_task(run)("A text.")
