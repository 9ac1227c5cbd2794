"""The client of chat endpoints: what it sends, to whom, what it keeps, and what it says when that fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import endpoints
from engine.endpoints import Permissions
from engine.errors import ContactError
from engine.kit.language import Chat
from engine.parts import Message
from engine.replies import Replies
from tests.endpoint import Endpoint, scripted, serving

KEY = "sk-a-secret-key-0123456789"
ASKED = [Message("system", "Be brief."), Message("user", "How are you?")]


@pytest.fixture
def server() -> Iterator[Endpoint]:
    with serving(scripted("fine", "well", "good")) as endpoint:
        yield endpoint


@pytest.fixture
def allowed(server: Endpoint) -> Endpoint:
    Permissions().allow(server.origin)
    return server


def chat(endpoint: Endpoint, **settings: object) -> Chat:
    waits: list[float] = []
    made = Chat(endpoint.url, "small", **{"wait": waits.append, "timeout": 5.0, **settings})  # type: ignore[arg-type]
    object.__setattr__(made, "waits", waits)
    return made


def test_it_speaks_the_format_and_counts_tokens(allowed: Endpoint) -> None:
    (reply,) = chat(allowed, max_tokens=7).replies([ASKED])
    assert reply.text == "fine" and reply.tokens == 6
    (request,) = allowed.requests
    assert request == {
        "path": "/v1/chat/completions", "model": "small", "temperature": 0.0, "max_tokens": 7, "stream": False,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How are you?"}],
    }  # fmt: skip
    assert "Authorization" not in allowed.headers[0]
    allowed.usage = False
    assert chat(allowed).replies([[Message("user", "And now?")]])[0].tokens == 0


def test_nothing_is_sent_to_who_was_not_allowed(server: Endpoint) -> None:
    with pytest.raises(ContactError, match=rf"not allowed.*`python main.py allow {server.origin}`"):
        chat(server).replies([ASKED])
    assert server.requests == []
    Permissions().allow(server.origin, run="another-run")
    with endpoints.around(runs=("this-run", "its-sweep")), pytest.raises(ContactError):
        chat(server).replies([ASKED])
    Permissions().allow(server.origin, run="its-sweep")
    with endpoints.around(runs=("this-run", "its-sweep")):
        assert chat(server).replies([ASKED])[0].text == "fine"
    with pytest.raises(ContactError):
        chat(server).replies([ASKED])
    assert len(server.requests) == 1


def test_without_randomness_the_same_is_asked_once(allowed: Endpoint, tmp_path: Path) -> None:
    with endpoints.around(replies=Replies(tmp_path / "replies.db")):
        first = chat(allowed).replies([ASKED, ASKED], (0, 1))
        again = chat(allowed).replies([ASKED], (5, 9))
    assert [r.text for r in (*first, *again)] == ["fine"] * 3 and len(allowed.requests) == 1


def test_what_is_drawn_at_random_is_drawn_anew_on_another_occasion_only(allowed: Endpoint, tmp_path: Path) -> None:
    model = chat(allowed, temperature=0.7, at_once=1)
    with endpoints.around(replies=Replies(tmp_path / "replies.db")):
        one = [r.text for r in model.replies([ASKED, ASKED], (0, 1))]
        same = [r.text for r in model.replies([ASKED, ASKED], (0, 1))]
        other = [r.text for r in model.replies([ASKED], (0, 2))]
        seed = [r.text for r in model.replies([ASKED], (1, 1))]
    assert one == same == ["fine", "well"] and other == ["good"] and seed == ["good"]
    assert len(allowed.requests) == 4 and all("repetition" not in request for request in allowed.requests)


def test_kept_replies_are_replayed_without_a_server(tmp_path: Path) -> None:
    path = tmp_path / "replies.db"
    with serving(scripted("fine")) as server:
        Permissions().allow(server.origin)
        with endpoints.around(replies=Replies(path)):
            before = chat(server).replies([ASKED])
    Permissions().forbid(server.origin)
    only = chat(server, replay="only")
    with endpoints.around(replies=Replies(path)):
        assert only.replies([ASKED]) == before
        with pytest.raises(ContactError, match=r'replay = "only" sends nothing, and 1 of the replies.*"Who\?"'):
            only.replies([ASKED, [Message("user", "Who?")]])
        with pytest.raises(ContactError, match="not kept"):
            chat(server, replay="only", max_tokens=9).replies([ASKED])


def test_whatever_is_part_of_the_request_is_part_of_the_key(allowed: Endpoint) -> None:
    from engine.replies import key_of

    same = chat(allowed).requests([ASKED])[0]
    assert key_of(same) == key_of(chat(allowed, timeout=1.0, retries=9).requests([ASKED], (3,))[0])
    others = [
        chat(allowed, temperature=0.1).requests([ASKED])[0],
        chat(allowed, max_tokens=3).requests([ASKED])[0],
        chat(allowed).requests([ASKED[1:]])[0],
        {**same, "model": "large"},
        {**same, "url": "http://127.0.0.1:1/v1/chat/completions"},
    ]
    assert len({key_of(request) for request in [same, *others]}) == 6


def test_it_asks_again_when_the_server_is_busy(allowed: Endpoint) -> None:
    allowed.trouble = [(503, {}, ""), (429, {"Retry-After": "4"}, ""), (500, {"Retry-After": "1000"}, "")]
    model = chat(allowed)
    assert model.replies([ASKED])[0].text == "fine"
    assert model.waits == [0.5, 4.0, 30.0] and len(allowed.requests) == 4  # type: ignore[attr-defined]


def test_it_gives_up_with_what_the_server_said(allowed: Endpoint) -> None:
    allowed.trouble = [(503, {}, '{"error": {"message": "out of memory"}}')] * 9
    with pytest.raises(ContactError, match=r"in 3 attempts: it says 503 \(out of memory\)"):
        chat(allowed, retries=2).replies([ASKED])
    assert len(allowed.requests) == 3
    allowed.trouble = [(404, {}, '{"error": "no such model"}')]
    with pytest.raises(ContactError, match=r"did not answer for 'small': it says 404 \(no such model\)"):
        chat(allowed).replies([ASKED])
    assert len(allowed.requests) == 4, "asking again would not help"


def test_a_redirect_is_not_followed(allowed: Endpoint) -> None:
    with serving(scripted("caught")) as elsewhere:
        allowed.trouble = [(307, {"Location": f"{elsewhere.url}/chat/completions"}, "")]
        with pytest.raises(ContactError, match="it says 307"):
            chat(allowed).replies([ASKED])
        assert elsewhere.requests == []


def test_a_proxy_is_not_used(allowed: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(scripted("caught")) as proxy:
        monkeypatch.setenv("http_proxy", proxy.origin)
        monkeypatch.setenv("no_proxy", "")
        assert chat(allowed).replies([ASKED])[0].text == "fine" and proxy.requests == []


def test_a_server_that_is_not_there_or_slow_or_strange(allowed: Endpoint) -> None:
    allowed.raw = b"<html>hello</html>"
    with pytest.raises(ContactError, match="not in OpenAI's format"):
        chat(allowed).replies([ASKED])
    allowed.raw, allowed.delay = None, 0.3
    with pytest.raises(ContactError, match=r"in 2 attempts: it took longer than 0.05 seconds"):
        chat(allowed, timeout=0.05, retries=1).replies([ASKED])
    with serving(scripted("gone")) as gone:
        Permissions().allow(gone.origin)
    with pytest.raises(ContactError, match="Does the server run"):
        chat(gone, retries=0).replies([ASKED])


def test_the_key_goes_to_the_server_and_nowhere_else(
    server: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATHANOR_SECRET_MINE", KEY)
    model = chat(server, secret="mine", retries=0)
    Permissions().allow(server.origin)
    with pytest.raises(ContactError, match=r"with the secret 'mine', which you have not allowed.*--secret mine"):
        model.replies([ASKED])
    assert server.requests == [], "allowing the machine does not allow the secret"
    Permissions().allow(server.origin, "mine")
    path = tmp_path / "replies.db"
    with endpoints.around(replies=Replies(path)):
        model.replies([ASKED])
        assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
        server.trouble = [(401, {}, f'{{"error": {{"message": "Incorrect API key provided: {KEY}."}}}}')]
        with pytest.raises(ContactError) as error:
            model.replies([[Message("user", "Again?")]])
    assert "Incorrect API key provided: ***" in str(error.value) and KEY not in repr(error.getrepr())
    assert KEY.encode() not in path.read_bytes() and KEY not in repr(model)
    assert KEY not in (Permissions().path.read_text())


def test_what_came_before_an_error_is_kept(allowed: Endpoint, tmp_path: Path) -> None:
    replies = Replies(tmp_path / "replies.db")
    others = [[Message("user", f"{i}?")] for i in range(3)]
    with endpoints.around(replies=replies):
        chat(allowed, at_once=1).replies(others[:2])
        allowed.trouble = [(400, {}, "")]
        with pytest.raises(ContactError):
            chat(allowed, at_once=1).replies(others)
        assert len(replies) == 2 and len(allowed.requests) == 3
