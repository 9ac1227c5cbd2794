"""A client for chat endpoints that speak OpenAI's format: most servers of language models do, also local ones.

It sends to one origin and nowhere else: no redirect is followed, no proxy is used. `engine.endpoints` says whether it
may; `engine.replies` keeps what came back.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from engine import endpoints
from engine.errors import ContactError
from engine.parts import Message, Reply

LARGEST = 16 << 20  # bytes of a reply
AGAIN = (408, 409, 429, 500, 502, 503, 504)  # answers after which it is worth to ask again
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
SHOWN = 300  # characters of a server's own words in an error


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Another address is another machine, which nobody was asked about."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())


@dataclass(frozen=True)
class Chat:
    """One endpoint with its settings. `replay` "only" sends nothing: what was not kept is an error."""

    url: str
    model: str
    temperature: float = 0.0
    max_tokens: int = 1024
    secret: str = ""
    timeout: float = 60.0
    retries: int = 3
    at_once: int = 4
    replay: str = "record"
    part: str = "The language model"
    wait: Callable[[float], None] = time.sleep

    @property
    def contact(self) -> endpoints.Contact:
        return endpoints.Contact("", self.part, endpoints.origin_of(self.url), self.secret)

    def replies(self, asked: Sequence[Sequence[Message]], occasion: Sequence[int] = ()) -> list[Reply]:
        """The replies to several conversations: those that are kept, and the others from the server, some at once.

        Without randomness (temperature 0) the same conversation is asked once, whatever the occasion.
        """
        requests = self.requests(asked, occasion)
        kept = endpoints.surroundings().replies
        found: dict[str, dict[str, Any]] = {}
        missing: dict[str, dict[str, Any]] = {}
        for request in requests:
            text = json.dumps(request, sort_keys=True)
            if text in found or text in missing:
                continue
            reply = kept.get(request)
            if reply is None:
                missing[text] = request
            else:
                found[text] = reply
        if missing and self.replay == "only":
            raise ContactError(self._not_kept(next(iter(missing.values())), len(missing)))
        if missing:
            endpoints.require(self.contact)
            key = endpoints.secret(self.secret) if self.secret else ""
            with ThreadPoolExecutor(min(self.at_once, len(missing))) as pool:
                waiting = {pool.submit(self._send, request, key): text for text, request in missing.items()}
                try:
                    for done in as_completed(waiting):  # kept as they come: what was paid for outlives an error
                        text = waiting[done]
                        found[text] = kept.put(missing[text], done.result())
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
        told = (found[json.dumps(request, sort_keys=True)] for request in requests)
        return [Reply(str(reply["text"]), int(reply["tokens"])) for reply in told]

    def requests(self, asked: Sequence[Sequence[Message]], occasion: Sequence[int] = ()) -> list[dict[str, Any]]:
        """What is sent, and the number of the repetition, which is not: it tells equal questions apart."""
        found = []
        seen: dict[str, int] = {}
        for conversation in asked:
            messages = [{"role": role, "content": text} for role, text in conversation]
            request: dict[str, Any] = {
                "url": f"{self.url.rstrip('/')}/chat/completions",
                "model": self.model,
                "messages": messages,
                "temperature": self.temperature,
                "max_tokens": self.max_tokens,
                "repetition": [],
            }
            if self.temperature > 0:
                same = json.dumps(messages)
                seen[same] = seen.get(same, -1) + 1
                request["repetition"] = [*map(int, occasion), seen[same]]
            found.append(request)
        return found

    def _not_kept(self, request: Mapping[str, Any], count: int) -> str:
        question = " ".join(request["messages"][-1]["content"].split())
        path = endpoints.surroundings().replies.path
        return (
            f'replay = "only" sends nothing, and {count} of the replies are not kept in {path or "memory"}; the first '
            f'is to "{question[:80]}". Something differs from the run that was recorded: the model, a prompt, '
            'a setting, the seed. Write replay = "record" to ask the server.'
        )

    # -- talking ---------------------------------------------------------------------------------------------------

    def _send(self, request: Mapping[str, Any], key: str) -> dict[str, Any]:
        """Asks the server until it answers, as often as the retries allow."""
        body = {name: value for name, value in request.items() if name not in ("url", "repetition")}
        data = json.dumps({**body, "stream": False}).encode()
        wait = FIRST_WAIT
        for attempt in range(self.retries + 1):
            try:
                return _reply_in(self._post(str(request["url"]), data, key), self.contact.origin)
            except _Refused as refused:
                trouble = _without(str(refused), key)
                last = attempt == self.retries or not refused.again
                pause = min(max(refused.after, wait), LONGEST_WAIT)
            if last:
                tries = f" in {attempt + 1} attempts" if attempt else ""
                raise ContactError(f"{self.contact.origin} did not answer for {self.model!r}{tries}: {trouble}")
            self.wait(pause)
            wait *= 2
        raise AssertionError("unreachable")

    def _post(self, url: str, data: bytes, key: str) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "athanor"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        asked = urllib.request.Request(url, data=data, headers=headers, method="POST")
        try:
            with _OPENER.open(asked, timeout=self.timeout) as answer:
                content: bytes = answer.read(LARGEST + 1)
        except urllib.error.HTTPError as error:
            with error:
                words = _words_of(error.read(LARGEST))
            after = error.headers.get("Retry-After", "")
            waits = float(after) if after.replace(".", "", 1).isdigit() else 0.0
            hint = " Is the address right?" if 300 <= error.code < 400 or error.code == 404 else ""
            raise _Refused(f"it says {error.code} ({words}).{hint}", error.code in AGAIN, waits) from None
        except TimeoutError:
            raise _Refused(f"it took longer than {self.timeout:g} seconds.", True) from None
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise _Refused(f"it took longer than {self.timeout:g} seconds.", True) from None
            raise _Refused(f"{reason}. Does the server run?", True) from None
        if len(content) > LARGEST:
            raise _Refused("its answer is longer than any answer of a language model.", False)
        return content


class _Refused(Exception):
    """An attempt that failed; `again`: another one may not. `after`: seconds that the server wants left in peace."""

    def __init__(self, words: str, again: bool, after: float = 0.0):
        super().__init__(words)
        self.again, self.after = again, after


def _reply_in(content: bytes, origin: str) -> dict[str, Any]:
    """The text and the tokens of an answer."""
    try:
        answer = json.loads(content)
        text = answer["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        raise _Refused("its answer is not in OpenAI's format. Does the address end in /v1?", False) from None
    if not isinstance(text, str):
        raise _Refused("its answer has no text.", False)
    usage = answer.get("usage") or {}
    total = usage.get("total_tokens") if isinstance(usage, dict) else None
    return {"text": text, "tokens": total if isinstance(total, int) else 0}


def _words_of(content: bytes) -> str:
    """What a server says is wrong, short."""
    text = content.decode(errors="replace")
    try:
        error = json.loads(text)["error"]
        text = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        pass
    return " ".join(text.split())[:SHOWN] or "no reason given"


def _without(text: str, key: str) -> str:
    """Some servers repeat the key that they refuse."""
    return text.replace(key, "***") if key else text
