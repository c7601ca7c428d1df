"""An embeddings endpoint on 127.0.0.1 that behaves well or badly, as a test wants it."""

import base64
import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.unit.fake_endpoint import FakeEndpoint, Reply

TOKENS_EACH = 7
VARIABLE = "TEACHER_KEY"


def vector_of(text: str, size: int = 16) -> np.ndarray:
    """Some vector, of any norm, that the text decides."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).normal(scale=3.0, size=size).astype(np.float32)


class FakeEmbeddings(FakeEndpoint):
    """Its script is given the whole request; `spoil` may change what it answers well."""

    def __init__(self) -> None:
        super().__init__()
        self.encode: Callable[[list[str]], np.ndarray] = lambda texts: np.stack(
            [vector_of(text) for text in texts]
        )
        self.spoil: Callable[[dict[str, Any]], object] = lambda _answer: None

    def question(self, request: dict[str, Any]) -> Any:
        return request

    def body(self, reply: Reply, request: dict[str, Any]) -> str:
        if reply.status != 200 or reply.raw is not None:
            return reply.raw or "{}"
        vectors = self.encode(request["input"])[:, : request.get("dimensions")]
        data = [
            {"object": "embedding", "index": index, "embedding": self.sent(vector, request)}
            for index, vector in enumerate(vectors)
        ]
        data.reverse()  # nobody promises an order
        tokens = TOKENS_EACH * len(data)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        answer = {"object": "list", "model": "fake", "data": data, "usage": usage}
        self.spoil(answer)
        return json.dumps(answer)

    def sent(self, vector: np.ndarray, request: dict[str, Any]) -> Any:
        if request["encoding_format"] == "base64":
            return base64.b64encode(vector.astype("<f4").tobytes()).decode()
        return vector.tolist()

    def texts(self) -> list[str]:
        """Those of all requests."""
        return [text for request in self.requests for text in request["input"]]


def teacher_at(url: str, **changed: Any) -> dict[str, Any]:
    values = {
        "base_url": url, "model": "fake", "key_variable": VARIABLE, "dimensions": None,
        "encoding_format": "float", "query_prompt": "query: ", "document_prompt": "passage: ",
        "max_characters": None, "batch_texts": 2, "concurrency": 2, "timeout_s": 10.0,
        "max_retries": 2, "max_backoff_s": 0.02,
    }  # fmt: skip
    return values | changed
