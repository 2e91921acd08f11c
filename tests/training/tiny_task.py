"""A classification experiment small enough to compile in seconds, and the documents that it learns."""

import dataclasses
import random
from pathlib import Path

from longformer_jax import LongformerConfig
from longformer_jax.tasks import Task
from longformer_jax.tasks.classification import TextClassification
from longformer_jax.tasks.coreference import Coreference
from longformer_jax.tasks.hotpotqa import HotpotQA
from longformer_jax.tasks.triviaqa import TriviaQA
from longformer_jax.tasks.wikihop import WikiHop
from longformer_jax.training import OptimizerConfig, TaskDataConfig, TaskExperiment, TaskPhase
from tests.data.tiny_tokenizer import WORDS, tiny_tokenizer
from tests.tasks.sets import write_records

# Dropout, so that randomness matters; one length, so that one step is compiled.
CONFIG = TaskExperiment(
    model=LongformerConfig(
        vocab_size=330,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=34,
        attention_window=8,
        initializer_range=0.2,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.0,
    ),
    task=TextClassification(labels=("bad", "good"), positive_label="good"),
    phases=(TaskPhase(sequence_length=32, learning_rate=1e-2, batch_size=8, epochs=3),),
    lengths=(32,),
    optimizer=OptimizerConfig(clip_norm=1.0, warmup_steps=2),
    log_interval=3,
)
# Steps of an epoch: ceil(45 / 8).
STEPS = 6
TASKS = (
    CONFIG.task,
    WikiHop(max_pieces=2, max_candidates=3, max_global_tokens=8),
    TriviaQA(max_question_tokens=6),
    HotpotQA(max_question_tokens=6, max_paragraphs=2, max_sentences=3),
    Coreference(max_span_width=4, hidden_size=8, feature_size=2, max_antecedents=5),
)


def of_task(task: Task) -> TaskExperiment:
    """The experiment with another task, of a few steps."""
    phase = TaskPhase(sequence_length=32, learning_rate=1e-2, batch_size=8, steps=4)
    return dataclasses.replace(CONFIG, task=task, phases=(phase,), lengths=None)


def with_data(folder: Path, config: TaskExperiment = CONFIG) -> TaskExperiment:
    """The experiment on documents half of whose words tell the label, written to `folder` unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tokenizer.json").exists():
        tiny_tokenizer().save(str(folder / "tokenizer.json"))
        rng = random.Random(0)
        for split, count in (("train", 45), ("validation", 13), ("test", 10)):
            documents = [
                {
                    "id": f"{split}{i}",
                    "label": ("bad", "good")[i % 2],
                    "text": " ".join(
                        rng.choices([("dog", "jam")[i % 2], *WORDS[:6]], [6] + [1] * 6, k=rng.randint(4, 30))
                    ),
                }
                for i in range(count)
            ]
            write_records(folder / f"{split}.jsonl", documents)
    data = TaskDataConfig(
        path=str(folder), tokenizer=str(folder / "tokenizer.json"), cache_dir=str(folder.parent / "cache")
    )
    return dataclasses.replace(config, data=data)


def by_heart(
    task: Task, path: Path, cache: Path, *, length: int, steps: int, learning_rate: float = 5e-3
) -> TaskExperiment:
    """One narrow layer that learns a few examples by heart, with a tokenizer of its own."""
    return TaskExperiment(
        model=LongformerConfig(
            vocab_size=1000,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=length + 2,
            attention_window=32,
            initializer_range=0.2,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        task=task,
        phases=(TaskPhase(sequence_length=length, learning_rate=learning_rate, batch_size=8, steps=steps),),
        lengths=(length,),
        eval_interval=steps,
        checkpoint_interval=steps,
        data=TaskDataConfig(path=str(path), cache_dir=str(cache)),
        optimizer=OptimizerConfig(clip_norm=1.0, decay="linear", warmup_steps=5),
        log_interval=20,
    )
