"""From texts to token ids and padded batches, through the Rust tokenizer.

Shape letters: B = texts, T = tokens.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

TEXT_STARTS = ("а", "Я", "a", "Z", "1", "«", '"', "(", "-")
"""First characters that a prompt is tried with."""


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """One text as token ids, its prompt in front."""

    ids: list[int]
    prompt_tokens: int
    """Leading tokens that hold no character of the text, those of BOS and the prompt."""

    def first_pooled(self, *, pool_prompt: bool) -> int:
        """Place of the first pooled token: in a prompt too that left no room for its text."""
        has_room = self.prompt_tokens < len(self.ids)
        return self.prompt_tokens if has_room and not pool_prompt else 0


def plain_tokenizer(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same vocabulary as one stock fast tokenizer, right padded, each text ending with EOS.

    One rule for every tokenizer and pooling: what it puts in front stays, and a text ends with one
    token: that which the tokenizer ends it with, else EOS. So no text is without a token, the
    empty one neither, here and wherever the saved tokenizer is read. One class whatever the source:
    a model-specific class may rebuild its post-processor when it is loaded again and lose EOS.

    Raises:
        ValueError: There is no Rust backend or no EOS token.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} is no fast tokenizer: convert it to tokenizer.json first"
        )
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    encoding = backend.encode("a")
    if encoding.special_tokens_mask[-1:] == [1]:
        end_token = encoding.tokens[-1]
    elif tokenizer.eos_token is None:
        raise ValueError("the tokenizer has no EOS token: set eos_token in tokenizer_config.json")
    else:
        end_token = str(tokenizer.eos_token)
        backend = _ending_with(backend, end_token)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokenizer.bos_token,
        eos_token=end_token,
        pad_token=tokenizer.pad_token or end_token,
        unk_token=tokenizer.unk_token,
        padding_side="right",
        truncation_side="right",
        clean_up_tokenization_spaces=False,
    )


def _ending_with(backend: Tokenizer, eos_token: str) -> Tokenizer:
    """The same tokenizer, which ends no text so far, each text of which ends with EOS.

    Two templates in sequence do not add up in the tokenizers library: the one that is there, such
    as a BOS in front, gets EOS as its last piece.
    """
    eos_id = backend.token_to_id(eos_token)
    content: dict[str, Any] = json.loads(backend.to_str())
    there: dict[str, Any] = content["post_processor"] or {"type": "Sequence", "processors": []}
    steps: list[dict[str, Any]] = there["processors"] if there["type"] == "Sequence" else [there]
    templates = [step for step in steps if step["type"] == "TemplateProcessing"]
    if not templates:
        texts = [{"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB")]
        parts = {"single": texts[:1], "pair": texts, "special_tokens": {}}
        templates = [{"type": "TemplateProcessing", **parts}]
        steps = steps + templates
    templates[-1]["single"].append({"SpecialToken": {"id": eos_token, "type_id": 0}})
    entry = {"id": eos_token, "ids": [eos_id], "tokens": [eos_token]}
    templates[-1]["special_tokens"][eos_token] = entry
    content["post_processor"] = {"type": "Sequence", "processors": steps}
    return Tokenizer.from_str(json.dumps(content, ensure_ascii=False))


def tokenize(
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    prompts: Sequence[str],
    max_length_tokens: int,
) -> list[TokenizedText]:
    """Token ids of prompt and text taken together, cut to `max_length_tokens`.

    Special tokens have their place reserved: a cut text still ends with EOS.

    Raises:
        ValueError: The numbers of texts and prompts differ, or a text is no valid Unicode.
    """
    if len(texts) != len(prompts):
        raise ValueError(f"{len(texts)} texts but {len(prompts)} prompts: give one prompt per text")
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(max_length_tokens)
    joint = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
    try:
        encodings = backend.encode_batch(joint)
    except TypeError:
        _check_unicode(joint)
        raise
    return [
        TokenizedText(encoding.ids, _count_prompt_tokens(encoding, len(prompt)))
        for encoding, prompt in zip(encodings, prompts, strict=True)
    ]


def _check_unicode(texts: Sequence[str]) -> None:
    for position, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"text {position} holds {text[error.start]!a}, half a surrogate pair and no "
                "character: remove it, or decode the input with the right encoding"
            ) from None


def _count_prompt_tokens(encoding: Encoding, prompt_characters: int) -> int:
    """Tokens before the first one that reaches past the prompt, by the joint offsets.

    The end token belongs to the text, also when the text has no other.
    """
    if prompt_characters == 0:
        return 0
    first = encoding.char_to_token(prompt_characters)
    if first is not None:
        return first
    # the character after the prompt has no token of its own: whitespace, or cut off
    for position, (_, end) in enumerate(encoding.offsets):
        if end > prompt_characters:
            return position
    return len(encoding.ids) - 1


def check_prompt_ends(tokenizer: PreTrainedTokenizerFast, prompts: Mapping[str, str]) -> None:
    """Make sure that every prompt has the same tokens alone and before a text.

    sentence-transformers counts the tokens of the prompt alone. After `Query: ` the space belongs
    to the first word of the text, so that count leaves the word out of the pooling; after a line
    feed nothing is shared.

    Raises:
        ValueError: A prompt shares a token with some text.
    """
    tokenizer.backend_tokenizer.no_truncation()
    for name, prompt in prompts.items():
        alone = tokenizer.backend_tokenizer.encode(prompt, add_special_tokens=False).ids
        for start in TEXT_STARTS:
            joint = tokenizer.backend_tokenizer.encode(prompt + start, add_special_tokens=False).ids
            if joint[: len(alone)] != alone:
                raise ValueError(
                    f"prompt {name!r} ({prompt!r}) shares a token with a text that starts with "
                    f"{start!r}, and pool_prompt is off: end the template with a line feed before "
                    "{text}, or set backbone.pool_prompt to true"
                )


def check_no_bos(tokenizer: PreTrainedTokenizerFast) -> None:
    """Make sure that no token stands before the prompt.

    sentence-transformers counts it among those of the prompt, and pools it where there is none: a
    query would be pooled without it and a document with it.

    Raises:
        ValueError: The tokenizer puts one in front.
    """
    encoding = tokenizer.backend_tokenizer.encode("a")
    if encoding.special_tokens_mask[0]:
        raise ValueError(
            f"the tokenizer puts {encoding.tokens[0]!r} in front of each text, and pool_prompt is "
            "off: documents would pool it and queries not; set backbone.pool_prompt to true"
        )


def collate(
    items: Sequence[TokenizedText], *, pad_id: int, pool_prompt: bool, device: torch.device | str
) -> tuple[Tensor, Tensor, Tensor]:
    """One right-padded batch; see `TokenizedText.first_pooled`.

    Returns:
        input_ids_BT, attention_mask_BT and pool_mask_BT, all int64.
    """
    width = max(len(item.ids) for item in items)
    ids_BT = torch.full((len(items), width), pad_id)
    attention_BT = torch.zeros((len(items), width), dtype=torch.int64)
    pool_BT = torch.zeros((len(items), width), dtype=torch.int64)
    for row, item in enumerate(items):
        length = len(item.ids)
        ids_BT[row, :length] = torch.tensor(item.ids)
        attention_BT[row, :length] = 1
        pool_BT[row, item.first_pooled(pool_prompt=pool_prompt) : length] = 1
    return ids_BT.to(device), attention_BT.to(device), pool_BT.to(device)


def token_budget_batches(
    lengths: Sequence[int], batch_tokens: int, *, is_packed: bool
) -> list[list[int]]:
    """Positions of texts in batches of at most `batch_tokens`, longest first.

    A padded batch costs its longest text times their number, a packed one the tokens it holds. A
    text longer than the budget is a batch of its own. Longest first shows a lack of memory at once
    and makes every estimate of the time left too high rather than too low.
    """
    order = sorted(range(len(lengths)), key=lambda position: (-lengths[position], position))
    batches: list[list[int]] = []
    room = longest = 0
    for position in order:
        if not batches or room < (lengths[position] if is_packed else longest):
            batches.append([])
            room, longest = batch_tokens, lengths[position]
        batches[-1].append(position)
        room -= lengths[position] if is_packed else longest
    return batches
