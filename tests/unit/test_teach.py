"""The stage teach: vectors of a teacher by content, and trainings that look them up."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from sentence_transformers import SentenceTransformer

from model.encoder.encoder import Encoder
from model.training.data.recorded_vectors import RecordedVectors, text_keys, write_vectors
from tasks.contract.records import DOCUMENT_SCHEMA, EXAMPLE_SCHEMA, write_table
from tasks.contract.stage import StageError
from tasks.params.load import Params, load_params
from tasks.params.teach import Teach
from tasks.teach.__main__ import CACHE, teach
from tasks.teach.cache import VectorCache
from tasks.teach.teacher import Teacher
from tests.unit.file_limit import files_up_to

PROFILE = Path(__file__).parents[2] / "infra" / "profiles" / "sample.yaml"
VECTORS = Path("artifacts/teach/vectors/pico")
QUERY, DOCUMENT = "query: ", "passage: "


def example(query: str, positive: str, **others: Any) -> dict[str, Any]:
    row = {
        "id": query, "task": "retrieval", "source": "questions", "lang": "ru", "query": query,
        "positives": [positive], "positive_scores": None, "negatives": [],
        "negative_scores": None, "label": None, "score": None,
    }  # fmt: skip
    return row | others


ROWS = [
    example("что глубже?", "Байкал — самое глубокое озеро на Земле."),
    example("где самовар?", "Самовар стоит на столе.", negatives=["Кошка спит на тёплой печи."]),
    example("похоже", "подобно", task="sts", source="pairs", score=1.0),
    example("не спрошено", "никем", source="others"),
]
DOCUMENTS = ["Волга впадает в Каспийское море.", "Самовар стоит на столе."]


def write_corpus(rows: list[dict[str, Any]], documents: list[str]) -> None:
    texts = [
        {"id": text, "source": "s", "lang": "ru", "title": "", "text": text} for text in documents
    ]
    tables = {"examples": (rows, EXAMPLE_SCHEMA), "documents": (texts, DOCUMENT_SCHEMA)}
    for name, (content, schema) in tables.items():
        folder = Path("artifacts/ingest") / name
        for old in folder.glob("*"):
            old.unlink()
        write_table(pa.Table.from_pylist(content, schema), folder)


@pytest.fixture
def params(pico_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """The sample profile with the pico encoder as a teacher, in a folder with a small corpus."""
    monkeypatch.chdir(tmp_path)
    write_corpus(ROWS, DOCUMENTS)
    loaded = load_params(PROFILE)
    return with_teach(loaded, teachers={"pico": teacher_of(pico_folder)})


def teacher_of(folder: Path | str, **others: Any) -> dict[str, Any]:
    model = {"source": str(folder), "revision": None, "max_length_tokens": 64}
    return model | {"query_prompt": QUERY, "document_prompt": DOCUMENT} | others


def with_teach(params: Params, **changes: Any) -> Params:
    fields = {"sources": ["questions", "pairs"], "documents": True, "block_texts": 2}
    settings = Teach.model_validate(fields | changes)
    return params.model_copy(update={"teach": settings})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_text_has_the_vector_that_the_teacher_gives_it(
    params: Params, pico_folder: Path
) -> None:
    teach(params)
    queries = ["что глубже?", "где самовар?", "похоже", "подобно"]  # sts: both are queries
    documents = [*DOCUMENTS, ROWS[0]["positives"][0], "Кошка спит на тёплой печи."]
    model = SentenceTransformer(str(pico_folder), device="cpu")
    for is_query, prompt, texts in ((True, QUERY, queries), (False, DOCUMENT, documents)):
        expected = model.encode(texts, prompt=prompt, normalize_embeddings=True)
        got = RecordedVectors(VECTORS).find([(is_query, text) for text in texts])
        np.testing.assert_allclose(got, expected, atol=1e-3)
    metrics = json.loads(Path("artifacts/teach/metrics.json").read_text())["teachers"]["pico"]
    assert metrics["texts"] == len(queries) + len(documents)
    assert metrics["embedding_size"] == 32
    assert set(metrics["positive_is_nearer"]) == {"questions"}


def test_a_text_that_was_not_shown_is_named(params: Params) -> None:
    teach(params)
    vectors = RecordedVectors(VECTORS)
    with pytest.raises(ValueError, match=r"1 of 2 texts have no vector.*document 'никем'"):
        vectors.find([(True, "похоже"), (False, "никем")])
    with pytest.raises(ValueError, match="query 'Самовар"):
        vectors.find([(True, "Самовар стоит на столе.")])


def test_only_new_texts_are_asked_about(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = count_asked(monkeypatch)
    teach(params)
    before = contents(VECTORS)
    del asked[:]
    teach(params)
    assert asked == []
    assert contents(VECTORS) == before
    write_corpus([*ROWS, example("новое?", "Да.")], DOCUMENTS[:1])
    teach(params)
    assert sorted(asked) == ["Да.", "новое?"]
    assert len(np.load(VECTORS / "keys.npy")) == len(set(np.load(VECTORS / "keys.npy")))


def count_asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    asked: list[str] = []
    real = Teacher.embed

    def embed(self: Teacher, texts: list[str], *, is_query: bool) -> Any:
        asked.extend(text for text in texts if text != "Проба.")
        return real(self, texts, is_query=is_query)

    monkeypatch.setattr(Teacher, "embed", embed)
    return asked


def test_a_killed_run_goes_on_to_the_same_bytes(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    teach(params)
    expected = contents(VECTORS)
    for file in CACHE.rglob("*.bin"):
        file.unlink()
    real = VectorCache.add
    blocks: list[int] = []

    def add(self: VectorCache, keys: Any, vectors: Any) -> None:
        real(self, keys, vectors)
        blocks.append(len(keys))
        if len(blocks) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(VectorCache, "add", add)
        with pytest.raises(KeyboardInterrupt):
            teach(params)
    (vectors,) = CACHE.rglob("vectors.bin")
    vectors.write_bytes(vectors.read_bytes() + b"half a vector")
    asked = count_asked(monkeypatch)
    teach(params)
    assert len(asked) == len(np.load(VECTORS / "keys.npy")) - sum(blocks)
    assert contents(VECTORS) == expected


def test_a_full_disk_loses_nothing(params: Params) -> None:
    with files_up_to(200), pytest.raises(OSError, match="cannot write"):
        teach(params)
    assert not Path("artifacts/teach").exists()
    teach(params)
    RecordedVectors(VECTORS).find([(True, "похоже")])


def without_pooling(folder: Path) -> Path:
    for name in ("modules.json", "config_sentence_transformers.json"):
        (folder / name).unlink()
    return folder


def with_nan(folder: Path) -> Path:
    encoder = Encoder.load(folder)
    with torch.no_grad():
        encoder.backbone.get_input_embeddings().weight.fill_(float("nan"))  # pyright: ignore[reportAttributeAccessIssue]
    encoder.save(folder)
    return folder


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_pooling, r"has no modules\.json"),
        (with_nan, "numbers that are not finite"),
        (lambda folder: folder / "nowhere" / "at-all", "sentence-transformers cannot load"),
    ],
)
def test_a_teacher_that_cannot_be_believed_is_refused(
    params: Params,
    pico_folder: Path,
    tmp_path: Path,
    damage: Callable[[Path], Path],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "teacher"
    shutil.copytree(pico_folder, folder)
    own = with_teach(params, teachers={"pico": teacher_of(damage(folder))})
    with pytest.raises(StageError, match=message):
        teach(own)
    assert not Path("artifacts/teach").exists()


def test_a_teacher_that_does_not_know_the_texts_is_said(
    params: Params, caplog: pytest.LogCaptureFixture
) -> None:
    """Random weights find the positive by chance."""
    rows = [example(f"вопрос {number}", f"{number * 7919 % 1009}") for number in range(60)]
    write_corpus(rows, [])
    teach(with_teach(params, teachers=params.teach.teachers, sources=["questions"]))
    assert "does not know this language" in caplog.text


def test_a_source_without_rows_is_named(params: Params) -> None:
    with pytest.raises(StageError, match=r"teach\.sources names absent"):
        teach(with_teach(params, teachers=params.teach.teachers, sources=["absent"]))


def test_without_teachers_nothing_is_loaded(params: Params) -> None:
    teach(with_teach(params, teachers={}, sources=[]))
    assert [path.name for path in Path("artifacts/teach/vectors").iterdir()] == ["teachers.json"]
    assert json.loads(Path("artifacts/teach/metrics.json").read_text()) == {"teachers": {}}


def test_files_that_are_no_vectors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no vectors"):
        RecordedVectors(tmp_path)
    keys = np.sort(text_keys([(True, "а"), (True, "б")]))
    write_vectors(tmp_path / "short", keys, 4, [np.ones((1, 4), np.float16)])
    with pytest.raises(ValueError, match="holds no vectors"):
        RecordedVectors(tmp_path / "short")
