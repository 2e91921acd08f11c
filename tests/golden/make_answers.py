"""Writes tests/golden/answers.json: made-up answers, and what the official scorers say of them.

python tests/golden/make_answers.py TRIVIAQA HOTPOTQA

TRIVIAQA is a checkout of https://github.com/mandarjoshi90/triviaqa, HOTPOTQA one of https://github.com/hotpotqa/hotpot
(or a directory with its hotpot_evaluate_v1.py).
"""

import contextlib
import importlib
import io
import json
import random
import sys
import tempfile
from pathlib import Path

WORDS = [
    *("the", "a", "an", "The", "A", "AN", "thea", "another", "York", "york", "NEW", "new", "1975", "30s", "1,975"),
    *("3.5", "U.S.", "o'clock", "O’Clock", "‘quoted’", "“quoted”", "`code`", "´acute´", "snake_case", "_"),
    *("__the_", "the-end", "é", "e\u0301", "ÉCOLE", "École", "İstanbul", "i\u0307stanbul", "straße", "STRASSE"),
    *("ΟΔΟΣ", "οδος", "Ǆ", "ﬁn", "K", "東京", "（東京）", "naïve", "…", "—", "–", "£10", "$10", "10%", "\u00a0"),
    *("\u200b", "\u3000", "\t", "\n", "!?", ".", "(a)", "yes", "no", "noanswer", "Yes.", "NO!", "the yes"),
    *("no answer", "Bears", "bears'", "Chicago"),
]  # fmt: skip
EDGES = [
    *("", " ", "the", "a an the", "!", "‘’´`", "yes", "Yes", "YES!", "the yes", "no", "No.", "noanswer"),
    *("NoAnswer", "no answer", "yes no", "a yes", "y-es", "The Beatles", "beatles", "Beatles, The", "the-beatles"),
    *("_beatles_", "“Beatles”", "’beatles", "a\u0301", "İ", "i\u0307", "ΟΔΟΣ", "οδος", "οδοσ", "a.b.c", "abc"),
    *("a b c", "1,000", "1000", "1 000", "\u00a0", "é", "e\u0301"),
]  # fmt: skip


def pairs(rng: random.Random) -> list[tuple[str, str]]:
    found = [(a, b) for a in EDGES for b in EDGES if a <= b or rng.random() < 0.3][::2]
    for _ in range(700):
        truth = [rng.choice(WORDS) for _ in range(rng.randint(0, 5))]
        prediction = [word if rng.random() < 0.8 else rng.choice(WORDS) for word in truth]
        if rng.random() < 0.3:
            rng.shuffle(prediction)
        if rng.random() < 0.3:
            prediction.insert(rng.randint(0, len(prediction)), rng.choice(WORDS))
        joined = [rng.choice((" ", "  ", "-", ", ")).join(words) for words in (prediction, truth)]
        found.append((joined[0].upper() if rng.random() < 0.2 else joined[0], joined[1]))
    return found


def triviaqa(rng: random.Random, scorer, answers: list[str]) -> dict:
    """Questions with several answers, in the official format, and the metrics."""
    truths, predictions = {}, {}
    for number in range(60):
        chosen = rng.sample(answers, rng.randint(1, 5))
        truths[f"q{number}"] = {"NormalizedAliases": chosen}
        if number % 3 == 0:
            truths[f"q{number}"]["HumanAnswers"] = rng.sample(answers, 2)
        if number % 10:
            predictions[f"q{number}"] = rng.choice([*chosen, *answers[:4]])
    metrics = scorer.evaluate_triviaqa(truths, predictions, mute=True)
    return {"truths": truths, "predictions": predictions, "metrics": metrics}


def hotpotqa(rng: random.Random, scorer, answers: list[str]) -> dict:
    """Questions with supporting facts, in the official format, and the metrics."""
    facts = [[title, number] for title in ("Ü", "York", "the") for number in range(3)]
    gold, answer, support = [], {}, {}
    for number in range(60):
        example = {"_id": str(number), "answer": rng.choice(answers), "supporting_facts": rng.sample(facts, 3)}
        gold.append(example)
        if number % 10:
            answer[example["_id"]] = rng.choice([example["answer"], f"the {example['answer']}!", rng.choice(answers)])
        if number % 12:
            found = [*example["supporting_facts"], rng.choice(facts)]
            support[example["_id"]] = rng.sample(found, rng.randint(0, 4))
    predictions = {"answer": answer, "sp": support}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as printed:
        files = [Path(folder) / name for name in ("predictions.json", "gold.json")]
        for file, content in zip(files, (predictions, gold), strict=True):
            file.write_text(json.dumps(content))
        scorer.eval(*map(str, files))
    metrics = json.loads(printed.getvalue().splitlines()[-1].replace("'", '"'))
    return {"examples": gold, "predictions": predictions, "metrics": metrics}


sys.modules.setdefault("ujson", json)  # which HotpotQA's scorer reads its files with
for argument in sys.argv[1:3]:
    sys.path.insert(0, argument)
official = importlib.import_module("evaluation.triviaqa_evaluation")
hotpot = importlib.import_module("hotpot_evaluate_v1")
rng = random.Random(0)
rows = []
for prediction, truth in pairs(rng):
    scores = [float(official.exact_match_score(prediction, truth)), float(official.f1_score(prediction, truth))]
    scores += [float(hotpot.exact_match_score(prediction, truth)), *map(float, hotpot.f1_score(prediction, truth))]
    normalized = [official.normalize_answer(prediction), hotpot.normalize_answer(prediction)]
    rows.append([prediction, truth, *normalized, *scores])
answers = [truth for _, truth, *_ in rows[-200:]] + ["yes", "no", "noanswer"]
content = {"pairs": rows, "triviaqa": triviaqa(rng, official, answers), "hotpotqa": hotpotqa(rng, hotpot, answers)}
lines = ",\n".join(json.dumps(row) for row in rows)
rest = ",\n".join(f'"{name}": {json.dumps(content[name])}' for name in ("triviaqa", "hotpotqa"))
Path(__file__).with_name("answers.json").write_text(f'{{"pairs": [\n{lines}\n],\n{rest}}}\n')
