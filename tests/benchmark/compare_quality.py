"""Quality at equal cost: python tests/benchmark/compare_quality.py CHECKOUT.

CHECKOUT is one in which the chain has run up to `prune`; PYTHONPATH is the folder of this project.
From its decoder, on its corpora, the stages are trained and merged, and then sentence-transformers
with its default recipe (mean pooling, MultipleNegativesRankingLoss, CoSENTLoss where pairs have
scores, round-robin over the sources, no instructions) for as many seconds; it gets the learning
rate of stage 1, since its own default hardly moves a decoder this small. Both are scored by the
same code. Several seeds, with the spread.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import torch
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer import losses

import tasks  # noqa: F401 - sets OpenMP's policy before torch starts its threads
from model.encoder.encoder import Encoder
from tasks.contract.records import read_table
from tests.benchmark.quality_workspace import Values, Workspace, set_seed

TRIAL_STEPS = 20

logger = logging.getLogger("compare_quality")


def train_ours(place: Workspace) -> float:
    """All training stages up to the merged model; their seconds, mining included."""
    seconds = place.run("pretrain") + place.run("mine") + place.run("finetune")
    for variant in place.values["multitask"]["variants"]:
        seconds += place.run("multitask", variant)
    return seconds + place.run("merge")


def without_instructions(values: Values) -> None:
    """Texts as they are."""
    values["prompts"]["tasks"] = dict.fromkeys(values["prompts"]["tasks"], "")
    values["evaluate"]["task_prompts"] = {}


def train_theirs(place: Workspace, seconds: float, seed: int, *, bf16: bool) -> int:
    """Train for `seconds` and leave the model where evaluate expects the final one; its steps."""
    training = place.values["pretrain"]["training"]
    folder = place.folder / "artifacts" / "prune" / "model"
    rows = sources_of(place)
    torch.set_num_threads(place.values["compute"]["threads"])

    def run(steps: int, output: str) -> tuple[SentenceTransformer, float]:
        model = SentenceTransformer(str(folder), device="cpu")
        model.max_seq_length = training["max_length_tokens"]
        scored = {name: "score" in table.column_names for name, table in rows.items()}
        loss: Any = {
            name: losses.CoSENTLoss(model)
            if is_scored
            else losses.MultipleNegativesRankingLoss(model)
            for name, is_scored in scored.items()
        }
        arguments = SentenceTransformerTrainingArguments(
            output_dir=output, max_steps=steps, per_device_train_batch_size=training["batch_size"],
            learning_rate=training["learning_rate"], warmup_steps=max(1, steps // 10),
            multi_dataset_batch_sampler="round_robin", seed=seed, save_strategy="no",
            bf16=bf16, report_to="none", use_cpu=True, disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        started = time.perf_counter()
        SentenceTransformerTrainer(model, arguments, datasets.DatasetDict(rows), loss=loss).train()
        return model, time.perf_counter() - started

    with tempfile.TemporaryDirectory() as output:
        _, trial = run(TRIAL_STEPS, output)
        steps = max(TRIAL_STEPS, round(TRIAL_STEPS * seconds / trial))
        model, taken = run(steps, output)
    logger.info("sentence-transformers: %d steps in %.0f of %.0f s", steps, taken, seconds)
    encoder = Encoder.load(folder)
    encoder.backbone.load_state_dict(model[0].auto_model.state_dict())
    encoder.save(place.folder / "artifacts" / "merge" / "model")
    return steps


def sources_of(place: Workspace) -> dict[str, datasets.Dataset]:
    """Every source of any stage as columns of texts, with scores where it has them."""
    stages = [place.values["pretrain"], place.values["finetune"]]
    used = {name for stage in stages for name in stage["sources"]}
    for variant in place.values["multitask"]["variants"].values():
        used |= set(variant["sources"])
    found: dict[str, list[dict[str, Any]]] = {}
    for stage in ("ingest", "synthesize"):
        examples = place.folder / "artifacts" / stage / "examples"
        for row in read_table(examples).to_pylist() if examples.exists() else []:
            source = "synthetic" if stage == "synthesize" else row["source"]
            if source in used and row["positives"]:
                found.setdefault(source, []).append(row)
    return {name: _columns(rows) for name, rows in sorted(found.items())}


def _columns(rows: list[dict[str, Any]]) -> datasets.Dataset:
    if all(row["score"] is not None for row in rows):
        kept = [{"a": r["query"], "b": r["positives"][0], "score": r["score"]} for r in rows]
    elif all(row["negatives"] for row in rows):
        kept = [
            {"a": r["query"], "p": r["positives"][0], "n": r["negatives"][0]} for r in rows
        ]  # fmt: skip
    else:
        kept = [{"a": r["query"], "p": r["positives"][0]} for r in rows]
    return datasets.Dataset.from_list(kept)


def main() -> None:
    """Train both for every seed; print points of 100, means and spread."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps-share", type=float, default=1.0, help="of max_steps of each stage")
    parser.add_argument("--bf16", action="store_true", help="the rival too, against its default")
    parser.add_argument("--seconds", type=float, help="leave ours out, train the rival for so long")
    parser.add_argument("--out", type=Path, help="JSON of every score")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    scores: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for seed in chosen.seeds:
            compare(chosen, Path(temporary) / str(seed), seed, scores)
            if chosen.out is not None:
                chosen.out.write_text(json.dumps(scores, indent=2) + "\n")
    for name, found in scores.items():
        means = [score["mean"] for score in found]
        spread = statistics.stdev(means) if len(means) > 1 else 0.0
        logger.info(
            "%-22s mean %.1f, standard deviation %.1f over seeds",
            name,
            statistics.mean(means),
            spread,
        )


def compare(
    chosen: argparse.Namespace, folder: Path, seed: int, scores: dict[str, list[dict[str, float]]]
) -> None:
    """Both recipes with one seed, for equal time."""
    seconds = chosen.seconds
    if seconds is None:
        ours = Workspace(
            chosen.checkout, folder / "ours", steps_share=chosen.steps_share,
            change=lambda values: set_seed(values, seed),
        )  # fmt: skip
        seconds = train_ours(ours)
        scores.setdefault("samovar", []).append(ours.score("final"))
    theirs = Workspace(
        chosen.checkout, folder / "theirs", steps_share=1.0, change=without_instructions
    )
    train_theirs(theirs, seconds, seed, bf16=chosen.bf16)
    scores.setdefault("sentence-transformers", []).append(theirs.score("final"))
    for name, found in scores.items():
        logger.info("seed %d: %-22s %.1f", seed, name, found[-1]["mean"])


if __name__ == "__main__":
    main()
