"""Stage backbone: the decoder, made an encoder, its attention proven from the saved folder."""

import csv
import hashlib
import inspect
import itertools
import json
import logging
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from model import checkpoint
from model.backbone import adapt, scratch
from model.backbone.adapt import Adaptation
from model.backbone.attention_temperature import temper_attention
from model.backbone.decoder import named_as_unfit, save_and_prove
from model.backbone.provenance import Provenance, of_folder, of_hub
from model.backbone.rope import require_length, scale_rope
from model.backbone.scratch import (
    CurvePoint,
    DecoderSize,
    LanguageModel,
    LanguageTraining,
    Masking,
)
from model.backbone.source import load_decoder
from model.backbone.vocabulary.company import similar_tokens
from model.backbone.vocabulary.extend import (
    extend,
    extend_tokenizer,
    grown_rows,
    learn_pairs,
    means_of_pieces,
)
from model.backbone.vocabulary.trim import compare, count_tokens, select_tokens, trim
from model.encoder import compilation
from model.encoder.attention import set_attention
from model.encoder.encoder import Encoder
from model.encoder.pooling.build import LatentSize, PoolingSettings, kind_of
from model.training import schedule
from model.writing import writing
from tasks.contract.prompts import query_prompt
from tasks.contract.records import MANIFEST, read_shards, read_table
from tasks.contract.stage import StageError, atomic_folder, read_json, run_stage, write_json
from tasks.machine.compute import Machine, use_compute
from tasks.outside import recorded
from tasks.params.load import Backbone, Params, Prompts
from tasks.params.paths import ARTIFACTS, BASE, CHECKPOINTS
from tasks.params.training import Adapt, Scratch, Vocabulary
from tasks.store.storage import open_storage

DOCUMENTS = ARTIFACTS / "ingest" / "documents"
EXAMPLES = ARTIFACTS / "ingest" / "examples"
COMPARED_TEXTS = 10_000  # some three times as many: an example has several
FEW_BYTES_PER_TOKEN = 2.5  # a Cyrillic letter has two; a token of a known language 3 to 10
TOKENIZER_CHARACTERS = 20_000_000  # a vocabulary of thousands is settled long before
CHECKPOINT_INTERVAL_S = 20.0  # the work a killed run loses; writing one takes well below a second
ADAPTED_CHECKPOINT_INTERVAL_S = 300.0  # of a decoder from elsewhere one is gigabytes
HELD_OUT_DOCUMENTS = 0.05
HELD_OUT_TOKENS = 65_536

logger = logging.getLogger(__name__)

Parts = tuple[PreTrainedModel, PreTrainedTokenizerFast]
Found = dict[str, float]
"""Numbers for metrics.json."""


def main() -> None:
    """Run the stage."""
    run_stage("backbone", recorded("backbone", body))


def body(params: Params) -> None:
    """Write the model, where it comes from, the proof of its attention, metrics and curve."""
    machine = use_compute(params.compute)
    settings = params.backbone
    curve: list[CurvePoint] = []
    found: dict[str, Found] = {}
    checkpoints = CHECKPOINTS / "backbone" / _run_key(params, machine)
    with atomic_folder(ARTIFACTS / "backbone") as folder:
        try:
            if settings.source == "scratch":
                (decoder, tokenizer), curve = _train(settings, machine, checkpoints)
                Provenance("scratch").write(folder / BASE.name)
            else:
                (decoder, tokenizer), head = _load(
                    settings, params.store.endpoint_url, folder / BASE.name
                )
                model = LanguageModel(decoder, head)
                tokenizer, found["vocabulary"] = _fit_vocabulary(
                    model, tokenizer, settings.vocabulary
                )
                if settings.adapt is not None:
                    with named_as_unfit(decoder):
                        curve, found["adapt"] = _adapt(
                            model, tokenizer, settings.adapt, machine, checkpoints
                        )
            with named_as_unfit(decoder):
                _turn(decoder, settings)
                encoder = Encoder(
                    decoder,
                    tokenizer,
                    _pooling(settings),
                    max_length_tokens=settings.max_length_tokens,
                    prompts=_prompts(params.prompts),
                )
                proof = save_and_prove(
                    encoder,
                    folder / "model",
                    settings.attention,
                    device=machine.device,
                    attn_implementation=settings.attn_implementation,
                    precision=machine.precision,
                )
        except ValueError as error:
            raise StageError(str(error)) from error
        write_json(folder / "proof.json", proof)
        write_json(folder / "metrics.json", _metrics(encoder, settings, curve, found))
        _write_curve(folder / "curves.csv", curve)
    shutil.rmtree(checkpoints, ignore_errors=True)


