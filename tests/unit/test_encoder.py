"""The encoder: vectors, joint tokenisation, batches, and the folder others read."""

import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from model.encoder import pace
from model.encoder.encoder import Encoder, TokenizedText, collate
from model.encoder.pooling.build import KINDS, LatentSize, PoolingSettings
from model.encoder.tokenization import plain_tokenizer, token_budget_batches, tokenize

PROMPT = "Найди текст, который отвечает на вопрос\nQuery:\n"
LATENT = LatentSize(num_latents=6, num_heads=2, head_dim=4, expansion=2)
EOS = "</s>"
BLOCKS = {name for name, kind in KINDS.items() if kind.published}


def with_pooling(source: Encoder, kind: str, *, pool_prompt: bool = True) -> Encoder:
    settings = PoolingSettings(
        kind=kind,
        pool_prompt=pool_prompt,
        latent=LATENT if kind in BLOCKS else None,
        layer_tokens="mean" if KINDS[kind].reads_all_layers else None,
    )
    return Encoder(source.backbone, source.tokenizer, settings, max_length_tokens=64).eval()


def word_tokenizer(vocab: dict[str, int], eos_token: str | None) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel(vocab, unk_token="?"))  # noqa: S106 - a token, no password
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos_token)


def test_vectors_have_unit_norm_and_do_not_depend_on_the_batch(
    pico_encoder: Encoder, pico_texts: list[str]
) -> None:
    vectors = pico_encoder.encode(pico_texts, batch_tokens=50)
    assert vectors.shape == (len(pico_texts), pico_encoder.embedding_size)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    alone = np.concatenate([pico_encoder.encode([text], batch_tokens=1) for text in pico_texts])
    np.testing.assert_allclose(vectors, alone, atol=1e-6)


def test_a_vector_is_the_normalised_mean_of_the_last_states(
    pico_encoder: Encoder, pico_texts: list[str]
) -> None:
    ids_1T = torch.tensor([pico_encoder.tokenizer.encode(pico_texts[1])])
    with torch.inference_mode():
        states_1TD = pico_encoder.backbone(input_ids=ids_1T).last_hidden_state
    expected = F.normalize(states_1TD[0].double().mean(dim=0), dim=0)
    ours = pico_encoder.encode([pico_texts[1]], batch_tokens=100)[0]
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-6)


