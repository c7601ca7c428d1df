"""The profiles for a GPU against the papers they follow, and every profile against itself."""

from pathlib import Path
from typing import Any

import pytest
import torch

from model.losses.presets import PRESETS
from tasks.evaluate.instructions import Instructions
from tasks.machine.compute import Machine
from tasks.merge.candidates import probe_settings
from tasks.params.load import Params, load_params
from tasks.training.contrastive import train_settings

FOLDER = Path(__file__).parents[2] / "infra" / "profiles"
PROFILES = sorted(FOLDER.glob("*.yaml"))
HIDDEN_SIZES = {"Qwen/Qwen3-0.6B-Base": 1024, "Qwen/Qwen2.5-3B": 2048}
"""Width of the decoders that profiles take from the hub."""
STAGES = ("pretrain", "finetune", "multitask")

TABLE_5: dict[str, tuple[Any, Any, Any]] = {
    "learning_rate": (1e-5, 1e-5, 1e-5),
    "warmup_steps": (1000, 500, 500),
    "max_length_tokens": (512, 512, 512),
    "batch_size": (16_384, 512, 512),
    "temperature": (0.02, 0.02, 0.02),
    "weight_decay": (0.01, 0.01, 0.01),
    "hard_negatives": (0, 7, 7),
    "matryoshka_dims": ([], [], []),
}
"""GigaEmbeddings, arXiv:2510.22369, appendix: stages 1, 2 and 3; no Matryoshka sizes are named."""
EPOCHS = 3
ROWS_OF_HEADER = {"finetune": 512_000, "multitask": 341_333}
"""Rows for which the head of giga-3b says that max_steps is three epochs."""


@pytest.fixture(scope="module")
def giga() -> Params:
    return load_params(FOLDER / "giga-3b.yaml")


def trainings(params: Params) -> dict[str, Any]:
    return {stage: getattr(params, stage).training for stage in STAGES}


@pytest.mark.parametrize("key", TABLE_5)
def test_giga_trains_with_the_numbers_of_table_5(giga: Params, key: str) -> None:
    found = tuple(getattr(training, key) for training in trainings(giga).values())
    assert found == TABLE_5[key]


def test_giga_pretrains_for_the_steps_of_table_5(giga: Params) -> None:
    assert giga.pretrain.training.max_steps == 6000


@pytest.mark.parametrize("stage", ROWS_OF_HEADER)
def test_steps_of_giga_are_the_epochs_its_head_says(giga: Params, stage: str) -> None:
    training = trainings(giga)[stage]
    rows = training.max_steps * training.batch_size / EPOCHS
    assert rows == pytest.approx(ROWS_OF_HEADER[stage], abs=1)
    assert f"{ROWS_OF_HEADER[stage]:,}" in (FOLDER / "giga-3b.yaml").read_text(encoding="utf-8")


def test_giga_has_in_batch_negatives_in_stages_1_and_2_alone(giga: Params) -> None:
    """Section 3.2: the third stage switches them off, for retrieval and NLI rows as well."""
    terms = {
        stage: {term for softmax in PRESETS[training.loss].loss.softmaxes for term in softmax}
        for stage, training in trainings(giga).items()
    }
    assert "other_positives" in terms["pretrain"] & terms["finetune"]
    assert terms["multitask"] == {"own_negatives"}


def test_giga_has_cross_batch_negatives_in_stage_1_alone(giga: Params) -> None:
    memory = {stage: training.memory for stage, training in trainings(giga).items()}
    of_pretrain = memory.pop("pretrain")
    assert of_pretrain is not None
    assert of_pretrain.from_step > giga.pretrain.training.warmup_steps
    assert set(memory.values()) == {None}


def test_giga_mines_and_draws_seven_negatives(giga: Params) -> None:
    assert giga.mine.negatives == giga.ingest.class_negatives == 7
    assert giga.mine.max_length_tokens == 512


def test_giga_mines_for_the_retrieval_sources_of_stage_3(giga: Params) -> None:
    """Without in-batch negatives a retrieval row that was not mined would add 0 to the loss."""
    for variant in giga.multitask.variants.values():
        retrieval = {name for name in variant.sources if _task(giga, name) == "retrieval"}
        assert retrieval <= set(giga.mine.sources)


@pytest.mark.parametrize(
    ("loss", "published"), [("giga", 0.02), ("nv-embed-1", 0.02), ("nv-embed-2", 0.02)]
)
def test_a_loss_has_the_temperature_of_its_paper_unless_params_give_one(
    giga: Params, loss: str, published: float
) -> None:
    training = giga.pretrain.training.model_copy(update={"loss": loss, "temperature": None})
    assert train_settings(training, "fp32").temperature == published
    own = training.model_copy(update={"temperature": 0.07})
    assert train_settings(own, "fp32").temperature == 0.07


def test_the_search_of_a_merge_has_the_temperature_of_its_loss_as_well(giga: Params) -> None:
    params = giga.model_dump(by_alias=True)
    params["multitask"]["training"] |= {"loss": "nv-embed-2", "temperature": None}
    params["merge"]["self_positioning"]["temperature"] = None
    machine = Machine(torch.device("cpu"), "fp32")
    assert probe_settings(Params.model_validate(params), machine).temperature == 0.02


def _task(params: Params, source: str) -> str:
    return params.ingest.sources[source].task


def test_giga_prunes_and_pools_as_the_paper_does(giga: Params) -> None:
    """9 of the 36 blocks, from the end; latents as in the released model."""
    assert (giga.prune.fraction * 36, giga.prune.method) == (9, "deepest")
    backbone = giga.backbone
    assert (backbone.attention, backbone.pooling) == ("bidirectional", "latent")
    assert (backbone.num_latents, backbone.num_latent_heads, backbone.latent_expansion) == (
        512,
        8,
        4,
    )
    inner = backbone.num_latent_heads * backbone.latent_head_dim
    assert inner == HIDDEN_SIZES[backbone.source] == 2048


def test_giga_prompts_every_task_as_the_released_models_do(giga: Params) -> None:
    from mteb.models.model_implementations.giga_models import GIGA_task_prompts as released

    assert giga.evaluate.task_prompts.keys() == giga.evaluate.tasks.keys()
    for task, instruction in giga.evaluate.task_prompts.items():
        official = released[task]
        expected = official["query"] if isinstance(official, dict) else official
        assert instruction == expected, task
    assert giga.prompts.template == "Instruct: {instruction}\nQuery: {text}"
    Instructions.of(giga)


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_matryoshka_sizes_are_below_the_hidden_size(path: Path) -> None:
    params = load_params(path)
    backbone = params.backbone
    size = backbone.projection
    if size is None:
        scratch = backbone.scratch
        size = scratch.hidden_size if scratch is not None else HIDDEN_SIZES[backbone.source]
    for stage, training in trainings(params).items():
        assert all(dim < size for dim in training.matryoshka_dims), stage