def _turn(decoder: PreTrainedModel, settings: Backbone) -> None:
    """Set the attention and the positions of a decoder that was trained to continue texts."""
    set_attention(decoder, settings.attention)
    if settings.rope_scaling is not None:
        scale_rope(decoder, settings.rope_scaling.type, settings.rope_scaling.factor)
    require_length(decoder.config, settings.max_length_tokens)
    temper_attention(decoder, settings.attention_temperature)


def _load(
    settings: Backbone, endpoint_url: str | None, record: Path
) -> tuple[Parts, Tensor | None]:
    """A decoder from elsewhere; its origin, licence and terms are written into `record`.

    With it the table of its output, where that is its own and the decoder is to be adapted.
    """
    source, kernel = settings.source, settings.attn_implementation
    is_local = Path(source).is_dir()
    if settings.revision is not None and ("://" in source or is_local):
        raise StageError(
            f"backbone.revision {settings.revision!r} is for hub ids, but backbone.source is "
            f"{source!r}: set revision to null"
        )
    if not source.startswith("s3://"):
        parts = load_decoder(source, revision=settings.revision, attn_implementation=kernel)
        known = of_folder(Path(source), source) if is_local else of_hub(source, settings.revision)
        if known.licence is None:
            logger.warning(
                "the licence of %s is not known: its card names none, so that of the model made "
                "from it says so too",
                source,
            )
        known.write(record)
        return parts, _head(settings, source)
    with tempfile.TemporaryDirectory() as temporary:
        local = Path(temporary) / "decoder"
        logger.info("downloading %s", source)
        open_storage(source, endpoint_url).download_folder("", local)
        of_folder(local, source).write(record)
        parts = load_decoder(str(local), revision=None, attn_implementation=kernel)
        return parts, _head(settings, str(local))


def _head(settings: Backbone, source: str) -> Tensor | None:
    if settings.adapt is None:
        return None
    return adapt.read_head(source, revision=settings.revision)


