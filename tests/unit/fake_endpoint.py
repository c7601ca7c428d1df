"""An endpoint on 127.0.0.1 that behaves well or badly, as a test wants it."""

import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tasks.params.data import Endpoint

KEY = "sk-very-secret"
DEADLINE_S = 30.0


@dataclass
class Reply:
    """What the server does with one request."""

    status: int = 200
    content: str | None = None
    """Text of the assistant, or how the prompt goes on; None answers what the prompt asks for."""
    finish_reason: str = "stop"
    raw: str | None = None
    """Whole body, in place of a completion."""
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    trickles: bool = False
    """Sends a byte every 50 ms and never ends."""
    hangs_up: bool = False


def sensible_content(prompt: str) -> str:
    """What a good model says to each of the three calls, and how it goes on from examples."""
    if prompt.endswith(":"):
        return f" зимний поход {hashlib.sha256(prompt.encode()).hexdigest()[:8]}"
    if "question_type:" in prompt:
        return '{"character": "юный химик", "question_type": "keywords", "difficulty": "phd"}'
    if "Напиши один" in prompt:
        number = hashlib.sha256(prompt.encode()).hexdigest()[:8]
        return f'```json\n{{"query": "где найти озеро {number}"}}\n```'
    return '<think>Ответ в тексте {есть}.</think> {"score": 5}'


class FakeEndpoint:
    """Chat and completions on 127.0.0.1; `script` decides the reply by number and prompt."""

    def __init__(self) -> None:
        self.script: Callable[[int, Any], Reply] = lambda _number, _prompt: Reply()
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.moments: list[float] = []
        self.answered: list[Any] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.closing = threading.Event()
        self.arrived = threading.Condition()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                try:
                    endpoint.handle(self)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1"

    def close(self) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(DEADLINE_S)

    def prompt(self, number: int) -> Any:
        return self.question(self.requests[number])

    def question(self, request: dict[str, Any]) -> Any:
        """What of a request decides the reply."""
        return request["prompt"] if "prompt" in request else request["messages"][-1]["content"]

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        with self.arrived:
            number = len(self.requests)
            self.requests.append(body)
            self.headers.append({key.lower(): value for key, value in request.headers.items()})
            self.moments.append(time.monotonic())
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            self.arrived.notify_all()
        prompt = self.question(body)
        reply = self.script(number, prompt)
        self.closing.wait(reply.delay_s)
        with self.arrived:
            self.in_flight -= 1
        if reply.hangs_up:
            request.connection.shutdown(socket.SHUT_RDWR)
            return
        request.send_response(reply.status)
        headers = {"Content-Type": "application/json", **reply.headers}
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()
        while reply.trickles and not self.closing.wait(0.05):
            request.wfile.write(b" ")
            request.wfile.flush()
        request.wfile.write(self.body(reply, body).encode())
        self.answered.append(prompt)

    def body(self, reply: Reply, request: dict[str, Any]) -> str:
        if reply.raw is not None:
            return reply.raw
        content = (
            sensible_content(self.question(request)) if reply.content is None else reply.content
        )
        message = {"role": "assistant", "content": content}
        is_chat = "messages" in request
        said = {"message": message} if is_chat else {"text": content}
        return json.dumps(
            {
                "id": "1",
                "object": "chat.completion" if is_chat else "text_completion",
                "created": 1,
                "model": "fake",
                "choices": [{"index": 0, "finish_reason": reply.finish_reason} | said],
                "usage": {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13},
            }
        )

    def wait_for_requests(self, count: int, deadline_s: float = DEADLINE_S) -> None:
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.requests) >= count, deadline_s)


def settings(url: str, **changed: Any) -> Endpoint:
    values: dict[str, Any] = {
        "base_url": url,
        "model": "fake",
        "concurrency": 4,
        "timeout_s": 10.0,
        "max_retries": 2,
        "max_backoff_s": 0.02,
        "temperature": 0.7,
        "interface": {"kind": "chat", "min_score": 4},
    }
    return Endpoint.model_validate(values | changed)


@pytest.fixture
def fake() -> Iterator[FakeEndpoint]:
    """An endpoint on loopback."""
    endpoint = FakeEndpoint()
    yield endpoint
    endpoint.close()


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder and a key in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAMOVAR_LLM_API_KEY", KEY)
    return tmp_path
