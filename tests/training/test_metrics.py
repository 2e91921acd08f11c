"""The log of a run that was killed and goes on, and the curve."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from longformer_jax.errors import InputError
from longformer_jax.training.metrics import MetricsLog, plot_curve, read_metrics


def test_log_goes_on_after_the_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with MetricsLog(tmp_path, step=0, total_steps=30) as log:
        for step in (10, 20):
            log.write("train", step, {"characters": 7 * step, "bpc": 2.0})
        log.write("validation", 20, {"characters": 140, "bpc": 2.5})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"split": "train", "st')  # killed while writing
    with MetricsLog(tmp_path, step=10, total_steps=30) as log:
        log.say("a line")
        log.advance(20)
        log.write("train", 20, {"characters": 140, "bpc": 1.5})
    assert capsys.readouterr().out == "a line\n"
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"split": "train", "step": 10, "characters": 70, "bpc": 2.0},
        {"split": "train", "step": 20, "characters": 140, "bpc": 1.5},
    ]


def test_a_beginning_is_forgotten_by_the_next_one(tmp_path: Path) -> None:
    """What was measured before the first step is kept when a run goes on, not when it starts anew."""
    with MetricsLog(tmp_path, step=0, total_steps=30) as log:
        log.write("validation", 0, {"tokens": 0, "bpc": 9.0})
        log.write("train", 10, {"tokens": 70, "bpc": 8.0})
    before = read_metrics(tmp_path / "metrics.jsonl")
    with MetricsLog(tmp_path, step=10, total_steps=30):
        pass
    assert read_metrics(tmp_path / "metrics.jsonl") == before
    with MetricsLog(tmp_path, step=0, total_steps=30):
        pass
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_the_log_is_not_lost_where_it_cannot_be_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with MetricsLog(tmp_path, step=0, total_steps=30) as log:
        for step in (10, 20):
            log.write("train", step, {"bpc": 2.0})
    path = tmp_path / "metrics.jsonl"
    before, node = path.read_bytes(), path.stat().st_ino
    with MetricsLog(tmp_path, step=20, total_steps=30):
        pass
    assert (path.read_bytes(), path.stat().st_ino) == (before, node)  # nothing to drop, nothing written

    def full(self: Path, *arguments: str, **options: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        MetricsLog(tmp_path, step=10, total_steps=30)
    assert path.read_bytes() == before


def test_tensorboard_has_the_same_numbers(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboardX.proto.event_pb2")
    with MetricsLog(tmp_path, step=0, total_steps=1) as log:
        log.write("train", 5, {"bpc": 2.25})
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, scalars = file.read_bytes(), {}
    while data:  # records: length, its checksum, the event, its checksum
        length = int.from_bytes(data[:8], "little")
        event = events.Event.FromString(data[12 : 12 + length])
        scalars |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        data = data[16 + length :]
    assert scalars == {("train/bpc", 5): 2.25}


def test_curve_needs_no_display(tmp_path: Path) -> None:
    train = {"split": "train", "step": 1, "characters": 10, "bpc": 3.0}
    for records in ([train], [train, train | {"split": "validation"}]):
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        plot_curve(tmp_path, "characters", "bpc", "bits per character")
        assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("screen", ["module://matplotlib_inline.backend_inline", "none"])
def test_curve_where_matplotlib_is_told_a_screen_that_is_not_there(
    tmp_path: Path, run_python: Callable, screen: str
) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"split": "train", "step": 1, "characters": 10, "bpc": 3.0}\n')
    program = (
        "import os, sys; from pathlib import Path; from longformer_jax.training.metrics import plot_curve\n"
        "plot_curve(Path(sys.argv[1]), 'characters', 'bpc', 'bits'); print(os.environ['MPLBACKEND'])"
    )
    result = run_python("-W", "error", "-c", program, tmp_path, MPLBACKEND=screen)
    assert (result.returncode, result.stdout) == (0, f"{screen}\n"), result.stderr
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "line", [b"{", b"null", b"{}", b"\xff\xfe", b"[" * 200_000, b'{"split": "train", "step": "2"}']
)
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"split": "train", "step": 1}\n' + line + b"\n")
    with pytest.raises(InputError, match=r"^line 2 of /.*metrics\.jsonl is damaged"):
        read_metrics(path)


@pytest.mark.parametrize("value", ['"3.0"', "null", "true", "[3.0]"])
def test_a_line_whose_numbers_are_none_is_named(tmp_path: Path, value: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"split": "train", "step": 1, "characters": 10, "bpc": {value}}}\n')
    for use in (
        lambda: plot_curve(tmp_path, "characters", "bpc", "bits per character"),
        lambda: MetricsLog(tmp_path, step=1, total_steps=2, numbers=("characters", "bpc")),
    ):
        with pytest.raises(InputError, match=r"^line 1 of /.*metrics\.jsonl is damaged; expected it as train\.py has"):
            use()