def _fit_vocabulary(
    model: LanguageModel, tokenizer: PreTrainedTokenizerFast, settings: Vocabulary
) -> tuple[PreTrainedTokenizerFast, Found]:
    """Change it where that is asked for; what the ingested texts are made of, before and after."""
    decoder = model.decoder
    kept = list(range(max(tokenizer.get_vocab().values()) + 1))
    weights = decoder.num_parameters()
    fitted = tokenizer
    if settings.kind == "trim":
        counts = count_tokens(tokenizer, _texts())
        kept = select_tokens(
            tokenizer, counts, min_count=settings.min_count, max_tokens=settings.max_tokens
        )
        fitted = trim(decoder, tokenizer, kept)
        model.set_head(lambda rows_VD: rows_VD[kept])
    elif settings.kind == "extend":
        fitted = _extend(model, tokenizer, settings)
    rows = sum(read_json(folder / MANIFEST)["rows"] for folder in (DOCUMENTS, EXAMPLES))
    sample = itertools.islice(_texts(), 0, None, max(1, rows // COMPARED_TEXTS))
    coverage = compare(tokenizer, fitted, kept, list(sample))
    before, after = (
        coverage.bytes / max(1, tokens)
        for tokens in (coverage.tokens_before, coverage.tokens_after)
    )
    if after < FEW_BYTES_PER_TOKEN:
        logger.warning(
            "a token of this decoder holds %.1f bytes of the ingested texts, expected 3 to 10: it "
            "hardly knows their language, and will read them slowly and badly",
            after,
        )
    logger.info(
        "vocabulary of %d tokens, %d before; %d of %d texts keep theirs",
        *(len(fitted), len(tokenizer), coverage.same, coverage.texts),
    )
    return fitted, {
        "tokens_before": len(tokenizer),
        "tokens": len(fitted),
        "same_texts_share": round(coverage.same / max(1, coverage.texts), 4),
        "bytes_per_token_before": round(before, 3),
        "bytes_per_token": round(after, 3),
        "weights_before": weights,
        "weights": decoder.num_parameters(),
    }


def _extend(
    model: LanguageModel, tokenizer: PreTrainedTokenizerFast, settings: Vocabulary
) -> PreTrainedTokenizerFast:
    """Add the tokens that a sample of the ingested texts teaches; the tokenizer that knows them."""
    known = max(tokenizer.get_vocab().values()) + 1
    step = max(1, sum(len(text) for text in _texts()) // TOKENIZER_CHARACTERS)
    sample = list(itertools.islice(_texts(), 0, None, step))
    logger.info("learning at most %d tokens from %d texts", settings.new_tokens, len(sample))
    pairs = learn_pairs(
        tokenizer, sample, new_tokens=settings.new_tokens, min_count=settings.min_count
    )
    mixtures = means_of_pieces(tokenizer, pairs)
    larger = extend_tokenizer(tokenizer, pairs)
    if settings.initial == "similar":
        mixtures = similar_tokens(larger, sample, mixtures, min_count=settings.min_count)
    extend(model.decoder, known, mixtures)
    model.set_head(lambda rows_VD: grown_rows(rows_VD, known, mixtures))
    return larger


def _adapt(
    model: LanguageModel,
    tokenizer: PreTrainedTokenizerFast,
    values: Adapt,
    machine: Machine,
    checkpoints: Path,
) -> tuple[list[CurvePoint], Found]:
    """Go on with its language modelling on the ingested documents; the curve, and what it gave."""
    texts = _shuffled_documents(values.seed)
    held_out = max(1, int(HELD_OUT_DOCUMENTS * len(texts)))
    masking = None
    if values.mask_share is not None:
        masking = Masking(values.mask_share, adapt.mask_token_of(tokenizer))
    sequences_WT, held_out_WT = (
        scratch.pack_documents(tokenizer, part, values.sequence_tokens, max_tokens=tokens)
        for part, tokens in (
            (texts[held_out:], values.max_steps * values.batch_tokens),
            (texts[:held_out], HELD_OUT_TOKENS),
        )
    )
    logger.info("adapting on %d sequences, %d held out", len(sequences_WT), len(held_out_WT))
    model.to(machine.device)
    done: Adaptation = adapt.adapt(
        model,
        sequences_WT,
        held_out_WT,
        replace(_training(values, machine), masking=masking),
        checkpoints=checkpoints,
        checkpoint_interval_s=ADAPTED_CHECKPOINT_INTERVAL_S,
    )
    logger.info("loss of held out documents %.3f, %.3f before", done.loss_after, done.loss_before)
    return done.curve, {
        "steps": len(done.curve),
        "final_loss_nats": round(done.curve[-1].loss, 4),
        "held_out_tokens": held_out_WT.size,
        "held_out_loss_nats_before": round(done.loss_before, 4),
        "held_out_loss_nats": round(done.loss_after, 4),
    }


def _texts() -> Iterator[str]:
    """Every text of the ingested corpora; those of evaluation are none of them."""
    for table in read_shards(DOCUMENTS, ["title", "text"]):
        for name in ("title", "text"):
            yield from table[name].to_pylist()
    for table in read_shards(EXAMPLES, ["query", "positives", "negatives"]):
        yield from table["query"].to_pylist()
        for name in ("positives", "negatives"):
            yield from itertools.chain.from_iterable(table[name].to_pylist())


def _train(
    settings: Backbone, machine: Machine, checkpoints: Path
) -> tuple[Parts, list[CurvePoint]]:
    values = settings.scratch
    if values is None:
        raise StageError("backbone.source is scratch, so backbone.scratch must be a mapping")
    texts = _shuffled_documents(values.seed)
    sample = _first_characters(texts, TOKENIZER_CHARACTERS)
    logger.info(
        "training a tokenizer of %d tokens on %d of %d documents",
        *(values.vocab_size, len(sample), len(texts)),
    )
    tokenizer = scratch.train_tokenizer(sample, values.vocab_size)
    sequences_WT = scratch.pack_documents(
        tokenizer,
        texts,
        values.sequence_tokens,
        max_tokens=values.max_steps * values.batch_tokens,
    )
    logger.info("corpus: %d sequences of %d tokens", *sequences_WT.shape)
    fields = values.model_dump()
    size = DecoderSize(**{name: fields[name] for name in DecoderSize.__dataclass_fields__})
    decoder = scratch.new_decoder(size, len(tokenizer), values.seed)
    trained, curve = scratch.train_decoder(
        decoder.to(machine.device),  # pyright: ignore[reportArgumentType]  # transformers wraps `to`
        sequences_WT,
        _training(values, machine),
        checkpoint_folder=checkpoints,
        checkpoint_interval_s=CHECKPOINT_INTERVAL_S,
    )
    return (trained, tokenizer), curve


def _shuffled_documents(seed: int) -> list[str]:
    texts: list[str] = read_table(DOCUMENTS, ["text"])["text"].to_pylist()
    random.Random(seed).shuffle(texts)  # noqa: S311 - an order, no secret
    return texts


def _training(values: Scratch | Adapt, machine: Machine) -> LanguageTraining:
    fields = values.model_dump()
    names = LanguageTraining.__dataclass_fields__.keys() & fields.keys()
    return LanguageTraining(
        **{name: fields[name] for name in names},
        precision=machine.precision,
        compile_blocks=machine.compile_blocks,
    )


def _first_characters(texts: list[str], characters: int) -> list[str]:
    """The texts from the first on whose lengths add up to this number, or all."""
    totals = itertools.accumulate(len(text) for text in texts)
    return [text for text, total in zip(texts, totals, strict=True) if total <= characters] or texts


def _run_key(params: Params, machine: Machine) -> str:
    """Hash of all that decides the outcome of a training: only an equal run continues another."""
    digest = hashlib.sha256(f"{machine.precision} {machine.compile_blocks}".encode())
    for section in (params.backbone, params.compute):
        digest.update(json.dumps(section.model_dump(mode="json"), sort_keys=True).encode())
    modules: list[ModuleType] = [scratch, adapt, checkpoint, compilation, schedule]
    for source in [
        *(inspect.getsource(module) for module in modules),
        Path(__file__).read_text("utf-8"),
    ]:
        digest.update(hashlib.sha256(source.encode()).digest())
    manifest = DOCUMENTS / MANIFEST
    digest.update(manifest.read_bytes() if manifest.is_file() else b"")
    return digest.hexdigest()[:32]


def _pooling(settings: Backbone) -> PoolingSettings:
    kind = kind_of(settings.pooling)
    latent = LatentSize(
        num_latents=settings.num_latents,
        num_heads=settings.num_latent_heads,
        head_dim=settings.latent_head_dim,
        expansion=settings.latent_expansion,
    )
    return PoolingSettings(
        kind=settings.pooling,
        pool_prompt=settings.pool_prompt,
        latent=latent if kind.published else None,
        projection=settings.projection,
        layer_tokens=settings.layer_tokens if kind.reads_all_layers else None,
    )


def _prompts(prompts: Prompts) -> dict[str, str]:
    """Prompt of each task by its name, and the pair that sentence-transformers looks for."""
    by_task = {task: query_prompt(prompts, task) for task in prompts.tasks}
    return by_task | {"query": by_task.get("retrieval", ""), "document": ""}


def _metrics(
    encoder: Encoder,
    settings: Backbone,
    curve: list[CurvePoint],
    found: dict[str, Found],
) -> dict[str, object]:
    config = encoder.backbone.config
    metrics: dict[str, object] = {
        "source": settings.source,
        "attention": settings.attention,
        "pooling": settings.pooling,
        "architecture": config.model_type,
        "parameters": sum(weight.numel() for weight in encoder.parameters()),
        "num_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "embedding_size": encoder.embedding_size,
        "vocab_size": config.vocab_size,
    }
    metrics |= found
    if settings.source == "scratch":
        metrics["causal_lm"] = {"steps": len(curve), "final_loss_nats": round(curve[-1].loss, 4)}
    return metrics


def _write_curve(path: Path, curve: list[CurvePoint]) -> None:
    with writing(path), path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CurvePoint._fields)
        writer.writerows(
            [point.step, f"{point.loss:.6g}", f"{point.learning_rate:.6g}"] for point in curve
        )


if __name__ == "__main__":
    main()
