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
from model.encoder.pooling.build import LatentSize, PoolingSettings
from model.training.data.recorded_vectors import RecordedVectors, text_keys, write_vectors
from tasks.contract.records import DOCUMENT_SCHEMA, EXAMPLE_SCHEMA, write_table
from tasks.contract.stage import StageError
from tasks.params.load import Params, load_params
from tasks.params.teach import Teach
from tasks.teach.__main__ import teach
from tasks.teach.agreement import WEAK
from tasks.teach.asking import CACHE
from tasks.teach.average import averaged
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

    def add(self: VectorCache, keys: Any, vectors: Any, tokens: int) -> None:
        real(self, keys, vectors, tokens)
        blocks.append(len(keys))
        if len(blocks) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(VectorCache, "add", add)
        with pytest.raises(KeyboardInterrupt):
            teach(params)
    (vectors,) = CACHE.rglob("vectors-32.bin")
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


def test_a_disk_without_room_for_the_cache_is_named(params: Params) -> None:
    """ENOSPC itself: every write to /dev/full says it."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    teach(params)
    expected = contents(VECTORS)
    (file,) = CACHE.rglob("*.bin")
    file.unlink()
    file.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"vectors-32\.bin \(No space left on device\): free space"):
        teach(params)
    assert contents(VECTORS) == expected
    file.unlink()
    shutil.rmtree("artifacts/teach")
    teach(params)
    assert contents(VECTORS) == expected


def test_a_disk_without_room_for_the_output_is_named_and_nothing_is_asked_again(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    teach(params)
    expected = contents(VECTORS)
    shutil.rmtree("artifacts/teach")
    with files_up_to(300), pytest.raises(OSError, match=r"vectors/pico/vectors\.npy .*disk"):
        teach(params)
    assert not [path for path in Path("artifacts").iterdir() if "teach" in path.name]
    asked = count_asked(monkeypatch)
    teach(params)
    assert asked == []
    assert contents(VECTORS) == expected


RECORD = 16 + 2 * 32


def flip(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize(
    ("damage", "lost"),
    [
        (lambda content: content[:-5], 1),
        (lambda content: content[: -2 * RECORD], 2),
        (lambda content: flip(content, RECORD + 40), 1),  # of a vector
        (lambda content: flip(content, RECORD + 9), 1),  # of a key
        (lambda content: flip(content, RECORD + 5), 1),  # of what it cost
        (lambda content: flip(content, RECORD), 1),  # of the sum
        (lambda content: content[: 3 * RECORD] + bytes(2 * RECORD) + content[5 * RECORD :], 2),
        (lambda content: content + bytes(RECORD + 7), 0),
        (lambda content: content[:0], 8),
    ],
)
def test_what_a_crash_did_to_the_cache_is_found_and_asked_again(
    params: Params,
    damage: Callable[[bytes], bytes],
    lost: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teach(params)
    expected = contents(VECTORS)
    (file,) = CACHE.rglob("*.bin")
    assert file.stat().st_size == 8 * RECORD
    file.write_bytes(damage(file.read_bytes()))
    asked = count_asked(monkeypatch)
    teach(params)
    assert len(asked) == lost
    before, after = (
        np.frombuffer(each["vectors.npy"][-8 * 64 :], "<f2").astype(np.float32)
        for each in (expected, contents(VECTORS))
    )
    assert contents(VECTORS)["keys.npy"] == expected["keys.npy"]
    np.testing.assert_allclose(after, before, atol=2e-3)  # other neighbours in its block


def test_a_model_is_not_loaded_to_say_what_it_said(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    teach(params)
    expected = contents(VECTORS)
    monkeypatch.setattr(Teacher, "__init__", None)
    teach(params)
    assert contents(VECTORS) == expected


def test_teachers_that_are_shown_nothing_are_an_error(params: Params) -> None:
    with pytest.raises(StageError, match=r"shown nothing: name teach\.sources"):
        teach(with_teach(params, teachers=params.teach.teachers, sources=[], documents=False))


@pytest.mark.parametrize(
    "pooling",
    [
        {"kind": "mean", "projection": 12},
        {"kind": "last"},
        {
            "kind": "latent",
            "latent": LatentSize(num_latents=6, num_heads=2, head_dim=4, expansion=2),
        },
    ],
)
def test_a_version_of_this_project_is_a_teacher(
    params: Params, pico_encoder: Encoder, tmp_path: Path, pooling: dict[str, Any]
) -> None:
    """One with weights in its pooling too, and no code of its folder is run."""
    pico = pico_encoder
    torch.manual_seed(1)
    encoder = Encoder(
        pico.backbone, pico.tokenizer, PoolingSettings(**pooling), max_length_tokens=64
    )
    encoder.save(tmp_path / "version")
    for file in (tmp_path / "version").glob("*.py"):
        file.write_text("raise SystemExit('code of a folder was run')")
    teach(with_teach(params, teachers={"pico": teacher_of(tmp_path / "version")}))
    for is_query, prompt in ((True, QUERY), (False, DOCUMENT)):
        texts = ["похоже", "где самовар?"] if is_query else DOCUMENTS
        expected = encoder.encode(texts, prompt=prompt, batch_tokens=512)
        got = RecordedVectors(VECTORS).find([(is_query, text) for text in texts])
        np.testing.assert_allclose(got, expected, atol=1e-3)


def test_an_average_has_the_weighted_means_of_the_cosines() -> None:
    """Of teachers of any size, exactly."""
    rng = np.random.default_rng(0)
    weights, parts = (0.7, 0.2, 2.5), [rng.normal(size=(20, size)) for size in (5, 48, 16)]
    got = averaged(list(zip(weights, parts, strict=True)))
    assert got.shape == (20, 69)
    assert got.dtype == np.float64
    expected = np.zeros((20, 20))
    for weight, part in zip(weights, parts, strict=True):
        lengths = np.sqrt((part**2).sum(axis=1))
        expected += weight / sum(weights) * (part @ part.T) / np.outer(lengths, lengths)
    np.testing.assert_allclose(got @ got.T, expected, atol=1e-14)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1.0, atol=1e-14)


def test_an_average_asks_nobody_again(
    params: Params, pico_encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pico_encoder.settings = PoolingSettings(kind="mean", projection=12)
    other = Encoder(
        pico_encoder.backbone, pico_encoder.tokenizer, pico_encoder.settings, max_length_tokens=64
    )
    other.save(tmp_path / "other")
    teachers = {
        "both": {"average": {"pico": 3, "other": 1}},
        "pico": params.teach.teachers["pico"].model_dump(),
        "other": teacher_of(tmp_path / "other"),
    }
    asked = count_asked(monkeypatch)
    teach(with_teach(params, teachers=teachers))
    assert len(asked) == 2 * 8
    texts = [(True, "что глубже?"), (True, "похоже"), *((False, text) for text in DOCUMENTS)]
    both, pico, small = (
        RecordedVectors(VECTORS.with_name(name)).find(texts).astype(np.float64)
        for name in ("both", "pico", "other")
    )
    assert (both.shape[1], pico.shape[1], small.shape[1]) == (44, 32, 12)
    np.testing.assert_allclose(
        both @ both.T, 0.75 * pico @ pico.T + 0.25 * small @ small.T, atol=1e-3
    )
    metrics = json.loads(Path("artifacts/teach/metrics.json").read_text())["teachers"]
    assert metrics["both"]["embedding_size"] == 44
    assert set(metrics["both"]["positive_is_nearer"]) == {"questions"}
    del asked[:]
    teach(with_teach(params, teachers=teachers | {"both": {"average": {"pico": 1, "other": 1}}}))
    assert asked == []


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


def with_modules(change: Callable[[list[dict[str, str]]], object]) -> Callable[[Path], Path]:
    def damage(folder: Path) -> Path:
        modules = json.loads((folder / "modules.json").read_text())
        change(modules)
        (folder / "modules.json").write_text(json.dumps(modules))
        return folder

    return damage


def with_a_stranger(folder: Path) -> Path:
    (folder / "samovar.json").unlink()
    return with_modules(lambda modules: modules[1].update(type="evil.Module"))(folder)


def with_half_a_list(folder: Path) -> Path:
    (folder / "modules.json").write_text("[{")
    return folder


def without_a_folder(folder: Path) -> Path:
    shutil.rmtree(folder / "1_Pooling")
    return folder


def with_zeros(folder: Path) -> Path:
    encoder = Encoder.load(folder)
    with torch.no_grad():
        for weight in encoder.backbone.parameters():
            weight.zero_()
    encoder.save(folder)
    return folder


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_pooling, r"has no modules\.json"),
        (with_modules(lambda modules: modules.pop(1)), r"has a modules\.json without a pooling"),
        (with_modules(lambda modules: modules.clear()), "cannot load .* that it is whole"),
        (with_a_stranger, "cannot load .*'evil.Module'"),
        (with_half_a_list, "cannot load .*JSONDecodeError"),
        (without_a_folder, r"cannot load .* with the folders that its modules\.json names"),
        (with_nan, "numbers that are not finite.* take another teacher"),
        (with_zeros, "nothing but zeros"),
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
    assert "the teacher pico finds the positive nearer" in caplog.text
    assert "does not know this language" in caplog.text


def test_a_teacher_without_russian_letters_is_said(
    params: Params, pico_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is left of each text is its prompt, so none is nearer than another."""
    folder = tmp_path / "latin"
    shutil.copytree(pico_folder, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {
        "type": "Replace", "pattern": {"Regex": "[А-Яа-яЁё ]"}, "content": "",
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    rows = [example(f"вопрос {'о' * number}", f"ответ {'а' * number}") for number in range(30)]
    write_corpus(rows, [])
    teach(with_teach(params, teachers={"latin": teacher_of(folder)}, sources=["questions"]))
    metrics = json.loads(Path("artifacts/teach/metrics.json").read_text())
    assert metrics["teachers"]["latin"]["positive_is_nearer"]["questions"] < WEAK
    assert "the teacher latin finds the positive nearer" in caplog.text
    assert "Correct query_prompt and document_prompt, or take another teacher" in caplog.text


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
