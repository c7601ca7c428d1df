"""Queries are kept if a teacher finds their document: ranks, what is asked, what is counted."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

from tasks.contract.records import DOCUMENT_SCHEMA, EVALUATION_SCHEMA, EXAMPLE_SCHEMA, write_table
from tasks.contract.stage import StageError
from tasks.params.data import RoundTrip
from tasks.params.load import Params, load_params
from tasks.params.teach import Teach
from tasks.synthesize.__main__ import synthesize
from tasks.synthesize.drafts import Document, Draft, Drafts
from tasks.synthesize.round_trip import count_nearer, keep_found
from tasks.teach.asking import CACHE, ask, texts_of
from tasks.teach.teacher import Teacher

PROFILE = Path(__file__).parents[2] / "infra" / "profiles" / "sample.yaml"
QUERY, PASSAGE = "query: ", "passage: "
WORDS = ["озеро", "самовар", "город", "лес", "река", "гора", "поле", "море", "зима", "лето", "дым"]


def document(number: int, **changed: str) -> Document:
    dice = np.random.default_rng(number)
    title, *sentences = (" ".join(dice.choice(WORDS, 5)) for _ in range(4))
    values = {"title": title, "text": f"{'. '.join(sentences)} {number}."} | changed
    return Document(str(number), "documents", "ru", values["title"], values["text"])


DOCUMENTS = [document(number) for number in range(40)]


@pytest.fixture
def params(pico_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """The sample profile with the pico encoder as a teacher, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    model = {
        "source": str(pico_folder), "revision": None, "max_length_tokens": 64,
        "query_prompt": QUERY, "document_prompt": PASSAGE,
    }  # fmt: skip
    teach = {"teachers": {"pico": model}, "sources": [], "documents": False, "block_texts": 8}
    return load_params(PROFILE).model_copy(update={"teach": Teach.model_validate(teach)})


def settings(**changed: Any) -> RoundTrip:
    return RoundTrip.model_validate({"teacher": "pico", "top_k": 2, "pool": 30} | changed)


def drafts_of(documents: list[Document], *, whole: bool = True) -> Drafts:
    """A draft each, whose query is a piece of it or of another document."""
    pieces = [
        DOCUMENTS[place if place % 2 else place - 7].text[:40] for place in range(len(documents))
    ]
    return Drafts(
        [
            Draft("keywords", "ru", piece, each.whole if whole else each.text)
            for piece, each in zip(pieces, documents, strict=True)
        ]
    )


def by_brute_force(
    folder: Path, drafts: Drafts, pool: list[Document], top_k: int, *, whole: bool
) -> list[str]:
    """One pair at a time, by the vectors of sentence-transformers."""
    model = SentenceTransformer(str(folder), device="cpu")

    def vectors(prompt: str, texts: list[str]) -> Any:
        found = model.encode(texts, prompt=prompt, normalize_embeddings=True)
        return found.astype(np.float16).astype(np.float64)

    kept = []
    for draft in drafts.kept:
        query = vectors(QUERY, [draft.query])[0]
        own = query @ vectors(PASSAGE, [draft.positive])[0]
        others = [
            each.whole for each in pool if draft.positive != (each.whole if whole else each.text)
        ]
        nearer = sum(query @ vector > own for vector in vectors(PASSAGE, others))
        if nearer < top_k:
            kept.append(draft.positive)
    return kept


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("top_k", [1, 5])
def test_what_is_kept_equals_brute_force(
    params: Params, pico_folder: Path, top_k: int, whole: bool
) -> None:
    """Drafts with and without title, of documents inside and outside of the pool."""
    pool, drafts = DOCUMENTS[:30], drafts_of(DOCUMENTS, whole=whole)
    found = keep_found(drafts, pool, params, settings(top_k=top_k))
    expected = by_brute_force(pico_folder, drafts, pool, top_k, whole=whole)
    assert [draft.positive for draft in found.kept] == expected
    assert 0 < len(expected) < len(drafts.kept)
    assert found.rejected == {"document_not_found": len(drafts.kept) - len(expected)}


@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(0, 9), st.integers(1, 5))
def test_ranks_equal_sorting(seed: int, queries: int, others: int, size: int) -> None:
    """Small whole numbers, so that many are equally near: those do not count as nearer."""
    dice = np.random.default_rng(seed)
    query_BD, own_BD, pool_PD = (
        dice.integers(-2, 3, (rows, size)).astype(np.float32) for rows in (queries, queries, others)
    )
    is_own_BP = dice.random((queries, others)) < 0.2
    expected = [
        sum(
            float(query_BD[b] @ pool_PD[p]) > float(query_BD[b] @ own_BD[b])
            for p in range(others)
            if not is_own_BP[b, p]
        )
        for b in range(queries)
    ]
    assert count_nearer(query_BD, own_BD, pool_PD, is_own_BP).tolist() == expected


