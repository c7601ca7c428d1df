"""Memory and time of a corpus of millions of pairs: python tests/benchmark/bench_corpus.py.

Writes shards of generated pairs, spools and orders them as a training stage does, and makes
batches the way the trainer asks for them. Memory is RssAnon: what the process holds itself, without
the mapped files, which the operating system drops when it needs the room. `--pairs 50000000` takes
about 8 GB below `--folder`, which are removed at the end.
"""

import argparse
import logging
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import tasks  # noqa: F401 - sets OpenMP's policy before torch starts its threads
from model.backbone.scratch import DecoderSize, new_decoder, train_tokenizer
from model.encoder.encoder import Encoder
from model.encoder.pooling.build import PoolingSettings
from model.training.data.batches import BatchPlan, prepare_orders, rows_folder
from model.training.devices.team import Team
from model.training.settings import TrainingSource, TrainSettings
from tasks.contract.records import EXAMPLE_SCHEMA, write_table
from tasks.training.corpus import open_corpus

SHARD_ROWS = 100_000
TEXTS = 5000
"""Distinct words of the generated pairs; a text is two of them."""

logger = logging.getLogger("bench_corpus")


class Memory:
    """Largest RssAnon seen, by a thread that looks every 50 ms."""

    def __init__(self) -> None:
        self.peak_mb = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            self.peak_mb = max(self.peak_mb, anonymous_mb())

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        self._thread.join()


def anonymous_mb() -> int:
    """MB of memory of this process that no file backs."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) // 1024


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Log the time and the peak memory of a piece of work."""
    memory, started = Memory(), time.monotonic()
    yield
    memory.stop()
    logger.info("%-28s %8.1f s %6d MB", name, time.monotonic() - started, memory.peak_mb)


def words(numbers: np.ndarray, word: str) -> pa.Array:
    """Two numbered words of each number, so that most texts are distinct and few shared."""
    low, high = numbers % TEXTS, numbers // TEXTS
    known = pa.array([f"{word} {number}" for number in range(max(TEXTS, int(high.max()) + 1))])
    return pc.binary_join_element_wise(known.take(pa.array(low)), known.take(pa.array(high)), " ")


def write_pairs(folder: Path, pairs: int, first: int) -> None:
    """Shards of pairs; one row in ten shares its positive with another."""
    row = np.arange(first, first + pairs)
    texts = words(np.where(row % 10 == 0, row // 100 * 10, row), "ответ")
    offsets = pa.array(np.arange(pairs + 1, dtype=np.int32))
    nothing = pa.array(np.zeros(pairs + 1, dtype=np.int32))
    columns = {
        "id": pa.array(row).cast(pa.string()),
        "task": pa.repeat("retrieval", pairs),
        "source": pa.repeat("pairs", pairs),
        "lang": pa.repeat("ru", pairs),
        "query": words(row, "вопрос"),
        "positives": pa.ListArray.from_arrays(offsets, texts),
        "negatives": pa.ListArray.from_arrays(nothing, pa.array([], pa.string())),
        "negative_scores": pa.nulls(pairs, pa.list_(pa.float32())),
        "label": pa.nulls(pairs, pa.string()),
        "score": pa.nulls(pairs, pa.float32()),
    }
    table = pa.table([columns[name] for name in EXAMPLE_SCHEMA.names], schema=EXAMPLE_SCHEMA)
    write_table(table, folder, shard_rows=SHARD_ROWS)


def encoder() -> Encoder:
    """A decoder too small to matter."""
    texts = [f"вопрос {number} ответ {number}" for number in range(TEXTS)]
    size = DecoderSize(
        hidden_size=32, intermediate_size=64, num_layers=1,
        num_heads=2, num_key_value_heads=1, head_dim=16,
    )  # fmt: skip
    tokenizer = train_tokenizer(texts, 4000)
    decoder = new_decoder(size, len(tokenizer), seed=0).model
    return Encoder(decoder, tokenizer, PoolingSettings(kind="mean"), max_length_tokens=64)


def measure(folder: Path, pairs: int, batch_size: int, steps: int) -> None:
    """All phases of a training but the training."""
    settings = TrainSettings(
        max_steps=10**6, batch_size=batch_size, micro_batch_tokens=4096, max_length_tokens=64,
        learning_rate=1e-4, min_learning_rate_share=1.0, warmup_steps=0, weight_decay=0.0,
        gradient_clip_norm=1.0, loss="giga", temperature=0.05, hard_negatives=0,
        margin_from_step=1, matryoshka_dims=(), source_temperature=1.0, precision="fp32",
        log_every_steps=1, checkpoint_every_steps=10**6, seed=0,
    )  # fmt: skip
    tiny, team, steps_of = encoder(), Team(), np.zeros(settings.max_steps, dtype=int)
    logger.info("before anything is read %16s %9d MB", "", anonymous_mb())
    examples = sorted(folder.glob("examples-*"))
    with phase("spool to Arrow files"):
        tables, _ = open_corpus(folder / "corpora", ["pairs"], examples, None)
    table = tables["pairs"]["retrieval"]
    assert table.num_rows == pairs
    source = TrainingSource("pairs", "retrieval", "вопрос: ", "", table, 1.0)
    with phase("groups and first order"):
        prepare_orders([source], settings, folder, team)
    with phase("plan and first batch"):
        plan = BatchPlan([source], steps_of, settings, tiny, rows_folder(folder, team))
        plan.batch(1)
    with phase(f"{steps} batches of {batch_size}"), plan.prepared_ahead():
        for step in range(1, steps + 1):
            plan.batch(step)
    with phase("plan again, batch 1000"):
        plan = BatchPlan([source], steps_of, settings, tiny, rows_folder(folder, team))
        plan.batch(1000)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    logger.info("%.1f GB on disk", size / 1e9)


def main() -> None:
    """Write, measure, remove."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5_000_000)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--folder", type=Path, default=None, help="where to work; a temporary one")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        started = time.monotonic()
        for number, first in enumerate(range(0, options.pairs, 20 * SHARD_ROWS)):
            part = min(20 * SHARD_ROWS, options.pairs - first)
            write_pairs(Path(name) / f"examples-{number:03d}", part, first)
        logger.info("%d pairs written in %.0f s", options.pairs, time.monotonic() - started)
        measure(Path(name), options.pairs, options.batch_size, options.steps)


if __name__ == "__main__":
    main()
