"""Which tokens of prompt and text are pooled: by joint offsets, for every kind of pooling."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from model.encoder.encoder import Encoder, TokenizedText, collate
from model.encoder.pooling.build import KINDS, LatentSize, PoolingSettings

LATENT = LatentSize(num_latents=6, num_heads=2, head_dim=4, expansion=2)
GLUED = "Query: "  # its space becomes part of the first word of the text
PROMPT = "Найди ответ\n"


def with_bos(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.post_processor = processors.TemplateProcessing(
        single="<pad> $A", special_tokens=[("<pad>", 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")  # noqa: S106 - names of tokens


def encoder_of(source: Encoder, kind: str, *, bos: bool = False) -> Encoder:
    settings = PoolingSettings(
        kind=kind, pool_prompt=False, latent=LATENT, layer_tokens="mean", projection=12
    )
    tokenizer = with_bos(source.tokenizer) if bos else source.tokenizer
    return Encoder(source.backbone, tokenizer, settings, max_length_tokens=64).eval()


def pooled_by_hand(encoder: Encoder, ids: list[int], pooled: list[int]) -> Tensor:
    """The text alone in the decoder, its pooled places picked one by one."""
    output = encoder.backbone(
        input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False
    )
    mask_1T = torch.tensor([[int(place in pooled) for place in range(len(ids))]])
    if encoder.settings.kind == "multilayer":
        layers = [states[:, pooled].mean(dim=1) for states in output.hidden_states[1:]]
        vector_1D = encoder.pooling(torch.stack(layers, dim=1))
    elif encoder.settings.kind == "last":
        vector_1D = output.last_hidden_state[:, pooled[-1]]
    else:
        vector_1D = encoder.pooling(output.last_hidden_state, mask_1T)
    assert encoder.projection is not None
    return F.normalize(encoder.projection(vector_1D)[0], dim=0)


def assert_pools(encoder: Encoder, items: list[TokenizedText], pooled: list[list[int]]) -> None:
    with torch.inference_mode():
        packed = encoder.embed(items)
        padded = encoder(*collate(items, pad_id=0, pool_prompt=False, device="cpu"))
        for row, (item, places) in enumerate(zip(items, pooled, strict=True)):
            expected = pooled_by_hand(encoder, item.ids, places)
            torch.testing.assert_close(packed[row], expected, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(padded[row], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("prompt", [GLUED, PROMPT])
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_that_hold_a_character_of_the_text_are_pooled(
    pico_encoder: Encoder, pico_texts: list[str], kind: str, prompt: str, bos: bool
) -> None:
    encoder = encoder_of(pico_encoder, kind, bos=bos)
    items = encoder.tokenize(pico_texts[:4], prompts=[prompt] * 4)
    pooled = []
    for item, text in zip(items, pico_texts, strict=False):
        spans = encoder.tokenizer(prompt + text, return_offsets_mapping=True)["offset_mapping"]
        ends_after = [place for place, (_, end) in enumerate(spans) if end > len(prompt)]
        pooled.append(list(range(ends_after[0], len(item.ids))))
    alone = len(encoder.tokenizer.encode(prompt)) - 1  # without its EOS
    shared = {alone - places[0] for places in pooled}
    assert (shared == {0}) == (prompt == PROMPT), "the premise: one prompt shares a token"
    assert_pools(encoder, items, pooled)


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_after_a_prompt_that_leaves_no_room_eos_is_pooled(
    pico_encoder: Encoder, kind: str, bos: bool
) -> None:
    """An empty span would be 0/0: cut in the prompt, and a text without a character."""
    encoder = encoder_of(pico_encoder, kind, bos=bos)
    items = encoder.tokenize(["Да.", ""], prompts=[PROMPT, PROMPT], max_length_tokens=4)
    items += encoder.tokenize([""], prompts=[PROMPT])
    assert_pools(encoder, items, [[len(item.ids) - 1] for item in items])


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_with_bos_is_refused_where_prompts_are_not_pooled(
    pico_encoder: Encoder, tmp_path: Path, kind: str
) -> None:
    """sentence-transformers pools BOS of a document, and of a query takes it for the prompt."""
    encoder = encoder_of(pico_encoder, kind, bos=True)
    if encoder.settings.ends_with_eos:
        encoder.save(tmp_path)
        return
    with pytest.raises(ValueError, match=r"puts '<pad>' in front .*pool_prompt to true"):
        encoder.save(tmp_path)


@pytest.mark.usefixtures("remote_code")
@pytest.mark.parametrize("kind", KINDS)
def test_sentence_transformers_pools_the_same_where_a_prompt_leaves_no_room(
    pico_encoder: Encoder, tmp_path: Path, kind: str
) -> None:
    encoder = encoder_of(pico_encoder, kind)
    encoder.save(tmp_path / "model", prompts={"query": PROMPT})
    theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu", trust_remote_code=True)
    for prompt in (PROMPT, PROMPT * 20):  # the second is cut
        vectors = theirs.encode(["", "Да."], prompt=prompt)
        ours = encoder.encode(["", "Да."], prompt=prompt, batch_tokens=100)
        np.testing.assert_allclose(vectors, ours, atol=1e-5)