def test_a_document_twice_in_the_pool_is_no_rival_of_itself(params: Params) -> None:
    """Nor is one of equal text and another title, where the draft holds the text alone."""
    one = document(1)
    draft = Draft("title", "ru", "что угодно", one.text)
    pool = [one, document(2, text=one.text), document(1)]
    assert keep_found(Drafts([draft]), pool, params, settings(top_k=1)).kept == [draft]


def test_no_drafts_and_no_rivals_are_no_fault(params: Params) -> None:
    assert keep_found(Drafts(), DOCUMENTS[:3], params, settings()).kept == []
    drafts = drafts_of(DOCUMENTS[:4])
    assert keep_found(drafts, [], params, settings()).kept == drafts.kept


def test_an_average_is_asked_by_its_parts(params: Params) -> None:
    """Its similarities are the weighted means of theirs, and only its parts have caches."""
    teach = params.teach.model_dump()
    other = teach["teachers"]["pico"] | {"query_prompt": "иное: ", "document_prompt": "другое: "}
    teach["teachers"] |= {"other": other, "both": {"average": {"pico": 1.0, "other": 2.0}}}
    averaging = params.model_copy(update={"teach": Teach.model_validate(teach)})
    drafts = drafts_of(DOCUMENTS)
    both = keep_found(drafts, DOCUMENTS[:30], averaging, settings(teacher="both"))
    assert len(both.kept) + sum(both.rejected.values()) == len(drafts.kept)
    assert len(list(CACHE.iterdir())) == 2
    shown = [(False, document.whole) for document in DOCUMENTS[:30]]
    texts = texts_of(lambda: iter([shown]))
    records = ask(["pico", "other", "both"], texts, averaging.teach, averaging.compute)
    cosines = {
        name: (vectors := record.read(texts.keys).astype(np.float64)) @ vectors.T
        for name, record in records.items()
    }
    expected = (cosines["pico"] + 2.0 * cosines["other"]) / 3.0
    np.testing.assert_allclose(cosines["both"], expected, atol=2e-3)
    assert len(list(CACHE.iterdir())) == 2


# The stage as a whole.


def ingest() -> None:
    folder = Path("artifacts/ingest")
    rows = [vars(each) for each in DOCUMENTS]
    write_table(pa.Table.from_pylist(rows, DOCUMENT_SCHEMA), folder / "documents")
    texts = [{"task": "STS", "text": "Проверка"}]
    write_table(pa.Table.from_pylist(texts, EVALUATION_SCHEMA), folder / "evaluation")
    write_table(pa.Table.from_pylist([], EXAMPLE_SCHEMA), folder / "development")


def with_section(params: Params, **changed: Any) -> Params:
    section = params.synthesize.model_copy(update=changed)
    return params.model_copy(update={"synthesize": section})


def metrics() -> dict[str, Any]:
    return json.loads(Path("artifacts/synthesize/metrics.json").read_text())


def test_the_stage_counts_what_the_teacher_does_not_find(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest()
    synthesize(params)
    everything = metrics()
    asked: list[str] = []
    real = Teacher.embed

    def embed(self: Teacher, texts: list[str], *, is_query: bool) -> Any:
        asked.extend(texts)
        return real(self, texts, is_query=is_query)

    monkeypatch.setattr(Teacher, "embed", embed)
    filtered = with_section(params, round_trip=settings(top_k=1))
    synthesize(filtered)
    dropped = metrics()["rejected"]["document_not_found"]
    assert 0 < dropped < everything["examples"]
    assert metrics()["examples"] <= everything["examples"] - dropped + everything["rejected"].get(
        "query_repeated", 0
    )
    first = sorted(path.read_bytes() for path in Path("artifacts/synthesize").rglob("*.*"))
    asked.clear()
    synthesize(filtered)
    assert asked == [], "every vector is in the cache of the teacher"
    again = sorted(path.read_bytes() for path in Path("artifacts/synthesize").rglob("*.*"))
    assert first == again


def test_a_filter_that_lets_nothing_through_is_an_error_that_counts(params: Params) -> None:
    ingest()
    nothing = settings()  # by the arithmetic alone: no rank is below zero
    object.__setattr__(nothing, "top_k", 0)
    with pytest.raises(StageError, match=r"none of 40 documents .*'document_not_found': \d+"):
        synthesize(with_section(params, round_trip=nothing))


def test_a_pool_in_which_nothing_could_fail_is_refused() -> None:
    with pytest.raises(ValueError, match="pool 3 is below top_k 4: all would pass"):
        settings(pool=3, top_k=4)
