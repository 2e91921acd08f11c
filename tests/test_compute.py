"""benchmarks/compute.py finds the law that made the figures, context.py scores the same characters at all lengths."""

import math
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import compute, context, long_evaluation, recipe, reviews_text
from longformer_jax import CharLM, CharLMConfig
from longformer_jax.evaluation.protocols import score_overlapping


@pytest.mark.slow
def test_the_law_is_found() -> None:
    law = [math.log(0.9), math.log(40), 0.3, math.log(300), 0.4]
    rng = np.random.default_rng(0)
    measured = [compute.size(compute.experiment(Path("text"), width, steps)) for width, steps in compute.TRAININGS[::2]]
    for row in measured:
        row["bpc"] = float(compute.law(law, row["parameters"], row["characters"]) * math.exp(rng.normal(0, 1e-4)))
    fitted = compute.fit(measured)
    for parameters, characters in ((1e6, 1e7), (4e7, 1e9)):
        expected = 0.9 + 40 / parameters**0.3 + 300 / characters**0.4
        assert compute.law(law, parameters, characters) == pytest.approx(expected)
        assert compute.law(fitted, parameters, characters) == pytest.approx(expected, rel=0.02)


def test_repeated_text_is_worth_less() -> None:
    assert compute.worth(5e7, 9e7) == 5e7
    # Muennighoff et al., section 6: up to four epochs are nearly as good as new, and there is a limit.
    assert 0.9 < compute.worth(4 * 9e7, 9e7) / (4 * 9e7) < 1
    assert compute.worth(1e12, 9e7) == pytest.approx(9e7 * (1 + compute.REPEATS))


@pytest.mark.slow
def test_all_lengths_score_the_same_characters() -> None:
    text = np.random.default_rng(0).integers(0, 256, 33_000, np.uint8)
    short, long = (context.sequences(text, length, 3) for length in (512, 1024))
    assert short.shape == (3, 513) and long.shape == (3, 1025)
    assert np.array_equal(long[:, -513:], short) and np.array_equal(long[-1], text[-1025:])
    config = CharLMConfig(embed_dim=8, num_layers=1, num_heads=2, mlp_dim=8, windows=(8,))
    params = CharLM(config).init(jax.random.key(0), text[None, :8])["params"]
    found = context.scores(config, params, long[1])
    (expected,) = score_overlapping(config, params, long[1], sequence_length=1024, stride=512)
    np.testing.assert_allclose(found * math.log(2), expected.nats, rtol=1e-5)


def test_reviews_of_a_film_stand_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    films = {"train/unsup": ("tt1", "tt2"), "train/pos": ("tt1", "tt3"), "train/neg": ("tt2", "tt2")}
    films |= {"test/pos": ("tt1", "tt3"), "test/neg": ("tt4", "tt4")}
    for part, of in films.items():
        split, label = part.split("/")
        (tmp_path / part).mkdir(parents=True)
        (tmp_path / split / f"urls_{label}.txt").write_text("".join(f"http://imdb.com/title/{film}/\n" for film in of))
        for i, film in enumerate(of):
            (tmp_path / part / f"{i}_7.txt").write_text(f"{film} {part} {i}" if part != "test/neg" else "the same")
    out = tmp_path / "out" / "reviews.txt"
    monkeypatch.setattr("sys.argv", ["reviews_text", str(tmp_path), str(out)])
    reviews_text.main()
    lines = out.read_text().splitlines()
    assert [line for line in lines if line.startswith("tt1")] == [
        "tt1 train/unsup 0",
        "tt1 train/pos 0",
        "tt1 test/pos 0",
    ]
    assert len(lines) == 9 and lines.count("the same") == 1
    order = [line.split()[0] for line in lines]
    assert sum(before != after for before, after in zip(order, order[1:], strict=False)) == 3  # four films, together
    assert "9 reviews of 4 films" in capsys.readouterr().out


def test_long_evaluation_goes_on_and_agrees_with_the_protocol(tmp_path: Path) -> None:
    config = CharLMConfig(embed_dim=8, num_layers=1, num_heads=2, mlp_dim=8, windows=(8,), dtype="bfloat16")
    text = np.random.default_rng(0).integers(0, 256, 130, np.uint8)
    params = CharLM(config).init(jax.random.key(0), text[None, :8])["params"]
    journal, lengths = tmp_path / "journal", {"sequence_length": 64, "stride": 16}
    long_evaluation.measure(config, params, text, journal, 0, **lengths)
    assert not journal.exists()
    for seconds in (1e-9, 60):  # the first is begun at least, or not; the rest follow once each
        long_evaluation.measure(config, params, text, journal, seconds, **lengths)
    records = recipe.read_journal(journal)
    expected = list(score_overlapping(config, params, text, **lengths))
    assert [record["sequence"] for record in records] == list(range(5)) and len(expected) == 5
    nats = [float(np.sum(piece.nats)) for piece in expected]
    np.testing.assert_allclose([record["nats"] for record in records], nats, rtol=1e-5)
    assert "| bfloat16 | 0 | 0 |" in long_evaluation.summary(records)
    both = records + [record | {"dtype": "float32", "nats": record["nats"] + 1.6 * math.log(2)} for record in records]
    assert "difference -0.10000" in long_evaluation.summary(both)
