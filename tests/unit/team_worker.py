"""One process of a team: loss and gradient of many batches, written by the leading one."""

import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import save_file

from model.encoder.encoder import Encoder
from model.losses.false_negatives import FalseNegativeSettings
from model.losses.presets import PRESETS
from model.training.data.batches import Batch, BatchPlan, Step
from model.training.devices.activations import recompute_activations
from model.training.devices.grad_cache import cached_backward, plain_backward
from model.training.devices.lora import Adapters
from model.training.devices.micro_batches import MicroBatches
from model.training.devices.sharding import sharded_copy, whole_tensors
from model.training.devices.team import Team
from model.training.objective.cross_batch_memory import DocumentMemory
from model.training.objective.frozen import FrozenModel, FrozenModels
from model.training.objective.loss_options import (
    DivergenceSettings,
    LossOptions,
    MatchingSettings,
    TripletSettings,
)
from model.training.objective.sub_batches import objective_of_sub_batches
from model.training.settings import (
    LoraSettings,
    LossSettings,
    MemorySettings,
    TrainingSource,
    TrainSettings,
)

WORDS = [*"самовар чай озеро река гора лес".split(), *"поезд дом кот печь снег".split()]  # noqa: SIM905 - a list to be read
ROWS = 11


class Case(NamedTuple):
    """What a loss and its gradient are computed of."""

    task: str
    """Of the rows; `mixed` and `interleaved` are several tasks composed that way."""
    loss: str
    negatives: int
    cached: bool
    sizes: tuple[int, ...]
    seed: int
    extra: str = ""
    """Key of `EXTRAS`: what is added to the loss."""
    form: str = ""
    """What the training does besides: adapters, recomputed activations or a memory."""


BELOW = FalseNegativeSettings(margin=-0.02, except_terms=())
ALL_JUDGED = FalseNegativeSettings(margin=0.1, kind="relative", explicit=True, except_terms=())
SOFT, HINGE = DivergenceSettings(0.7, teacher_temperature=0.1), TripletSettings(3.0, margin=0.2)
VECTORS = MatchingSettings(2.0, size=8)
EXTRAS = {
    "": LossOptions(),
    "guide": LossOptions(guide=BELOW),
    "soft-labels": LossOptions(soft_labels=SOFT),
    "teacher": LossOptions(embeddings=VECTORS, similarities=SOFT),
    "everything": LossOptions(
        softmaxes=[["own_negatives"], ["other_positives", "queries", "document_queries"]],
        student_margin=BELOW, guide=ALL_JUDGED, soft_labels=SOFT, triplet=HINGE,
        embeddings=VECTORS, similarities=SOFT, matryoshka_weights={8: 0.5},
    ),
}  # fmt: skip


def cases() -> Iterator[Case]:
    """Every loss with 0, 1 and 7 negatives, by both backward passes, with Matryoshka sizes."""
    for loss, negatives, cached in itertools.product(PRESETS, (0, 1, 7), (False, True)):
        yield Case("retrieval", loss, negatives, cached, (32, 8), seed=len(loss) + negatives)
    yield from cases_of_forms()
    for task, cached in itertools.product(("classification", "sts"), (False, True)):
        yield Case(task, "giga", 3, cached, (32,), seed=1)
    for extra, negatives, cached in itertools.product(EXTRAS, (0, 1, 7), (False, True)):
        if extra:
            yield Case("retrieval", "qwen3", negatives, cached, (32, 8), negatives, extra)
    for task, cached in itertools.product(("classification", "sts"), (False, True)):
        yield Case(task, "giga", 3, cached, (32, 8), 2, "everything")
    for batches, loss, cached in itertools.product(
        ("mixed", "interleaved"), ("giga", "qwen3"), (False, True)
    ):
        yield Case(batches, loss, 3, cached, (32, 8), seed=2)
    for batches, cached in itertools.product(("mixed", "interleaved"), (False, True)):
        yield Case(batches, "giga", 3, cached, (32, 8), 2, "everything")


def cases_of_forms() -> Iterator[Case]:
    """What a training does besides; a memory also with terms and masks added to the loss."""
    forms = ("lora", "activations", "memory", "sharded")
    for form, negatives, cached in itertools.product(forms, (0, 1, 7), (False, True)):
        yield Case("retrieval", "giga", negatives, cached, (32, 8), 3 + negatives, form=form)
    for cached in (False, True):
        yield Case("retrieval", "gecko", 3, cached, (32, 8), 2, "soft-labels", "memory")


def source_of(case: Case, task: str) -> TrainingSource:
    """Random texts of few words: equal texts are frequent, so that every mask has work."""
    rng = np.random.default_rng([case.seed, len(task)])

    def text() -> str:
        return " ".join(rng.choice(WORDS[:3] if rng.random() < 0.4 else WORDS, rng.integers(1, 6)))

    fewest = 0 if case.negatives > 1 else case.negatives
    counts = rng.integers(fewest, case.negatives + 1, ROWS)
    positives = [[text() for _ in range(rng.integers(1, 3))] for _ in range(ROWS)]
    # the last row has no scores, the one before no score of its positive
    scores = [[rng.random() for _ in range(count)] for count in counts[:-1]]
    positive_scores = [[rng.random() for _ in own] for own in positives[:-2]]
    table = pa.table(
        {
            "id": [f"row-{row}" for row in range(ROWS)],
            "query": [text() for _ in range(ROWS)],
            "positives": positives,
            "positive_scores": pa.array([*positive_scores, None, None], pa.list_(pa.float32())),
            "negatives": pa.array(
                [[text() for _ in range(count)] for count in counts], pa.list_(pa.string())
            ),
            "negative_scores": pa.array([*scores, None], pa.list_(pa.float32())),
            "label": [str(row % 3) for row in range(ROWS)],
            "score": pa.array(rng.random(ROWS).round(1), pa.float32()),
        }
    )
    return TrainingSource(task, task, "вопрос: ", "", table, 1.0)


