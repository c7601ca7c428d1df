"""Generates the sample corpus: `python -m infra.sample.generate [OUT_DIR]`.

Replaces OUT_DIR/train and OUT_DIR/benchmark; both are the same bytes on every run.
"""

import argparse
import logging
import shutil
from pathlib import Path

from infra.sample.benchmark import BenchmarkWriter, Configs
from infra.sample.compose import Composer, seeded
from infra.sample.files import (
    Records,
    replace_folder,
    task_card,
    write_csv,
    write_jsonl,
    write_parquet,
)
from infra.sample.guard import Guard
from infra.sample.intents import write_intents
from infra.sample.pair_sets import PairWriter
from infra.sample.split import Matcher, Split, split_tables
from infra.sample.tables import count_facts, load_tables
from infra.sample.train_sets import TrainWriter

logger = logging.getLogger(__name__)

SEED = 20261121

_WRITERS = {".jsonl": write_jsonl, ".csv": write_csv, ".parquet": write_parquet}
_CARDS = {
    "SampleRetrieval": "Configs corpus / queries / default (qrels).",
    "SampleReranking": "Configs corpus / queries / default (qrels) / top_ranked.",
    "SampleTopicClassification": "Columns text, label: index of the topic in alphabetical order.",
    "SampleIntentClassification": "Columns text, label: name of the intent.",
    "SampleMultilabel": "Columns text, label: list of domain ids, in the order geography, "
    "chemistry, astronomy, biology, literature, history, technology.",
    "SampleClustering": "Columns sentences, labels.",
    "SampleSTS": "Columns sentence1, sentence2, score (0-5).",
    "SamplePairClassification": "Columns sentence1, sentence2, labels (1 = same fact).",
}


def train_files(split: Split, seed: int = SEED) -> dict[str, Records]:
    """Records of every training file; none mentions a test entity.

    Args:
        split: The training side supplies the facts.
        seed: Decides every choice of wording.

    Returns:
        File name to records, without duplicates.
    """
    writer = TrainWriter(split.train, seed)
    composer = Composer(seeded(seed, "pairs"), held_out=False)
    pairs = PairWriter(split.train, split.train, composer)
    intents = write_intents(split.train, seeded(seed, "intents"), 130, False)
    files: dict[str, Records] = {
        "documents.jsonl": writer.documents(),
        "questions.parquet": writer.questions(per_fact=3),
        "title_body.jsonl": writer.title_body(per_entity=4),
        "paraphrases.csv": pairs.paraphrases(per_score=620),
        "nli.jsonl": pairs.nli(2600),
        "topics.csv": writer.topics(per_topic=190),
        "intents.jsonl": intents,
        "clusters.parquet": writer.clusters(per_cluster=90, smallest=38),
    }
    return {name: _clean(records, split.test_matcher) for name, records in files.items()}


def _clean(records: Records, matcher: Matcher) -> Records:
    """Drop repeated records and those in which a template happens to name a test entity."""
    seen: set[str] = set()
    kept: list = []
    for record in records:
        text = " | ".join(str(value) for value in record.values())
        if text not in seen and not matcher.find(text):
            seen.add(text)
            kept.append(record)
    return kept


def _write_train(folder: Path, files: dict[str, Records]) -> None:
    folder.mkdir(parents=True)
    for name, records in files.items():
        path = folder / name
        _WRITERS[path.suffix](path, records)
        logger.info("train/%s: %d rows", name, len(records))


def _write_benchmark(folder: Path, tasks: dict[str, Configs]) -> None:
    for name, configs in tasks.items():
        for config, splits in configs.items():
            for split, records in splits.items():
                write_parquet(folder / name / config / f"{split}.parquet", records)
                logger.info("benchmark/%s/%s/%s: %d rows", name, config, split, len(records))
        layout = {config: list(splits) for config, splits in configs.items()}
        card = task_card(name, layout, _CARDS[name])
        (folder / name / "README.md").write_text(card, encoding="utf-8", newline="\n")


def generate(out_dir: Path) -> None:
    """Write the whole corpus, first to a temporary folder, then renamed into place."""
    tables = load_tables()
    split = split_tables(tables)
    logger.info("%d facts, %d entities", count_facts(tables), sum(len(t.rows) for t in tables))
    files = train_files(split)
    texts = (str(value) for records in files.values() for row in records for value in row.values())
    benchmark = BenchmarkWriter(split, tables, Guard(texts), SEED)
    temporary = out_dir / "sample.tmp"
    if temporary.exists():
        shutil.rmtree(temporary)
    _write_train(temporary / "train", files)
    _write_benchmark(temporary / "benchmark", benchmark.tasks())
    for name in ("train", "benchmark"):
        replace_folder(temporary / name, out_dir / name)
    temporary.rmdir()


def main() -> None:
    """Read the command line and generate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out_dir", nargs="?", default="data", type=Path, help="default: data")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    logging.getLogger("pymorphy3").setLevel(logging.WARNING)
    generate(arguments.out_dir)


if __name__ == "__main__":
    main()
