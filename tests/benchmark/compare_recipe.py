"""What each part of the recipe is worth: python tests/benchmark/compare_recipe.py CHECKOUT.

CHECKOUT is one in which the chain has run up to `prune`; PYTHONPATH is the folder of this project.
One thing at a time is changed: of stage 1, whose model is then scored, or of stage 2, which goes on
from the unchanged stage 1 and its mined negatives. Points of 100, mean over the tasks of the
profile; with several seeds the standard deviation too, without which no difference means anything.
"""

import argparse
import json
import logging
import shutil
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from model.encoder.encoder import Encoder
from model.encoder.pooling.build import KINDS, LatentSize, PoolingSettings
from tests.benchmark.compare_quality import without_instructions
from tests.benchmark.quality_workspace import Values, Workspace, set_seed

LATENT = LatentSize(num_latents=64, num_heads=4, head_dim=48, expansion=2)

logger = logging.getLogger("compare_recipe")


@dataclass(frozen=True)
class Change:
    """One thing that differs from the profile."""

    stage: str
    values: Callable[[Values], object] = lambda _: None
    model: Callable[[Path], None] = lambda _: None


def pooled(kind: str) -> Callable[[Path], None]:
    """The same decoder with another pooling."""

    def change(folder: Path) -> None:
        old = Encoder.load(folder)
        settings = PoolingSettings(
            kind=kind,
            latent=LATENT if KINDS[kind].published else None,
            layer_tokens="mean" if KINDS[kind].reads_all_layers else None,
        )
        new = Encoder(
            old.backbone,
            old.tokenizer,
            settings,
            max_length_tokens=old.max_length_tokens,
            prompts=old.prompts,
        )
        shutil.rmtree(folder)
        new.save(folder)

    return change


def causal(folder: Path) -> None:
    """The decoder as it was trained: a token sees those before it."""
    file = folder / "config.json"
    config = json.loads(file.read_text("utf-8")) | {"is_causal": True}
    file.write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def unpruned(folder: Path) -> None:
    """All blocks of the decoder."""
    shutil.rmtree(folder)
    shutil.copytree(folder.parents[1] / "backbone" / "model", folder)


def trained_with(stage: str, **values: object) -> Callable[[Values], object]:
    """Other values of the training of a stage."""
    return lambda content: content[stage]["training"].update(values)


MARGIN = {"margin": 0.1, "kind": "absolute", "in_batch": True, "explicit": False}
CHANGES = {
    "stage 1 as it is": Change("pretrain"),
    "causal attention": Change("pretrain", model=causal),
    "without pruning": Change("pretrain", model=unpruned),
    "pooling last": Change("pretrain", model=pooled("last")),
    "pooling weighted_mean": Change("pretrain", model=pooled("weighted_mean")),
    "pooling latent": Change("pretrain", model=pooled("latent")),
    "pooling multilayer": Change("pretrain", model=pooled("multilayer")),
    "without instructions": Change("pretrain", without_instructions),
    "without Matryoshka": Change("pretrain", trained_with("pretrain", matryoshka_dims=[])),
    "loss qwen3": Change("pretrain", trained_with("pretrain", loss="qwen3")),
    "loss gemini": Change("pretrain", trained_with("pretrain", loss="gemini")),
    "student margin 0.1": Change("pretrain", trained_with("pretrain", student_margin=MARGIN)),
    "spread-out 0.1": Change("pretrain", trained_with("pretrain", spread_out=0.1)),
    "mixed batches": Change("pretrain", trained_with("pretrain", batches="mixed")),
    "stage 2 as it is": Change("finetune"),
    "0 hard negatives": Change("finetune", trained_with("finetune", hard_negatives=0)),
    "1 hard negative": Change("finetune", trained_with("finetune", hard_negatives=1)),
    "3 hard negatives": Change("finetune", trained_with("finetune", hard_negatives=3)),
    "7 hard negatives": Change("finetune", trained_with("finetune", hard_negatives=7)),
    "hardness 5": Change("finetune", trained_with("finetune", hardness={"own_negatives": 5.0})),
}


def measure(checkout: Path, folder: Path, change: Change, seed: int, share: float) -> float:
    """Mean points of the model of the changed stage."""

    def edit(values: Values) -> None:
        set_seed(values, seed)
        change.values(values)

    place = Workspace(
        checkout, folder / "changed", steps_share=share, change=edit, change_model=change.model
    )
    if change.stage == "finetune":
        _link_base(checkout, folder, place, seed, share)
    place.run(change.stage)
    return place.score(change.stage)["mean"]


def _link_base(checkout: Path, folder: Path, place: Workspace, seed: int, share: float) -> None:
    """Let stage 2 go on from the unchanged stage 1 with this seed, which is trained once."""
    shared = folder.parent / f"base-{seed}"
    if not shared.exists():
        base = Workspace(
            checkout, shared, steps_share=share, change=lambda values: set_seed(values, seed)
        )
        base.run("pretrain")
        base.run("mine")
    for stage in ("pretrain", "mine"):
        (place.folder / "artifacts" / stage).symlink_to(shared / "artifacts" / stage)


def main() -> None:
    """Measure every change for every seed; print means and differences."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--steps-share", type=float, default=1.0, help="of max_steps of each stage")
    parser.add_argument("--only", nargs="*", choices=list(CHANGES), default=list(CHANGES))
    parser.add_argument("--out", type=Path, help="JSON of every score, by change and seed")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    scores: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for number, name in enumerate(chosen.only):
            scores[name] = [
                measure(
                    chosen.checkout,
                    Path(temporary) / f"{number}-{seed}",
                    CHANGES[name],
                    seed,
                    chosen.steps_share,
                )
                for seed in chosen.seeds
            ]
            report(name, scores)
            if chosen.out is not None:
                chosen.out.write_text(json.dumps(scores, indent=2, ensure_ascii=False) + "\n")


def report(name: str, scores: dict[str, list[float]]) -> None:
    """One line: mean, spread, and how far from the unchanged stage."""
    stage = "stage 1 as it is" if CHANGES[name].stage == "pretrain" else "stage 2 as it is"
    mean = statistics.mean(scores[name])
    spread = f" ± {statistics.stdev(scores[name]):.1f}" if len(scores[name]) > 1 else ""
    against = f" {mean - statistics.mean(scores[stage]):+.1f}" if stage in scores else ""
    logger.info("%-24s %5.1f%s%s", name, mean, spread, against)


if __name__ == "__main__":
    main()
