"""The scores of the card are those of `mteb.evaluate(SentenceTransformer(folder))`."""

import itertools
import warnings
from pathlib import Path
from typing import Any, cast

import datasets
import pytest
import torch
from datasets import Dataset
from mteb.models.abs_encoder import AbsEncoder, get_prompt_name
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
from mteb.types import PromptType
from sentence_transformers import SentenceTransformer

from model.encoder.encoder import Encoder
from tasks.evaluate.benchmark import local_task, official_task
from tasks.evaluate.embedder import Embedder
from tasks.evaluate.evaluation import run_task
from tasks.evaluate.instructions import Instructions
from tasks.evaluate.rungs import open_rung
from tasks.machine.compute import Machine
from tasks.params.load import Params, load_params

PROFILE = Path(__file__).parents[2] / "infra" / "profiles" / "sample.yaml"
OWN = {"RuSTSBenchmarkSTS": "Найди похожее", "RiaNewsRetrieval": "Найди новость"}
OTHERS = ["CEDRClassification", "TERRa", "GeoreviewClusteringP2P", "RuBQReranking"]
TEXTS = ["Самовар кипит.", "Луна светит.", "Чай горячий.", "Поезд ушёл.", "Кошка спит.", "Да."]
README = (
    "---\nconfigs: [{config_name: default, data_files: [{split: test, path: test.parquet}]}]\n---\n"
)


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Instructions of two tasks differ from those of their types."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    loaded = load_params(PROFILE)
    tasks = {name: name for name in [*OWN, *OTHERS]}
    evaluate = loaded.evaluate.model_copy(update={"tasks": tasks, "task_prompts": OWN})
    return loaded.model_copy(update={"evaluate": evaluate})


def sts_task(folder: Path) -> Path:
    folder.mkdir()
    pairs = list(itertools.combinations(TEXTS, 2))
    first, second = zip(*pairs, strict=True)
    scores = [float(number % 6) for number in range(len(pairs))]
    columns = {"sentence1": first, "sentence2": second, "score": scores}
    Dataset.from_dict(columns).to_parquet(folder / "test.parquet")
    (folder / "README.md").write_text(README)
    return folder


def test_stock_mteb_picks_the_prompts_of_the_evaluation(params: Params) -> None:
    instructions = Instructions.of(params)
    prompts = instructions.by_mteb_name()
    assert AbsEncoder.validate_task_to_prompt_name(prompts) == prompts, "it drops other names"
    prompts |= {"query": "нет: ", "document": "нет: "}
    for name in params.evaluate.tasks:
        task = official_task(name).metadata
        for side in (None, *PromptType):
            picked = get_prompt_name(prompts, task, side)
            assert picked is not None
            assert prompts[picked] == instructions.prefix(task, side), (name, side)


def test_stock_mteb_gives_the_score_of_the_card(
    tmp_path: Path, params: Params, pico_encoder: Encoder
) -> None:
    instructions = Instructions.of(params)
    task = local_task(sts_task(tmp_path / "RuSTSBenchmarkSTS"), "RuSTSBenchmarkSTS", 42)
    scores = {}
    for name, prompts in {"named": instructions.by_mteb_name(), "ours alone": {"sts": ""}}.items():
        pico_encoder.save(tmp_path / name, prompts=prompts)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a name of ours is none of its own
            stock = SentenceTransformerEncoderWrapper(
                SentenceTransformer(str(tmp_path / name), device="cpu")
            )
            task.load_data()
            result: Any = task.evaluate(cast("Any", stock), "test", encode_kwargs={"batch_size": 4})
        scores[name] = result["default"]["main_score"]
    rung = open_rung(
        tmp_path / "named",
        Machine(torch.device("cpu"), "fp32"),
        attn_implementation="sdpa",
        batch_tokens=500,
        max_length_tokens=64,
    )
    ours = run_task(task, Embedder(rung, instructions, threads=1)).get_score()
    assert scores["named"] == pytest.approx(ours)
    assert scores["ours alone"] != pytest.approx(ours), "the premise: the prompt matters"
