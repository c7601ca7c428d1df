"""An extended vocabulary leaves texts without new tokens as they were, in every family."""

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from model.backbone.vocabulary.company import NEIGHBOURS, TEMPERATURE, similar_tokens
from model.backbone.vocabulary.extend import (
    count_words,
    extend,
    extend_tokenizer,
    grown_rows,
    join_pairs,
    learn_pairs,
    means_of_pieces,
)
from model.backbone.vocabulary.families import Pair
from model.backbone.vocabulary.trim import compare
from tests.unit.test_vocabulary import (
    FAMILIES,
    PIECES,
    SPECIAL,
    TEXTS,
    UNKNOWN,
    gemma,
    qwen,
    wrapped,
)

CORPUS = [
    *TEXTS,
    "Самовары стояли на столах, самоварами гордились, самоваров было много.",
    "На столе стоял самовар; у самовара сидели гости, пили чай и говорили о самоварах.",
    "Озёра глубокие и озёра мелкие: глубина озера Байкал больше глубины прочих озёр.",
]
CACHE: dict[str, tuple[Any, list[Pair], Any]] = {}


def extended(family: str) -> tuple[PreTrainedTokenizerFast, list[Pair], PreTrainedTokenizerFast]:
    if family not in CACHE:
        tokenizer = wrapped(FAMILIES[family]())
        pairs = learn_pairs(tokenizer, CORPUS, new_tokens=60, min_count=2)
        CACHE[family] = tokenizer, pairs, extend_tokenizer(tokenizer, pairs)
    return CACHE[family]


@settings(max_examples=400, deadline=None)
@given(
    family=st.sampled_from(sorted(FAMILIES)),
    text=st.lists(PIECES | st.sampled_from(CORPUS), max_size=6).map("".join) | st.text(max_size=8),
)
def test_a_text_keeps_its_ids_or_has_fewer(family: str, text: str) -> None:
    tokenizer, pairs, larger = extended(family)
    before, after = tokenizer(text).input_ids, larger(text).input_ids
    first_new = len(larger) - len(pairs)
    if all(id_ < first_new for id_ in after):
        assert after == before
    else:
        assert len(after) < len(before)
    pieces = dict(enumerate(means_of_pieces(tokenizer, pairs), start=first_new))
    parts = [part for id_ in after for part in pieces.get(id_, ([id_], []))[0]]
    # a Unigram may join the pieces of a cut that is as good: a text of the same pieces in a row
    assert parts == before or (family == "Unigram" and sorted(parts) == sorted(before))
    # tokenizers without a decoder set spaces between tokens
    after_text, before_text = larger.decode(after), tokenizer.decode(before)
    assert after_text.replace(" ", "") == before_text.replace(" ", "")
    assert tokenizer.backend_tokenizer.decoder is None or after_text == before_text


@pytest.mark.parametrize("family", FAMILIES)
def test_every_token_is_made_from_texts_as_it_was_learnt(family: str) -> None:
    """Of a BPE the cut of each word is the one that learning ended with."""
    tokenizer, pairs, larger = extended(family)
    assert 20 <= len(pairs) <= 60
    words = count_words(tokenizer, CORPUS)
    made: dict[str, int] = {}
    for word, count in words.items():
        parts = list(word)
        for pair in pairs:
            for place, two in enumerate(pairwise(parts)):
                if two == pair:
                    parts[place : place + 2] = ["".join(pair), ""]
            parts = [part for part in parts if part]
        for token in parts:
            made[token] = made.get(token, 0) + count
    found = [token for text in CORPUS for token in larger.tokenize(text)]
    if family != "Unigram":
        assert {token: found.count(token) for token in set(found)} == made
    assert any("самовар" in larger.decode(larger.convert_tokens_to_ids(token)) for token in found)
    coverage = compare(tokenizer, larger, list(range(len(tokenizer))), CORPUS)
    assert coverage.same < len(CORPUS)
    assert coverage.tokens_after == len(found) < coverage.tokens_before


@pytest.mark.parametrize("family", FAMILIES)
def test_old_tokens_keep_their_ids_names_and_meaning(family: str) -> None:
    tokenizer, pairs, larger = extended(family)
    vocabulary = larger.get_vocab()
    assert len(larger) == len(tokenizer) + len(pairs) == len(vocabulary)
    assert vocabulary.items() >= tokenizer.get_vocab().items()
    assert larger.all_special_ids == tokenizer.all_special_ids
    text = "<eos>чай<pad>"
    marked = [id_ for id_ in larger(text).input_ids if id_ in larger.all_special_ids]
    assert marked == [id_ for id_ in tokenizer(text).input_ids if id_ in larger.all_special_ids]
    assert {larger.eos_token_id, larger.pad_token_id} <= set(marked)


@pytest.mark.parametrize("build", [qwen, gemma])
@pytest.mark.parametrize("family", ["byte-level BPE", "Unigram"])
def test_new_rows_are_the_means_of_their_pieces(
    family: str, build: Callable[[Any], PreTrainedModel]
) -> None:
    tokenizer, pairs, larger = extended(family)
    decoder = build(tokenizer)
    old_VD = decoder.get_input_embeddings().weight.detach().clone()
    extend(decoder, len(tokenizer), means_of_pieces(tokenizer, pairs))
    new_VD = decoder.get_input_embeddings().weight.detach()
    assert new_VD.shape == (len(larger), old_VD.shape[1])
    assert decoder.config.vocab_size == decoder.get_input_embeddings().num_embeddings == len(larger)
    assert torch.equal(new_VD[: len(tokenizer)], old_VD[: len(tokenizer)])
    for token in ("".join(pair) for pair in pairs):
        own = [left + right for left, right in pairs]
        parts = [token]
        while any(part in own for part in parts):
            parts = [
                piece
                for part in parts
                for piece in (pairs[own.index(part)] if part in own else [part])
            ]
        expected = old_VD[tokenizer.convert_tokens_to_ids(parts)].mean(0)
        torch.testing.assert_close(new_VD[larger.convert_tokens_to_ids(token)], expected)
    ids = torch.tensor([larger(CORPUS[-1]).input_ids])
    with torch.inference_mode():
        assert decoder(ids).last_hidden_state.isfinite().all()