def test_encoding_twice_gives_the_same_bits(pico_encoder: Encoder, pico_texts: list[str]) -> None:
    first, second = (pico_encoder.encode(pico_texts, batch_tokens=60) for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_no_texts_give_no_vectors(pico_encoder: Encoder) -> None:
    assert pico_encoder.encode([], batch_tokens=100).shape == (0, 32)


def test_an_empty_text_has_a_vector(pico_encoder: Encoder) -> None:
    vector = pico_encoder.encode([""], batch_tokens=100)
    np.testing.assert_allclose(np.linalg.norm(vector), 1, atol=1e-6)


def test_bf16_stays_close_and_gives_float32(pico_encoder: Encoder, pico_texts: list[str]) -> None:
    full = pico_encoder.encode(pico_texts, batch_tokens=100)
    half = pico_encoder.encode(pico_texts, batch_tokens=100, precision="bf16")
    assert half.dtype == np.float32
    assert not np.array_equal(full, half)
    assert (full * half).sum(axis=1).min() > 0.999


def test_pooling_stays_float32_under_autocast(pico_encoder: Encoder) -> None:
    encoder = with_pooling(pico_encoder, "latent")
    batch = collate(encoder.tokenize(["Да."]), pad_id=0, pool_prompt=True, device="cpu")
    seen: list[torch.dtype] = []
    encoder.pooling.register_forward_hook(
        lambda _, args, out: seen.extend([args[0].dtype, out.dtype])
    )
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        encoder(*batch)
    assert seen == [torch.float32, torch.float32]


def test_encoding_leaves_the_mode_as_it_was(pico_encoder: Encoder) -> None:
    pico_encoder.train()
    pico_encoder.encode(["Да."], batch_tokens=10)
    assert pico_encoder.training


def test_progress_is_logged(
    pico_encoder: Encoder,
    pico_texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(pace, "SECONDS_BETWEEN_LINES", -1.0)
    with caplog.at_level(logging.INFO):
        pico_encoder.encode(pico_texts, batch_tokens=1)
    assert "encoded 12/12 texts" in caplog.text
    assert pico_texts[0] not in caplog.text


def test_prompt_tokens_end_where_the_text_begins(
    pico_encoder: Encoder, pico_texts: list[str]
) -> None:
    """Counting the prompt's own tokens would give one more: its space joins the first word."""
    for prompt in ["Query: ", PROMPT, "Вопрос:", "Ин"]:
        for item, text in zip(
            pico_encoder.tokenize(pico_texts, prompts=[prompt] * len(pico_texts)),
            pico_texts,
            strict=True,
        ):
            text_ids = item.ids[item.prompt_tokens :]
            decoded = pico_encoder.tokenizer.decode(text_ids, skip_special_tokens=True)
            assert text in decoded
            assert prompt.startswith(decoded[: -len(text)].strip())
            before = pico_encoder.tokenizer.decode(item.ids[: item.prompt_tokens])
            assert prompt.startswith(before)


def test_a_word_that_shares_its_token_with_the_prompt_counts_as_text() -> None:
    tokenizer = word_tokenizer({"q:": 0, "ab": 1, "</s>": 2, "?": 3}, eos_token=EOS)
    [item] = tokenize(tokenizer, ["b"], ["q: a"], 10)
    assert item == TokenizedText([0, 1], 1)


def test_a_prompt_of_multibyte_characters_is_counted_in_tokens(pico_encoder: Encoder) -> None:
    prompt = "🫖🫖 "
    [item] = pico_encoder.tokenize(["чай"], prompts=[prompt])
    encoding = pico_encoder.tokenizer(prompt + "чай", return_offsets_mapping=True)
    ends = [end for _, end in encoding["offset_mapping"][:-1]]  # without EOS
    expected = sum(end <= len(prompt) for end in ends)
    assert 0 < item.prompt_tokens == expected


def test_prompts_that_do_not_match_the_texts_are_an_error(pico_encoder: Encoder) -> None:
    with pytest.raises(ValueError, match="2 texts but 1 prompts"):
        pico_encoder.tokenize(["а", "б"], prompts=["x"])


@pytest.mark.parametrize("kind", KINDS)
def test_every_text_ends_with_eos_a_cut_and_an_empty_one_too(
    pico_encoder: Encoder, pico_texts: list[str], kind: str
) -> None:
    encoder = with_pooling(pico_encoder, kind)
    eos = encoder.tokenizer.eos_token_id
    for limit in (1, 5, 64):
        for item in encoder.tokenize(["", *pico_texts], max_length_tokens=limit):
            assert len(item.ids) <= limit
            assert item.ids[-1] == eos
            assert item.ids.count(eos) == 1


BOS_FIRST = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
PROCESSORS = {
    "none": (None, [2, 1]),
    "byte level": (processors.ByteLevel(trim_offsets=False), [2, 1]),
    "bert": (processors.BertProcessing(("<s>", 0), ("<s>", 0)), [0, 2, 0]),  # ends its texts itself
    "bos": (BOS_FIRST, [0, 2, 1]),
    "byte level and bos": (
        processors.Sequence([processors.ByteLevel(trim_offsets=False), BOS_FIRST]),
        [0, 2, 1],
    ),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_eos_joins_whatever_the_tokenizer_adds_already(name: str) -> None:
    processor, expected = PROCESSORS[name]
    original = word_tokenizer({"<s>": 0, "</s>": 1, "а": 2, "a": 3, "?": 4}, eos_token=EOS)
    if processor is not None:
        original.backend_tokenizer.post_processor = processor
    once = plain_tokenizer(original)
    twice = plain_tokenizer(once)
    assert once.encode("а") == expected
    assert twice.encode("а") == expected
    assert once.encode("") == [id_ for id_ in expected if id_ != 2]
    assert once.eos_token_id == expected[-1]


def test_a_tokenizer_without_eos_is_refused() -> None:
    with pytest.raises(ValueError, match="no EOS token"):
        plain_tokenizer(word_tokenizer({"?": 0}, eos_token=None))


def test_a_batch_is_padded_on_the_right_and_pools_the_text() -> None:
    items = [TokenizedText([5, 6, 7], 2), TokenizedText([8], 0)]
    ids, attention, pool = collate(items, pad_id=1, pool_prompt=False, device="cpu")
    assert ids.tolist() == [[5, 6, 7], [8, 1, 1]]
    assert attention.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert pool.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert collate(items, pad_id=1, pool_prompt=True, device="cpu")[2].equal(attention)


def test_after_a_prompt_that_leaves_no_room_eos_is_pooled(pico_encoder: Encoder) -> None:
    encoder = with_pooling(pico_encoder, "mean", pool_prompt=False)
    items = encoder.tokenize(["Да."], prompts=[PROMPT], max_length_tokens=4)
    assert (items[0].prompt_tokens, len(items[0].ids)) == (3, 4)
    assert collate(items, pad_id=0, pool_prompt=False, device="cpu")[2].tolist() == [[0, 0, 0, 1]]
    assert np.isfinite(encoder.encode([""], prompt=PROMPT, batch_tokens=100)).all()


@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize("budget", [1, 21, 64, 100_000])
def test_batches_keep_to_the_budget_and_hold_every_text_once(budget: int, is_packed: bool) -> None:
    lengths = np.random.default_rng(0).integers(1, 60, size=333).tolist()
    batches = token_budget_batches(lengths, budget, is_packed=is_packed)
    assert sorted(position for batch in batches for position in batch) == list(range(333))
    held = [[lengths[position] for position in batch] for batch in batches]
    for batch in held:
        cost = sum(batch) if is_packed else len(batch) * batch[0]
        assert len(batch) == 1 or cost <= budget
    heads = [batch[0] for batch in held]
    assert heads == sorted(heads, reverse=True)
    if budget == 100_000:
        assert len(batches) == 1


@pytest.mark.usefixtures("remote_code")
@pytest.mark.parametrize("pool_prompt", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_sentence_transformers_gives_the_same_vectors(
    pico_encoder: Encoder,
    pico_texts: list[str],
    tmp_path: Path,
    kind: str,
    pool_prompt: bool,
) -> None:
    texts = [*pico_texts, "слово " * 100]  # the last one is cut
    encoder = with_pooling(pico_encoder, kind, pool_prompt=pool_prompt)
    ours = {
        prompt: encoder.encode(texts, prompt=prompt, batch_tokens=300) for prompt in ("", PROMPT)
    }
    encoder.save(tmp_path / "first", prompts={"query": PROMPT})
    Encoder.load(tmp_path / "first").save(tmp_path / "second")
    # it has no module for these two kinds, and refuses the file of the folder otherwise
    theirs = SentenceTransformer(
        str(tmp_path / "second"), device="cpu", trust_remote_code=kind in BLOCKS
    )
    assert theirs.prompts == {"query": PROMPT, "document": ""}
    for prompt, expected in ours.items():
        vectors = theirs.encode(texts, prompt=prompt, batch_size=5)
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
    named = theirs.encode(texts, prompt_name="query", batch_size=5)
    np.testing.assert_allclose(named, ours[PROMPT], atol=1e-5)
    assert np.abs(ours[""] - ours[PROMPT]).max() > 1e-3
    reloaded = Encoder.load(tmp_path / "second").encode(texts, prompt=PROMPT, batch_tokens=300)
    np.testing.assert_array_equal(reloaded, ours[PROMPT])


def test_sentence_transformers_asks_before_it_runs_the_latent_file(
    pico_encoder: Encoder, tmp_path: Path
) -> None:
    with_pooling(pico_encoder, "latent").save(tmp_path)
    with pytest.raises(ValueError, match="trust_remote_code"):
        SentenceTransformer(str(tmp_path), device="cpu")


def test_a_prompt_that_would_pool_differently_elsewhere_is_refused(
    pico_encoder: Encoder, tmp_path: Path
) -> None:
    encoder = with_pooling(pico_encoder, "mean", pool_prompt=False)
    with pytest.raises(ValueError, match=r"'query' \('Query: '\) shares a token"):
        encoder.save(tmp_path, prompts={"document": "", "query": "Query: "})
    with_pooling(pico_encoder, "mean").save(tmp_path, prompts={"query": "Query: "})
    with_pooling(pico_encoder, "last", pool_prompt=False).save(tmp_path, prompts={"q": "Query: "})


@pytest.mark.parametrize("kind", KINDS)
def test_equal_encoders_give_equal_bytes(pico_encoder: Encoder, tmp_path: Path, kind: str) -> None:
    encoder = with_pooling(pico_encoder, kind)
    encoder.save(tmp_path / "a", prompts={"query": PROMPT})
    encoder.encode(["Да."], batch_tokens=10, max_length_tokens=3)
    Encoder.load(tmp_path / "a", attn_implementation="eager").save(tmp_path / "b")
    first, second = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path / "a", tmp_path / "b")
    )
    assert first.keys() == second.keys()
    assert [str(name) for name in first if first[name] != second[name]] == []
    assert str(tmp_path).encode() not in b"".join(first.values())


def test_the_folder_says_what_it_is(pico_folder: Path) -> None:
    settings = json.loads((pico_folder / "samovar.json").read_text())
    assert settings == {
        "format": 3,
        "attention": "bidirectional",
        "max_length_tokens": 64,
        "pooling": {"kind": "mean", "latent": None, "pool_prompt": True},
    }
    assert json.loads((pico_folder / "config.json").read_text())["is_causal"] is False


def test_the_dtype_of_the_weights_survives(pico_encoder: Encoder, tmp_path: Path) -> None:
    pico_encoder.backbone.to(torch.bfloat16)
    pico_encoder.save(tmp_path)
    loaded = Encoder.load(tmp_path)
    assert loaded.backbone.dtype == torch.bfloat16
    assert loaded.encode(["Да."], batch_tokens=10).dtype == np.float32


def test_weights_that_are_cut_off_are_named_with_what_to_do(
    pico_encoder: Encoder, tmp_path: Path
) -> None:
    pico_encoder.save(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"weights in {tmp_path} are damaged .*run its stage"):
        Encoder.load(tmp_path)


def test_a_folder_that_is_no_encoder_is_refused(tmp_path: Path, pico_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"samovar\.json is missing"):
        Encoder.load(tmp_path)
    (tmp_path / "samovar.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="format 99, expected 3"):
        Encoder.load(tmp_path)


def test_a_config_that_tells_another_model_than_the_one_in_memory_is_not_saved_as_proven(
    pico_encoder: Encoder, tmp_path: Path
) -> None:
    """Same tensors, other vectors: only what is read back shows it."""
    pico_encoder.backbone.config.rms_norm_eps = 10.0
    with pytest.raises(ValueError, match=r"gives other vectors once it is saved and read back"):
        pico_encoder.save_proven(tmp_path, attn_implementation="sdpa")


def test_an_encoder_that_diverged_is_not_saved_as_proven(
    pico_encoder: Encoder, tmp_path: Path
) -> None:
    with torch.no_grad():
        pico_encoder.backbone.layers[0].mlp.up_proj.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="vectors that are no numbers: what made it diverged"):
        pico_encoder.save_proven(tmp_path / "model", attn_implementation="sdpa")
    assert not (tmp_path / "model").exists()
