"""The coreference task: its files, rows of words and mentions, the way to perfect scores and back; and it learns."""

import collections
import itertools
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.normalizers import Replace

from longformer_jax import InputError, LongformerConfig
from longformer_jax.data.packing import Packer
from longformer_jax.evaluation import evaluate
from longformer_jax.scripts.page import page
from longformer_jax.scripts.predict import _read
from longformer_jax.scripts.predict import run as predict
from longformer_jax.tasks.conll import chain_columns, read_documents
from longformer_jax.tasks.coreference import Coreference
from longformer_jax.tasks.coreference_model import Antecedents
from longformer_jax.tasks.features import FeatureSet, make_features
from longformer_jax.training import OptimizerConfig, TaskDataConfig, TaskExperiment, TaskPhase, train
from tests.data.tiny_tokenizer import tiny_tokenizer
from tests.tasks.sets import write_records

TASK = Coreference(
    max_span_width=24, spans_per_token=2.0, max_antecedents=32, hidden_size=32, feature_size=8, dropout_rate=0.0
)
MODEL = LongformerConfig(
    vocab_size=500,
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=130,
    attention_window=16,
    initializer_range=0.2,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
# Name, speaker of each sentence, sentences in which [k … ] is a mention of entity k.
STORIES = [
    (
        "bc/town/00/town_0000",
        ["Ann", "Bob", "Ann"],
        [
            "[0 Anna ] saw [1 the dog of [0 her ] mother ] .",
            "[1 It ] barked at [2 Bob ] .",
            "[2 I ] ran , said [2 he ] .",
        ],
    ),
    (
        "nw/sea/00/sea_0001",
        ["-", "-"],
        ["[0 The captain ] lost [1 [0 his ] ship ] .", "Nobody found [1 it ] , and [0 the captain ] wept ."],
    ),
    ("wb/none/00/none_0002", ["-"], ["Nothing is said twice ."]),
]


def parsed(sentence: str, offset: int) -> tuple[list[str], list[tuple[int, int, int]]]:
    """The words of a sentence, and the first word, the last one and the entity of each mention."""
    words: list[str] = []
    mentions, begun = [], []
    for part in sentence.split():
        if part.startswith("["):
            begun.append((int(part[1:]), offset + len(words)))
        elif part == "]":
            entity, first = begun.pop()
            mentions.append((first, offset + len(words) - 1, entity))
        else:
            words.append(part)
    return words, mentions


def story(number: int) -> dict[str, Any]:
    name, speakers, sentences = STORIES[number]
    words: list[str] = []
    numbers, of_word, clusters = [], [], collections.defaultdict(list)
    for i, (sentence, speaker) in enumerate(zip(sentences, speakers, strict=True)):
        found, mentions = parsed(sentence, len(words))
        words += found
        numbers += [i] * len(found)
        of_word += [speaker] * len(found)
        for first, last, entity in mentions:
            clusters[entity].append([first, last])
    ordered = sorted(sorted(cluster) for cluster in clusters.values())
    return {
        "id": f"{name}_000", "words": words, "sentences": numbers, "speakers": of_word, "genre": name[:2],
        "clusters": ordered,
    }  # fmt: skip


def conll() -> str:
    text = ""
    for number, (name, _, _) in enumerate(STORIES):
        example = story(number)
        text += f"#begin document ({name}); part 000\n"
        columns = chain_columns(len(example["words"]), example["clusters"])
        for i, (word, chains) in enumerate(zip(example["words"], columns, strict=True)):
            if i and example["sentences"][i] != example["sentences"][i - 1]:
                text += "\n"
            text += f"{name} 0 {i} {word} X * - - - {example['speakers'][i]} * {chains}\n"
        text += "\n#end document\n"
    return text


def written(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for split in ("train", "dev", "test"):
        (folder / f"{split}.english.v4_gold_conll").write_text(conll())
    return folder


def read(path: Path, split: str = "train") -> list[dict[str, Any]]:
    return list(TASK.read(path, split, collections.Counter()))


def read_stories(path: Path, split: str = "train") -> list[dict[str, Any]]:
    """Examples of CoNLL-2012 without what the file says beside; that is the document as it stands there."""
    found = read(path, split)
    assert "".join(example.pop("conll") for example in found) == conll()
    return found


def features(examples: list[dict[str, Any]], length: int = 128) -> FeatureSet:
    return make_features(TASK, examples, Packer.of(tiny_tokenizer(), length), "stories")


# ---- Reading ---------------------------------------------------------------------------------------------------------


def test_every_kind_of_file(tmp_path: Path) -> None:
    expected = [story(number) for number in range(3)]
    assert expected[0]["clusters"][0] == [[0, 0], [5, 5]]
    path = written(tmp_path / "minimized")
    for split in ("train", "validation", "test"):
        assert read_stories(path, split) == expected
    # OntoNotes' folders, with automatic annotation and other languages beside.
    data = tmp_path / "ontonotes" / "v4" / "data" / "development" / "data"
    other = conll().replace("Anna", "Otto")
    for language, kind in (("english", "gold"), ("english", "auto"), ("chinese", "gold"), ("arabic", "auto")):
        annotations = data / language / "annotations" / "bc"
        annotations.mkdir(parents=True, exist_ok=True)
        text = conll() if (language, kind) == ("english", "gold") else other
        (annotations / f"town_0000.v4_{kind}_conll").write_text(text)
    assert read_stories(tmp_path / "ontonotes", "validation") == expected
    for name in ("train.chinese.v4_gold_conll", "train.english.v4_auto_conll"):
        (path / name).write_text(other)
    assert read_stories(path) == expected
    (path / "train.english.v4_gold_conll").unlink()
    assert [file.name for file in TASK.files(path, "train")] == ["train.chinese.v4_gold_conll"]
    with pytest.raises(InputError, match=r"^data.path is '.*', which has no train; expected train.english.v4_"):
        read(tmp_path / "ontonotes")
    records = []
    for example in expected:
        sentences = [[] for _ in range(example["sentences"][-1] + 1)]
        speakers: list[list[str]] = [[] for _ in sentences]
        for word, speaker, number in zip(example["words"], example["speakers"], example["sentences"], strict=True):
            sentences[number].append(word)
            speakers[number].append(speaker)
        fields = {name: example[name] for name in ("id", "genre", "clusters")}
        records.append(fields | {"sentences": sentences, "speakers": speakers})
    (tmp_path / "own").mkdir()
    write_records(tmp_path / "own" / "train.jsonl", records)
    assert read(tmp_path / "own") == expected
    nothing = {"id": None, "genre": None, "speakers": None, "clusters": None}
    others = [nothing, {"doc_key": "nw/x"}, {"id": "bc/y", "genre": "tc"}]
    write_records(tmp_path / "own" / "train.jsonl", [{"sentences": [["A", "dog"]], **other} for other in others])
    found = [*TASK.read_own(tmp_path / "own" / "train.jsonl")]
    assert [(example["id"], example["genre"], example["clusters"]) for example in found] == [
        ("1", "1", None), ("nw/x", "nw", None), ("bc/y", "tc", None),
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"^document '1' of train.jsonl has no clusters; expected them"):
        read(tmp_path / "own")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sentences": "a dog"}, "sentences is 'a dog'; expected lists of texts"),
        ({"sentences": [["a dog"]]}, r"sentences is \[\['a dog'\]\]; expected words without spaces"),
        ({"sentences": [["dog\n"]]}, r"sentences is \[\['dog\\n'\]\]; expected words without spaces"),
        ({"clusters": [[[0, 3]]]}, r"clusters is \[\[\[0, 3\]\]\]; expected lists of \[first, last\], words 0 to 2"),
        ({"clusters": [[1]]}, r"clusters is \[\[1\]\]; expected lists of"),
        ({"speakers": [["x"]]}, r"speakers is \[\['x'\]\]; expected one for each word, by sentences"),
        ({"sentences": [[]]}, r"sentences is \[\[\]\]; expected words without spaces, at least one"),
        ({"id": ""}, "id is ''; expected a text, as it names the document in files of CoNLL-2012"),
    ],
)
def test_bad_records(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_records(tmp_path / "train.jsonl", [{"sentences": [["A", "dog", "."]], **changes}])
    with pytest.raises(InputError, match=f"^record 1 of '.*': {message}"):
        list(TASK.read_own(tmp_path / "train.jsonl"))


def test_sentences_without_words(tmp_path: Path) -> None:
    record = {"sentences": [["A", "b"], [], ["c"]], "speakers": [["x", "y"], [], ["z"]]}
    (example,) = TASK.read_own(write_records(tmp_path / "x.jsonl", [record]))
    assert (example["words"], example["speakers"]) == (["A", "b", "c"], ["x", "y", "z"])
    assert example["sentences"] == [0, 0, 2]


def test_files_of_conll_are_no_plain_text(tmp_path: Path) -> None:
    """By their name or by their first line; nothing but a sentence is made of one as text."""
    for name, content, expected in (
        ("dev_conll", "", True),
        ("dev.v4_gold_conll.gz", "", True),
        ("dev.txt", conll(), True),
        ("dev", "\ufeff" + conll(), True),
        ("blank", "\n\n" + conll(), True),
        ("story", "Anna saw her dog.", False),
        ("story.txt", "The #begin document (x)", False),
        ("missing", None, False),
    ):
        if content is not None:
            (tmp_path / name).write_text(content)
        assert TASK.is_own(tmp_path / name) is expected, name
        if content and expected:
            assert [*_read(TASK, str(tmp_path / name), whole=False)] == [*TASK.read_own(tmp_path / name)]
            with pytest.raises(InputError, match="^.*/(dev|blank).* begins with #begin document; expected plain text"):
                next(_read(TASK, str(tmp_path / name), whole=True))


# ---- Rows and answers ------------------------------------------------------------------------------------------------


def spans_as_text(made: FeatureSet, number: int, text: str) -> list[str]:
    row = made.row(number)
    words = text.split()
    return [
        " ".join(words[row["word"][a] : row["word"][b] + 1])
        for a, b in zip(row["mention_starts"], row["mention_ends"], strict=True)
    ]


def test_rows(tmp_path: Path) -> None:
    examples = read(written(tmp_path / "x"))
    made = features(examples)
    assert made.counts == {} and len(made) == 3
    tokens = tiny_tokenizer()
    for number, example in enumerate(examples):
        row = made.row(number)
        assert tokens.decode([*row["input_ids"][1:-1]]).split() == " ".join(example["words"]).split()
        for word in range(len(example["words"])):
            places = np.flatnonzero(row["word"] == word)
            assert tokens.decode([*row["input_ids"][places]]).strip() == example["words"][word]
            assert row["may_start"][places].tolist() == [True] + [False] * (len(places) - 1)
            assert row["may_end"][places].tolist() == [False] * (len(places) - 1) + [True]
            assert {*row["sentence"][places]} == {example["sentences"][word]}
            assert {*row["speaker"][places]} == {[*dict.fromkeys(example["speakers"])].index(example["speakers"][word])}
    assert spans_as_text(made, 0, " ".join(examples[0]["words"])) == [
        "Anna", "her", "the dog of her mother", "It", "Bob", "I", "he",
    ]  # fmt: skip
    assert [made.row(n)["genre"][0] for n in range(3)] == [0, 3, 6]


def test_long_documents_become_several_rows(tmp_path: Path) -> None:
    (first, *_) = examples = read(written(tmp_path / "x"))
    made = features(examples[:1], 48)
    assert made.counts == {"in parts of at most 48 tokens": 1} and max(made.lengths) <= 48
    words = [word for number in range(len(made)) for word in made.row(number)["word"] if word >= 0]
    assert sorted({*words}) == list(range(len(first["words"]))) and words == sorted(words)
    for number in range(len(made)):  # whole sentences, and no mention without another one
        row = made.row(number)
        inside = {*row["word"][row["word"] >= 0]}
        assert all(first["sentences"][w] != first["sentences"][w - 1] for w in [min(inside)] if w)
        counts = collections.Counter(row["mention_clusters"].tolist())
        assert all(count > 1 for count in counts.values())
    with pytest.raises(InputError, match="^sequence_length is 6; expected more, as a word has "):
        features(examples[:1], 6)


def test_a_word_that_the_tokenizer_does_not_know(tmp_path: Path) -> None:
    """A document of no other words has a row without tokens."""
    tokenizer = Tokenizer.from_str(tiny_tokenizer().to_str())
    tokenizer.normalizer = Replace("\u200b", "")
    records = [{"sentences": [["\u200b"]]}, {"sentences": [["A", "\u200b", "dog"]]}]
    examples = [*TASK.read_own(write_records(tmp_path / "x.jsonl", records))]
    made = make_features(TASK, examples, Packer.of(tokenizer, 64), "words")
    for number in range(len(made)):
        row = made.row(number)
        names = ("input_ids", "may_start", "may_end", "sentence", "speaker", "word")
        assert len({len(row[name]) for name in names}) == 1


def test_mentions_that_are_named_again(tmp_path: Path) -> None:
    """Each counts once, in the entity where it is first, as in the scores; there is room for one for each token."""
    clusters = [[[0, 0], [1, 1]] * 300, [[1, 1], [0, 1], [2, 2]], [[2, 2]] * 9]
    record = {"sentences": [["a", "b", "c"]], "clusters": clusters}
    made = features(list(TASK.read_own(write_records(tmp_path / "x.jsonl", [record]))))
    row = made.row(0)
    assert spans_as_text(made, 0, "a b c") == ["a", "b", "a b", "c"]
    assert row["mention_clusters"].tolist() == [0, 0, 1, 1]
    assert made.batch([0], 128, TASK.targets)["mention_starts"].shape == (1, 128)
    words = list("abcdefghij")
    record = {"sentences": [words], "clusters": [[[i, j] for j in range(10) for i in range(j + 1)]]}
    with pytest.raises(InputError, match="^clusters of '1' have 55 mentions in a row of .* tokens; expected at"):
        features(list(TASK.read_own(write_records(tmp_path / "x.jsonl", [record]))))


def gold(row: dict[str, np.ndarray]) -> Antecedents:
    """What a perfect model finds in a row."""
    mentions = sorted(zip(row["mention_starts"], row["mention_ends"], row["mention_clusters"], strict=True))
    K = len(mentions) + 1  # one that only fills up
    scores, antecedents = np.full((K, K + 1), -9.0), np.zeros((K, K), int)
    scores[:, 0] = 0
    for i, (_, _, entity) in enumerate(mentions):
        before = [j for j in range(i) if mentions[j][2] == entity]
        if before:
            antecedents[i, 0], scores[i, 1] = before[-1], 9.0
    starts, ends = ([int(m[k]) for m in mentions] + [0] for k in (0, 1))
    arrays = starts, ends, np.arange(K) < K - 1, np.zeros(K), antecedents, scores
    return Antecedents(*(jnp.asarray(array)[None] for array in arrays))


def test_the_gold_round_trip(tmp_path: Path) -> None:
    examples = read(written(tmp_path / "x"))
    made = features(examples)
    predictions = []
    for number, example in enumerate(made.examples):
        row = made.row(number)
        output = jax.tree.map(lambda x: np.asarray(x)[0], TASK.outputs(gold(row), {}))
        predictions.append(TASK.decode(example, [row], [output]))
    assert [prediction["clusters"] for prediction in predictions] == [example["clusters"] for example in examples]
    assert TASK.score(predictions, made.examples)["conll_f1"] == 1.0
    assert TASK.describe(predictions[1]) == "The captain = his = the captain\this ship = it"
    assert TASK.describe(predictions[2]) == "no coreference"
    shown = page([TASK.marked(examples[1], predictions[1])])
    assert re.sub(r' style="[^"]*"', "", shown.partition("<article>")[2].partition("</article>")[0]) == (
        '<mark class="entity">The captain</mark><sub>1</sub> lost <mark class="entity">his</mark><sub>1</sub>'
        '<mark class="entity"> ship</mark><sub>2</sub> .\n'
        'Nobody found <mark class="entity">it</mark><sub>2</sub> , and <mark class="entity">the captain</mark>'
        "<sub>1</sub> wept ."
    )
    assert len(set(re.findall(r"hsl\(\d+", shown))) == 2
    TASK.write_predictions(tmp_path / "out.conll", predictions, made.examples)
    # Entities are numbered anew; all else is as in the file.
    assert (tmp_path / "out.conll").read_text() == conll()
    again = list(TASK.read_own(write_records(tmp_path / "out.jsonl", predictions)))
    kept = "id", "words", "sentences", "clusters"
    assert [[x[name] for name in kept] for x in again] == [[x[name] for name in kept] for x in examples]


def test_what_is_found_in_several_rows_and_in_none(tmp_path: Path) -> None:
    """Each row has its own entities, in words of the document; a document without words is one of the predictions."""
    text = "#begin document (none); part 000\n#end document\n"
    (tmp_path / "file.conll").write_text(conll() + text)
    examples = list(TASK.read_own(tmp_path / "file.conll"))
    assert [len(example["words"]) for example in examples] == [19, 15, 5, 0]
    made = features(examples, 48)
    predictions = []
    for number, example in enumerate(made.examples):
        rows = [made.row(int(row)) for row in np.flatnonzero(made.owners == number)]
        outputs = [jax.tree.map(lambda x: np.asarray(x)[0], TASK.outputs(gold(row), {})) for row in rows]
        predictions.append(TASK.decode(example, rows, outputs))
        words = [{*row["word"].tolist()} for row in rows]
        parts = [[m for m in cluster if m[0] in of_row] for of_row in words for cluster in example["clusters"]]
        assert predictions[-1]["clusters"] == sorted(part for part in parts if len(part) > 1)
    assert [*np.bincount(made.owners, minlength=4)] == [2, 2, 1, 0]
    assert predictions[0]["clusters"] != story(0)["clusters"]
    assert 0.5 < TASK.score(predictions, made.examples)["conll_f1"] < 1
    TASK.write_predictions(tmp_path / "out.conll", predictions, made.examples)
    assert (tmp_path / "out.conll").read_text().endswith(text)


def test_predictions_differ_in_the_last_column_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever the name of the document and the part, and whatever else the file says."""
    text = "#begin document (story_12); part 003\nx 3  0 A  nn\t7 (4)  \nx 3 1 dog nn 7 -\n\nx 3 0 It prp - (4)\n"
    text += "#end document\n"
    text += text.replace(" part 003", "")
    (tmp_path / "in.conll").write_text(text)
    examples = list(TASK.read_own(tmp_path / "in.conll"))
    assert [example["id"] for example in examples] == ["story_12_003", "story_12"]
    made = [{**example, "clusters": [[[0, 1], [2, 2]]]} for example in examples]
    TASK.write_predictions(tmp_path / "out.conll", made, examples)
    expected = text.replace("7 (4) ", "7 (0 ").replace("7 -", "7 0)").replace("- (4)", "- (0)")
    assert (tmp_path / "out.conll").read_text() == expected
    # Several files, of which one ends within its last line.
    (tmp_path / "in.conll").write_text(text.removesuffix("\n"), newline="")
    (tmp_path / "other.conll").write_text(text.replace("\n", "\r\n"), newline="")
    examples = [example for name in ("in", "other") for example in TASK.read_own(tmp_path / f"{name}.conll")]
    TASK.write_predictions(tmp_path / "out.conll", [{**e, "clusters": [[[0, 1], [2, 2]]]} for e in examples], examples)
    assert (tmp_path / "out.conll").read_bytes().decode() == expected + expected.replace("\n", "\r\n")
    # JSON lines have no such file: five columns, and a name that ends at no space. The official scorer splits lines at
    # tabs alone, and takes whatever looks like it in the last part for coreference.
    own = {"id": "a (b)_7", "words": ["A", "(1998)", "It"], "sentences": [0, 0, 1]}
    TASK.write_predictions(tmp_path / "own.conll", [{**own, "clusters": [[[0, 1], [1, 2]]]}], [own])
    assert (tmp_path / "own.conll").read_text() == (
        "#begin document (a%20%28b%29_7); part 000\na%20%28b%29_7\t0\t0\tA\t(0\na%20%28b%29_7\t0\t1\t(1998)\t0)\n\n"
        "a%20%28b%29_7\t0\t0\tIt\t-\n\n"
        "#end document\n"
    )
    assert caplog.messages == ["1 mention left out of own.conll, as each crosses another one of its entity"]


def test_plain_text_stays_as_it_was_written() -> None:
    text = "He's  Anna’s; they don't know Zoe\u0301\nwell - 1,000.5% of it can’t.  'So?' said DOGS’. It's"
    words = "He 's Anna 's ; they do n't know Zo\xe9 well - 1,000.5 % of it ca n't . ' So ? ' said DOGS ' . It 's"
    example = TASK.from_text(text, "file")
    assert example["words"] == words.split(" ")
    written = [text[start:end] for start, end in example["places"]]
    assert (written[3], written[9]) == ("’s", "Zoe\u0301") and "".join(written) == "".join(text.split())
    made = features([example])
    row = made.row(0)
    he, anna, end = (int(np.flatnonzero(row["word"] == word)[-1]) for word in (0, 2, 3))
    output = {"starts": [he, anna], "ends": [he, end], "antecedents": [-1, 0], "diverged": False}
    prediction = TASK.decode(made.examples[0], [row], [output])
    assert prediction["mentions"] == [["He", "Anna’s"]] and prediction["characters"] == [[[0, 2], [6, 12]]]
    marked = TASK.marked(example, prediction)
    assert marked.text == text and marked.spans == [(0, 2, "entity 1"), (6, 12, "entity 1")]


def test_full_stops_of_names_end_no_sentence() -> None:
    text = "Mr. Smith met Prof. J. K. Rowe in U.S. and A... So did I. He -- at 5 p.m., he -- left (No?) Dr. X. Go! So?"
    example = TASK.from_text(text, "file")
    sentences: dict[int, list[str]] = {}
    for word, number in zip(example["words"], example["sentences"], strict=True):
        sentences.setdefault(number, []).append(word)
    assert [" ".join(words) for words in sentences.values()] == [
        "Mr. Smith met Prof. J. K. Rowe in U.S. and A ...", "So did I .", "He -- at 5 p.m. , he -- left ( No ? )",
        "Dr. X. Go !", "So ?",
    ]  # fmt: skip


@pytest.mark.slow
def test_what_a_model_that_has_diverged_says() -> None:
    """Not that there is no coreference."""
    (example,) = [{**story(2), "clusters": None}]
    made = features([example])
    row = made.row(0)
    head, batch = TASK.head(MODEL), {name: jnp.asarray(x)[None] for name, x in row.items() if name != "word"}
    inputs = TASK.inputs(batch, MODEL, 128)
    params = jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan), jax.eval_shape(head.init, jax.random.key(0), **inputs))
    output = head.apply(params, **inputs)
    empty = {name: jnp.full((1, 4), -1) for name in TASK.targets}
    assert jnp.isnan(TASK.loss(output, empty)).all()
    with pytest.raises(InputError, match="^the scores of document 'wb/none/00/none_0002_000' are no numbers; "):
        TASK.decode(example, [row], [jax.tree.map(lambda x: np.asarray(x)[0], TASK.outputs(output, {}))])


# ---- Training --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_learns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The stories by heart, by a tiny model from random weights."""
    config = TaskExperiment(
        model=MODEL,
        task=TASK,
        phases=(TaskPhase(sequence_length=128, learning_rate=1e-3, batch_size=3, steps=120),),
        lengths=(128,),
        eval_interval=120,
        checkpoint_interval=120,
        data=TaskDataConfig(path=str(written(tmp_path / "stories")), cache_dir=str(tmp_path / "cache")),
        optimizer=OptimizerConfig(clip_norm=1.0, decay="linear", warmup_steps=5, head_factor=3.0),
        log_interval=20,
    )
    train(config, tmp_path / "run")
    out = tmp_path / "out.conll"
    metrics = evaluate(tmp_path / "run", split="test", predictions=out).metrics
    assert metrics["conll_f1"] >= 0.99
    assert [document.clusters for document in read_documents(out)] == [
        [[tuple(mention) for mention in cluster] for cluster in story(number)["clusters"]] for number in range(3)
    ]
    text = "The captain lost his ship. Nobody found it, and the captain wept."
    (tmp_path / "text.txt").write_text(text)
    capsys.readouterr()
    arguments = [f"--workdir={tmp_path / 'run'}", "--whole", "--json", f"--html={tmp_path / 'page.html'}"]
    predict([*arguments, str(tmp_path / "text.txt")])
    found = json.loads(capsys.readouterr().out)
    assert (
        " ".join(itertools.chain(*found["sentences"]))
        == "The captain lost his ship . Nobody found it , and the captain wept ."
    )
    assert found["mentions"] == [["The captain", "his", "the captain"], ["his ship", "it"]]
    shown = (tmp_path / "page.html").read_text()
    assert shown.count('<mark class="entity"') == 5
    assert re.sub("<[^>]*>", "", re.sub("<sub>.*?</sub>", "", shown.partition("<article>")[2])).strip() == text