def test_a_table_of_the_output_grows_alike() -> None:
    head_VD = torch.arange(12.0).reshape(6, 2)
    mixtures = [([0, 1, 1], [0.25, 0.5, 0.25]), ([3], [1.0])]
    grown_VD = grown_rows(head_VD, 5, mixtures)
    assert torch.equal(grown_VD[:5], head_VD[:5])
    assert grown_VD[5:].tolist() == [[1.5, 2.5], [6.0, 7.0]]


def test_similar_rows_are_those_of_tokens_in_the_same_company() -> None:
    """Two words are used alike, and one of them is a token already."""
    words = ["чай", "сок", "мёд", "гриб", "дом", "кот"]
    base = Tokenizer(models.BPE(**UNKNOWN))
    base.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(special_tokens=SPECIAL, show_progress=False)
    letters = [" ".join("абвгдеёжзийклмнопрстуфхцчшщъыьэюя")]
    base.train_from_iterator(letters + words[1:] * 9, trainer)
    tokenizer = wrapped(base)
    texts = ["пью чай утром", "пью сок утром", "кот вижу дом", "дом вижу гриб"] * 20
    pairs = learn_pairs(tokenizer, texts, new_tokens=20, min_count=5)
    larger = extend_tokenizer(tokenizer, pairs)
    means = means_of_pieces(tokenizer, pairs)
    mixtures = similar_tokens(larger, texts, means, min_count=5)
    ids, weights = mixtures[[left + right for left, right in pairs].index("чай")]
    assert larger.convert_ids_to_tokens(ids[0]) == "сок"
    assert sum(weights) == pytest.approx(1)
    assert weights == sorted(weights, reverse=True)
    assert len(ids) <= NEIGHBOURS
    assert max(ids) < len(tokenizer)
    # cosine 1 with its like: the others fall off by their distance over the temperature
    assert weights[1] / weights[0] <= torch.tensor(-0.1 / TEMPERATURE).exp()
    assert mixtures == similar_tokens(larger, texts, means, min_count=5)
    unused = similar_tokens(larger, ["кот"] * 9, means, min_count=5)
    assert unused == means  # nothing stands near anything
    assert similar_tokens(larger, texts, means, min_count=10**6) == means


def test_the_most_frequent_pair_is_joined_first() -> None:
    words = {("a", "b", "c"): 5, ("a", "b"): 3, ("b", "c", "c", "c"): 4, ("x", "y"): 9}
    every = join_pairs(words, "abcxy", new_tokens=9, min_count=1, may_join=bool)
    # bc and xy stand 9 times; then a 5 times before bc, and bc 4 times before c
    assert every[:2] == [("b", "c"), ("x", "y")]
    assert every[2:] == [("a", "bc"), ("bc", "c"), ("bcc", "c"), ("a", "b")]
    assert join_pairs(words, ["bc"], new_tokens=2, min_count=4, may_join="xy".__ne__) == [
        ("a", "b"),
        ("c", "c"),
    ]


def test_tokens_never_cross_words_nor_hold_bytes() -> None:
    _, pairs, _ = extended("BPE with byte fallback")
    for token in ("".join(pair) for pair in pairs):
        assert token.removeprefix("▁").isalpha()


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_to_learn_is_an_error(family: str) -> None:
    tokenizer = wrapped(FAMILIES[family]())
    with pytest.raises(ValueError, match="no token to add: lower the least count"):
        learn_pairs(tokenizer, CORPUS, new_tokens=9, min_count=10**6)
    with pytest.raises(ValueError, match="hold no text to learn tokens from"):
        learn_pairs(tokenizer, [""], new_tokens=9, min_count=1)


def test_families_that_cannot_grow_are_refused() -> None:
    words = Tokenizer(models.WordPiece(**UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator(TEXTS, trainers.WordPieceTrainer(special_tokens=SPECIAL))
    with pytest.raises(ValueError, match="family WordPiece"):
        learn_pairs(wrapped(words), TEXTS, new_tokens=9, min_count=1)
    content = json.loads(FAMILIES["byte-level BPE"]().to_str())
    content["model"]["end_of_word_suffix"] = "</w>"
    ends = wrapped(Tokenizer.from_str(json.dumps(content)))
    with pytest.raises(ValueError, match="BPE with end_of_word_suffix"):
        learn_pairs(ends, TEXTS, new_tokens=9, min_count=1)


def test_a_unigram_whose_unknown_characters_would_cost_otherwise_is_refused() -> None:
    content = json.loads(FAMILIES["Unigram"]().to_str())
    content["model"]["vocab"].append(["аж", -9.0])
    content["added_tokens"][-1]["id"] += 1
    tokenizer = wrapped(Tokenizer.from_str(json.dumps(content)))
    with pytest.raises(ValueError, match="hold 'ж', which is no piece"):
        extend_tokenizer(tokenizer, [("с", "т")])
