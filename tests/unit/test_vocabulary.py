"""A trimmed vocabulary leaves texts of kept tokens as they were, in every family of tokenizers."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    Gemma3TextConfig,
    Gemma3TextModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
)

from model.backbone.vocabulary.trim import compare, count_tokens, select_tokens, trim

RUSSIAN = [
    "Самовар стоит на столе.",
    "Байкал — самое глубокое озеро на Земле.",
    "Сколько спутников у Марса?",
    "ааааа бббб, стол, стола, столы",
]
TEXTS = [
    *RUSSIAN,
    "Водород — самый лёгкий элемент.",
    "The samovar is on the table, and the table is on the floor.",
    "Der Samowar steht auf dem Tisch, ein zweiter steht daneben.",
    "Чай пьют с мёдом, вареньем и сушками.",
]
UNKNOWN = {"unk_token": "<unk>"}
ENDS = {"pad_token": "<pad>", "eos_token": "<eos>"}
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>"]


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens(SPECIAL)  # after the model, as in Qwen
    return tokenizer


def whole_words() -> Tokenizer:
    """As Llama 3: a word of the vocabulary is taken whole."""
    tokenizer = byte_level()
    content = json.loads(tokenizer.to_str())
    content["model"]["ignore_merges"] = True
    return Tokenizer.from_str(json.dumps(content))


def byte_fallback() -> Tokenizer:
    """As Gemma and Llama 2: characters first, bytes for those that are none, specials in front."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, **UNKNOWN))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(
        vocab_size=460,
        special_tokens=[*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
    )
    return tokenizer


def every_split() -> Tokenizer:
    """As converted from sentencepiece: one token has several merges, by the rank of the token."""
    content = json.loads(byte_fallback().to_str())
    vocabulary = content["model"]["vocab"]
    content["model"]["merges"] = [
        [token[:place], token[place:]]
        for token in vocabulary
        for place in range(1, len(token))
        if token[:place] in vocabulary and token[place:] in vocabulary and token[0] != "<"
    ]
    return Tokenizer.from_str(json.dumps(content))


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=SPECIAL, **UNKNOWN, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens(["<mask>"])  # after the model, as in XLM-R
    return tokenizer


FAMILIES: dict[str, Callable[[], Tokenizer]] = {
    "byte-level BPE": byte_level,
    "BPE of whole words": whole_words,
    "BPE with byte fallback": byte_fallback,
    "BPE with every split": every_split,
    "Unigram": unigram,
}


def wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ENDS, **UNKNOWN)


@pytest.fixture(scope="module", params=FAMILIES)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return wrapped(FAMILIES[request.param]())


SIZES = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
}  # fmt: skip


