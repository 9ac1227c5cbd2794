"""The clerk: a helper process with torch at hand that answers questions about recipes and saved runs."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import subprocess
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from engine.errors import ServiceError
from engine.service.processes import PRIVATE, environment, kill, python
from engine.workspace import Workspace, open_private

logger = logging.getLogger(__name__)


class Clerk:
    """Asks questions of one clerk process, started with the first question and again after it has died.

    Any thread may ask. The future's result is the answer; its exception a ServiceError with a sentence.
    """

    def __init__(self, workspace: Workspace, command: Sequence[str] | None = None):
        self.workspace = workspace
        self.command = list(command or [*python("engine.training.clerk"), "--workspace", str(workspace.folder)])
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)
        self._waiting: dict[int, tuple[subprocess.Popen[bytes], Future[dict[str, Any]]]] = {}

    def __enter__(self) -> Clerk:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Warms it up: what it imports takes seconds."""
        with self._lock:
            self._ensure()

    def ask(self, verb: str, **details: Any) -> Future[dict[str, Any]]:
        future: Future[dict[str, Any]] = Future()
        number = next(self._numbers)
        with self._lock:
            try:
                process = self._ensure()
                self._waiting[number] = process, future
                assert process.stdin is not None
                process.stdin.write(json.dumps({"id": number, "verb": verb, **details}).encode() + b"\n")
                process.stdin.flush()
            except OSError as error:
                self._waiting.pop(number, None)
                future.set_exception(ServiceError(f"The helper process cannot be asked: {error.strerror or error}."))
        return future

    def close(self) -> None:
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            kill(process.pid)
            process.wait()

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def _ensure(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            with open_private(self.workspace.folder / "clerk.log") as errors:
                self._process = subprocess.Popen(
                    self.command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env=environment(),
                    start_new_session=True,
                    umask=PRIVATE,
                )
            threading.Thread(target=self._read, args=(self._process,), name="clerk reader", daemon=True).start()
        return self._process

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            try:
                message = json.loads(line)
                _, future = self._waiting.pop(message["id"], (process, None))
            except (ValueError, KeyError, TypeError):  # something that a part printed
                logger.info("the clerk said: %s", line.decode(errors="replace").rstrip())
                continue
            if future is None:
                continue
            if "error" in message:
                future.set_exception(ServiceError(str(message["error"])))
            else:
                future.set_result(message.get("answer") or {})
        process.wait()
        process.stdout.close()
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        self._fail_all(process)

    def _fail_all(self, process: subprocess.Popen[bytes]) -> None:
        with self._lock:
            if self._process is process:
                self._process = None
            numbers = [number for number, (asked, _) in self._waiting.items() if asked is process]
            futures = [self._waiting.pop(number)[1] for number in numbers]
        text = (
            f"The helper process ended before it had answered (exit code {process.returncode}). "
            f"Its messages are in {self.workspace.folder / 'clerk.log'}."
        )
        for future in futures:
            future.set_exception(ServiceError(text))
