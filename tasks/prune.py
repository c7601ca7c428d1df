"""Stage prune: remove blocks of the backbone, and prove the attention of what is left."""

import logging

from model.backbone.decoder import named_as_unfit, save_and_prove
from model.encoder.encoder import Encoder
from model.encoder.tokenization import TokenizedText
from model.pruning import (
    Distances,
    blocks_to_remove,
    choose_blocks,
    count_blocks,
    measure_distances,
    prune_encoder,
)
from tasks.contract.records import read_table
from tasks.contract.stage import StageError, atomic_folder, run_stage, write_json
from tasks.machine.compute import use_compute
from tasks.params.load import Params, Prune
from tasks.params.paths import ARTIFACTS

DOCUMENTS = ARTIFACTS / "ingest" / "documents"
BATCH_TOKENS = 8192

logger = logging.getLogger(__name__)


def main() -> None:
    """Run the stage."""
    run_stage("prune", body)


def body(params: Params) -> None:
    """Write the smaller model folder, its proof, and metrics with the removed blocks and scores."""
    machine = use_compute(params.compute)
    settings = params.prune
    with atomic_folder(ARTIFACTS / "prune") as folder:
        try:
            encoder = Encoder.load(
                ARTIFACTS / "backbone" / "model",
                device=machine.device,
                attn_implementation=params.backbone.attn_implementation,
            )
            with named_as_unfit(encoder.backbone):
                before = count_blocks(encoder.backbone)
                count = blocks_to_remove(before, settings.fraction)
                distances = _measure(encoder, settings, count)
                removed = choose_blocks(settings.method, distances, count)
                logger.info("removing blocks %s of %d by %s", removed, before, settings.method)
                prune_encoder(encoder, removed)
                proof = save_and_prove(
                    encoder,
                    folder / "model",
                    params.backbone.attention,
                    device=machine.device,
                    attn_implementation=params.backbone.attn_implementation,
                    precision=machine.precision,
                )
        except ValueError as error:
            raise StageError(str(error)) from error
        write_json(folder / "proof.json", proof)
        metrics = {
            "method": settings.method,
            "blocks_before": before,
            "blocks_after": before - count,
            "removed": ",".join(str(block) for block in removed),
            "parameters": sum(weight.numel() for weight in encoder.parameters()),
            "block_influence": _numbered(distances.influence),
            "angular_distance": _numbered(distances.angles),
        }
        write_json(folder / "metrics.json", metrics)


def _measure(encoder: Encoder, settings: Prune, count: int) -> Distances:
    """Distances on documents; over all tokens unless the encoder itself looks at the last alone."""
    return measure_distances(
        encoder,
        _calibration_texts(encoder, settings),
        run_length=max(1, count),
        tokens="last" if encoder.settings.ends_with_eos else "all",
        batch_tokens=BATCH_TOKENS,
    )


def _calibration_texts(encoder: Encoder, settings: Prune) -> list[TokenizedText]:
    """Documents spread evenly over the whole table, so that every source has its share."""
    texts: list[str] = read_table(DOCUMENTS, ["text"])["text"].to_pylist()
    wanted = min(settings.calibration_documents, len(texts))
    chosen = [texts[number * len(texts) // wanted] for number in range(wanted)]
    return encoder.tokenize(chosen, max_length_tokens=settings.max_length_tokens)


def _numbered(scores: list[float]) -> dict[str, float]:
    return {f"block_{number:03d}": float(f"{score:.6g}") for number, score in enumerate(scores)}


if __name__ == "__main__":
    main()