def qwen(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    torch.manual_seed(0)
    return Qwen3Model(
        Qwen3Config(
            **SIZES,
            vocab_size=len(tokenizer) + 7,  # padded, as tables are
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=[tokenizer.eos_token_id],
            tie_word_embeddings=False,
        )
    ).eval()


def gemma(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    torch.manual_seed(0)
    return Gemma3TextModel(
        Gemma3TextConfig(
            **SIZES,
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            tie_word_embeddings=True,
        )
    ).eval()


@pytest.mark.parametrize("build", [qwen, gemma])
def test_texts_of_kept_tokens_keep_ids_and_vectors(
    tokenizer: PreTrainedTokenizerFast, build: Callable[[Any], PreTrainedModel]
) -> None:
    kept = select_tokens(tokenizer, count_tokens(tokenizer, RUSSIAN), min_count=1, max_tokens=None)
    assert len(kept) < len(tokenizer)
    decoder, whole = build(tokenizer), build(tokenizer)
    smaller = trim(decoder, tokenizer, kept)
    assert compare(tokenizer, smaller, kept, RUSSIAN).same == len(RUSSIAN)
    for text in RUSSIAN:
        before = torch.tensor([tokenizer(text).input_ids])
        after = torch.tensor([smaller(text).input_ids])
        assert [kept[id_] for id_ in after[0].tolist()] == before[0].tolist()
        with torch.inference_mode():
            states = whole(before).last_hidden_state, decoder(after).last_hidden_state
        assert torch.equal(*states)
        assert smaller.decode(after[0]) == tokenizer.decode(before[0])
    assert decoder.config.vocab_size == len(kept) == len(smaller)
    assert decoder.config.pad_token_id == smaller.pad_token_id
    assert smaller.convert_ids_to_tokens(smaller.pad_token_id) == "<pad>"


PIECES = st.sampled_from(
    sorted({text[at : at + size] for text in TEXTS for at in range(0, 20, 3) for size in (2, 5, 9)})
)


@settings(max_examples=200, deadline=None)
@given(
    family=st.sampled_from(sorted(FAMILIES)),
    corpus=st.lists(st.sampled_from(TEXTS), min_size=1, max_size=4),
    text=st.lists(PIECES, max_size=6).map("".join) | st.text(max_size=8),
)
def test_any_text_of_kept_tokens_keeps_them(family: str, corpus: list[str], text: str) -> None:
    tokenizer, kept, smaller = trimmed(family, tuple(sorted(set(corpus))))
    before = tokenizer(text).input_ids
    after = smaller(text).input_ids
    if set(before) <= set(kept):
        assert [kept[id_] for id_ in after] == before
    elif tokenizer.decode(before) == text:  # another cut of the same text
        assert smaller.decode(after) == text


CACHE: dict[Any, Any] = {}


def trimmed(family: str, corpus: tuple[str, ...]) -> tuple[Any, list[int], Any]:
    if (family, corpus) not in CACHE:
        tokenizer = CACHE.setdefault(family, wrapped(FAMILIES[family]()))
        counts = count_tokens(tokenizer, corpus)
        kept = select_tokens(tokenizer, counts, min_count=1, max_tokens=None)
        CACHE[family, corpus] = tokenizer, kept, trim(qwen(tokenizer), tokenizer, kept)
    return CACHE[family, corpus]


def test_rare_tokens_go_first(tokenizer: PreTrainedTokenizerFast) -> None:
    counts = count_tokens(tokenizer, TEXTS)
    every = select_tokens(tokenizer, counts, min_count=1, max_tokens=None)
    always = set(select_tokens(tokenizer, counts, min_count=max(counts), max_tokens=None))
    for limit in range(len(every) - 20, len(every)):
        fewer = select_tokens(tokenizer, counts, min_count=1, max_tokens=limit)
        assert limit - 10 <= len(fewer) <= limit
        gone = set(every) - set(fewer)
        chosen = [counts[id_] for id_ in set(fewer) - always if counts[id_]]
        assert max(counts[id_] for id_ in gone) <= np.median(chosen)


def test_what_cannot_be_trimmed_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    counts = count_tokens(tokenizer, RUSSIAN)
    with pytest.raises(ValueError, match="nothing would be left"):
        select_tokens(tokenizer, counts, min_count=10**6, max_tokens=None)
    with pytest.raises(ValueError, match=r"are \d+: ask for more"):
        select_tokens(tokenizer, counts, min_count=1, max_tokens=10)


def test_wordpiece_is_refused() -> None:
    words = Tokenizer(models.WordPiece(**UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    words.train_from_iterator(TEXTS, trainer)
    tokenizer = wrapped(words)
    with pytest.raises(ValueError, match="WordPiece"):
        select_tokens(tokenizer, count_tokens(tokenizer, TEXTS), min_count=1, max_tokens=None)


def test_a_tokenizer_that_was_cut_wrongly_is_found() -> None:
    whole, other = wrapped(byte_fallback()), wrapped(byte_level())
    with pytest.raises(ValueError, match="cannot be changed"):
        compare(whole, other, list(range(len(whole))), TEXTS)
