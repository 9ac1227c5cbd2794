"""A small server that speaks OpenAI's chat format on this machine, for tests of what asks one."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[list[dict[str, str]]], str]


@dataclass
class Endpoint:
    """What the server answers, and what it was asked. `trouble` are states that it gives first, one a request."""

    answer: Answer
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    trouble: list[tuple[int, dict[str, str], str]] = field(default_factory=list)
    delay: float = 0.0
    raw: bytes | None = None
    usage: bool = True

    @property
    def origin(self) -> str:
        return self.url.removesuffix("/v1")


def scripted(*texts: str) -> Answer:
    """One text after the other, the last one from then on."""
    rest = list(texts)
    return lambda _messages: rest.pop(0) if len(rest) > 1 else rest[0]


def by_rules() -> Answer:
    """What the engine of rules says."""
    from engine import registry
    from engine.parts import Message

    model = registry.build({"use": "rule-engine"})
    return lambda messages: model.reply([Message(m["role"], m["content"]) for m in messages]).text


@contextmanager
def serving(answer: Answer) -> Iterator[Endpoint]:
    """A server for a stretch."""
    endpoint = Endpoint(answer)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                endpoint.requests.append({"path": self.path, **body})
                endpoint.headers.append(dict(self.headers))
                trouble = endpoint.trouble.pop(0) if endpoint.trouble else None
                text = endpoint.answer(body["messages"]) if trouble is None else ""
            time.sleep(endpoint.delay)
            if trouble is not None:
                self._send(trouble[0], trouble[2].encode(), trouble[1])
                return
            said: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": text}}]}
            if endpoint.usage:
                words = _words([*(m["content"] for m in body["messages"]), text])
                said["usage"] = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": words}
            self._send(200, endpoint.raw if endpoint.raw is not None else json.dumps(said).encode(), {})

        def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            try:
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except BrokenPipeError:  # who asked has not waited
                pass

        def log_message(self, *_: Any) -> None:
            """Not into the test's output."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    endpoint.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _words(texts: Sequence[str]) -> int:
    return sum(len(text.split()) for text in texts)
