"""The ids of fixed texts, stored with a model and compared when it is read again.

A tokenizer that is built differently by another version or class gives other vectors without a
word; these texts show it.
"""

from typing import Any

from transformers import PreTrainedTokenizerFast

from model.encoder.tokenization import tokenize

TEXTS = (
    *("", " ", "\n", "\t\t", "a", "я", ".", "Да.", "  два  пробела  ", "строка\nи ещё одна\r\n"),
    *("Самовар стоит на столе.", "СТОЛИЦА ФРАНЦИИ — ПАРИЖ", "Ёжик и ёлка", "съешь ещё этих булок"),
    *("The quick brown fox.", "don't won't it's", "naïve café", "Straße", "İstanbul", "ĲSSELMEER"),
    *("0", "1234567890", "3,14 и 2.71", "1 000 000 ₽", "50 %", "№ 5", "12:30, 01.02.2003"),
    *("мир\u0306", "e\u0301", "ﬁ", "\uff21\uff22", "²³½", "\u00a0неразрывный", "soft\u00adhyphen"),
    *(
        "zero\u200bwidth",
        "\u200fעברית",
        "العربية",
        "中文字符",
        "日本語カナ",
        "한국어",
        "हिन्दी",
        "ไทย",
    ),
    *(
        "🫖",
        "👩\u200d👩\u200d👧",
        "🇷🇺",
        "\x00",
        "</s><eos><|endoftext|>",
        "https://a.b/c?d=e&f",
        "{[(«“…”»)]}",
    ),
)
"""Short ones, of many scripts, signs and spaces."""
LONG = "слово "
"""Repeated until it is over any limit."""


def token_record(
    tokenizer: PreTrainedTokenizerFast, max_length_tokens: int
) -> list[dict[str, Any]]:
    """Texts, how often each is repeated, and the ids of that, as an encoder cuts them.

    The limit of the tokenizer is taken off again.
    """
    repeated = [(text, 1) for text in TEXTS] + [(LONG, max_length_tokens)]
    texts = [text * times for text, times in repeated]
    items = tokenize(tokenizer, texts, [""] * len(texts), max_length_tokens)
    tokenizer.backend_tokenizer.no_truncation()
    return [
        {"text": text, "times": times, "ids": item.ids}
        for (text, times), item in zip(repeated, items, strict=True)
    ]