def step_of(encoder: Encoder, case: Case, folder: Path) -> Step:
    """The step of the case: rows of one task, or of four."""
    is_composed = case.task in ("mixed", "interleaved")
    tasks = ["retrieval", "classification", "sts", "nli"] if is_composed else [case.task]
    settings = TrainSettings(
        max_steps=1, batch_size=ROWS, micro_batch_tokens=60, max_length_tokens=48,
        learning_rate=1e-3, min_learning_rate_share=0.1, warmup_steps=0, weight_decay=0.0,
        gradient_clip_norm=1.0, loss=case.loss, temperature=0.05, hard_negatives=case.negatives,
        margin_from_step=1, matryoshka_dims=(8,), source_temperature=1.0, precision="fp32",
        log_every_steps=1, checkpoint_every_steps=1, seed=7,
    )  # fmt: skip
    steps_of = np.zeros(1, dtype=int)
    if case.task == "mixed":
        settings = replace(settings, batches="mixed", batch_size=16)
        steps_of = np.array([[6, 4, 3, 3]])
    if case.task == "interleaved":
        settings = replace(settings, batches="interleaved", batch_size=20, sub_batches=4)
        steps_of = np.array([[0, 2, 1, 0]])
    sources = [source_of(case, task) for task in tasks]
    return BatchPlan(sources, steps_of, settings, encoder, folder).step(1)


def other_model(model: Path) -> FrozenModel:
    """An encoder of other weights: what it says of a text has nothing to do with the student."""
    encoder, generator = Encoder.load(model), torch.Generator().manual_seed(5)
    for weight in encoder.parameters():
        weight.data.normal_(0.0, 0.1, generator=generator)
    return FrozenModel(encoder, "найди: ", None, max_length_tokens=40)


def with_memory(batch: Batch, seed: int) -> Batch:
    """The batch with a memory of its own documents in another order, as other vectors."""
    generator = torch.Generator().manual_seed(seed)
    memory = DocumentMemory(MemorySettings(batches=2, from_step=1))
    vectors = torch.randn((len(batch.texts.documents), 32), generator=generator)
    unknown = batch.texts.documents + np.arange(len(vectors)) % 2  # every second text is new
    texts = replace(batch.texts, documents=unknown)
    memory.add("s", replace(batch, texts=texts), F.normalize(vectors, dim=-1))
    return memory.recall(1, "s", batch)


def encoder_of(model: Path, form: str) -> Encoder:
    """The model, in the form in which it is trained."""
    encoder = Encoder.load(model)
    if form == "lora":
        Adapters(encoder, LoraSettings(4, 8, 0.0, ("q_proj", "down_proj")), seed=1)
        torch.manual_seed(2)
        for name, weight in encoder.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.2)
    if form == "activations":
        recompute_activations(encoder)
    if form == "sharded" and Team().size > 1:
        encoder = sharded_copy(encoder, Team())
    return encoder.train()


def measure(
    encoder: Encoder, case: Case, folder: Path, other: FrozenModel
) -> tuple[dict, dict[str, torch.Tensor]]:
    """Counts and loss of the case, and the gradient of every weight."""
    team = Team(shares_weights=case.form == "sharded" and Team().size > 1)
    batch = step_of(encoder, case, folder)
    lengths = [len(item.ids) for item in batch.items]
    own = team.texts(lengths)
    loss = LossSettings(
        case.loss, 0.05, hardness={"own_negatives": 5.0}, spread_out=0.5,
        options=EXTRAS[case.extra],
    )  # fmt: skip
    models = FrozenModels(guide=other, teacher=other) if case.extra else FrozenModels()
    is_remembering = case.form == "memory"
    objective = objective_of_sub_batches(
        [with_memory(part, case.seed) if is_remembering else part for part in batch.sub_batches],
        class_negatives="batch" if case.extra else "own",
        loss=loss,
        sizes=list(case.sizes),
        device=encoder.device,
        frozen=models.vectors(batch, own, team, 60, "fp32"),
    )
    micro_batches = MicroBatches(60, is_packed=True).cut(lengths, team)
    encoder.zero_grad()
    loss = (cached_backward if case.cached else plain_backward)(
        lambda texts: encoder.embed([batch.items[text] for text in texts or [0]])[: len(texts)],
        micro_batches, len(batch.items), objective.loss_and_gradient, team,
    )  # fmt: skip
    report = objective.report(team)
    team.add_up_gradients(p for p in encoder.parameters() if p.requires_grad)
    facts = {
        "loss": loss.item(),
        **asdict(report),
    }
    gradients = {
        name: weight.grad.clone()
        for name, weight in encoder.named_parameters()
        if weight.grad is not None
    }
    return facts, whole_tensors(gradients, team)


def measure_all(model: Path, folder: Path) -> None:
    """Write facts.json and gradients.safetensors of all cases into `folder`."""
    torch.set_num_threads(1)
    team, other = Team(), other_model(model)
    forms = dict.fromkeys(case.form for case in cases())
    encoders = {form: encoder_of(model, form) for form in forms}
    facts, gradients = [], {}
    for number, case in enumerate(cases()):
        encoder = encoders[case.form]
        found, weights = measure(encoder, case, folder / f"tokens-{team.rank}", other)
        facts.append(found)
        gradients |= {f"{number}/{name}": gradient for name, gradient in weights.items()}
    if team.leads:
        save_file(gradients, folder / "gradients.safetensors")
        (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    dist.init_process_group("gloo")
    measure_all(Path(sys.argv[1]), Path(sys.argv[2]))
    dist.destroy_process_group()
