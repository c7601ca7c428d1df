"""Stage merge: one model out of the multitask variants, chosen on the development split."""

import logging
import shutil
from pathlib import Path
from typing import Any

from model.encoder.encoder import Encoder
from model.training.settings import TrainingSource
from tasks.contract.records import read_table
from tasks.contract.stage import StageError, atomic_folder, refuse_leftovers, run_stage, write_json
from tasks.machine.compute import Machine, use_compute
from tasks.merge.candidates import Ingredients, require_same_settings
from tasks.merge.development import score_encoder, select_development
from tasks.params.load import SLERP_VARIANTS, Params
from tasks.params.paths import ARTIFACTS, CORPORA
from tasks.store.registry import fingerprint_folder
from tasks.training.contrastive import ContrastiveStage, load_sources
from tasks.training.corpus import remove_corpora

SOUP, SLERP, SELF_POSITIONING = "uniform_soup", "slerp", "self_positioning"
VARIANT = "multitask-"
STAGE = "merge"

logger = logging.getLogger(__name__)


def main() -> None:
    """Run the stage."""
    run_stage("merge", merge)


def merge(params: Params) -> None:
    """Write artifacts/merge: the merged model and how it was chosen.

    Raises:
        StageError: Variants cannot be merged, or there is nothing to choose a merge by.
    """
    refuse_leftovers(params)
    machine = use_compute(params.compute)
    variants = {
        name: ARTIFACTS / "multitask" / name / "model" for name in sorted(params.multitask.variants)
    }
    ingredients = Ingredients(ARTIFACTS / "finetune" / "model", variants)
    require_same_settings(list(variants.values()))
    with atomic_folder(ARTIFACTS / "merge") as folder:
        try:
            metrics = _build(ingredients, params, machine, folder)
        except ValueError as error:
            raise StageError(f"merging {sorted(variants)} failed: {error}") from error
        metrics["method"] = params.merge.method
        metrics["fingerprint"] = fingerprint_folder(folder / "model")
        write_json(folder / "metrics.json", metrics)
    remove_corpora(CORPORA)  # the last that reads them
    logger.info("merged model: %s", metrics["chosen"])


def _build(
    ingredients: Ingredients, params: Params, machine: Machine, folder: Path
) -> dict[str, Any]:
    """Write folder/model; what was found on the way."""
    method = params.merge.method
    metrics: dict[str, Any] = {"task_vectors": ingredients.describe_task_vectors()}
    candidates: dict[str, Path] = {}
    if method in ("best", SOUP):
        candidates[SOUP] = folder / SOUP
        ingredients.write_soup(candidates[SOUP])
    if method == SLERP or (method == "best" and len(ingredients.variants) == SLERP_VARIANTS):
        candidates[SLERP] = folder / SLERP
        ingredients.write_slerp(candidates[SLERP])
    if method == "best":
        candidates |= {VARIANT + name: path for name, path in ingredients.variants.items()}
    if method in ("best", SELF_POSITIONING):
        candidates[SELF_POSITIONING] = folder / SELF_POSITIONING
        sources = _probe_sources(ingredients, params)
        metrics[SELF_POSITIONING] = ingredients.write_self_positioned(
            candidates[SELF_POSITIONING], params, sources, machine
        )
    if method == "best":
        metrics |= _score(candidates, params, machine)
    # simpler methods stand first, and max() keeps the first of equal ones
    chosen = max(
        candidates, key=lambda name: metrics.get("scores", {}).get(name, {}).get("mean", 0)
    )
    # not copied with their mode: files linked from a cache are read-only
    shutil.copytree(candidates[chosen], folder / "model", copy_function=shutil.copyfile)
    attention = params.backbone.attn_implementation
    Encoder.load(
        folder / "model", device=machine.device, attn_implementation=attention
    ).probe_vectors(attention)
    for name in {SOUP, SLERP, SELF_POSITIONING} & candidates.keys():
        shutil.rmtree(candidates[name])
    return metrics | {"chosen": chosen}


def _probe_sources(ingredients: Ingredients, params: Params) -> list[TrainingSource]:
    """Training examples of all variants together, as the multitask trainings read them."""
    variants = params.multitask.variants.values()
    names = sorted({name for variant in variants for name in variant.sources})
    stage = ContrastiveStage(
        name=STAGE,
        training=params.multitask.training,
        weights=dict.fromkeys(names, 1.0),
        base=ingredients.base,
        output=ARTIFACTS / "merge",
        is_mined=True,
    )
    return load_sources(params.prompts, stage)


def _score(candidates: dict[str, Path], params: Params, machine: Machine) -> dict[str, Any]:
    """Development scores of every candidate, and the size of what they were taken on."""
    chosen = select_development(
        read_table(ARTIFACTS / "ingest" / "development"),
        read_table(ARTIFACTS / "ingest" / "examples"),
        params.prompts,
        params.merge.development_examples,
    )
    training, attention = params.multitask.training, params.backbone.attn_implementation
    scores = {}
    for name, folder in candidates.items():
        encoder = Encoder.load(folder, device=machine.device, attn_implementation=attention)
        scores[name] = score_encoder(encoder, chosen, training.tokens_at_once, machine.precision)
        logger.info("%s: %s on the development split", name, scores[name])
    return {
        "scores": scores,
        "development_queries": len(chosen.queries),
        "development_documents": len(chosen.documents),
        "development_pairs": len(chosen.pairs),
        "development_labelled": sum(len(source.asked) for source in chosen.labelled),
    }


if __name__ == "__main__":
    main()
