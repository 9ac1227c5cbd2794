"""A language model on a server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from engine.fields import Count, Endpoint, NonNegative, Positive, Replay, SecretName, Whole
from engine.kit.language import Chat
from engine.parts import LanguageModel, Message, Reply, language_model

ModelName = Annotated[str, Field(pattern=r"\S")]


@language_model(
    name="Chat endpoint",
    nondeterministic="remote",
    example={"procedure": {"engine": {"use": "chat-endpoint", "model": "scripted"}}},
)
class ChatEndpoint(LanguageModel):
    """Asks a language model on a server that speaks OpenAI's chat format, as Ollama, llama.cpp, vLLM and most
    providers do. Nothing is sent to a machine that you have not allowed. What was answered is kept in the workspace.

        POST url/chat/completions {model, messages, temperature, max_tokens};  reply = choices[0].message.content

    Helps: any method that works by words, with a model on this machine or at a provider.
    Hurts: the same model may answer otherwise tomorrow; replaying the kept replies does not.
    Cost: a call for each reply, which the run counts in tokens; providers bill them.

    Choices: an answer is kept under the whole request and the number of its repetition. At temperature 0 the same
    question is asked once a workspace. Redirects are not followed and proxies not used: they are other machines.

    Args:
        model: The name by which the server knows the model.
        url: The address of the server's interface, up to and with /v1; the default is Ollama's on this machine.
        temperature: How freely answers are drawn; 0 takes the likeliest words.
        max_tokens: The longest answer.
        secret: The name of the API key in the system's keyring; empty where the server wants none.
        timeout: Seconds to wait for an answer.
        retries: How often to ask again when the server is busy or cannot be reached.
        at_once: Questions that wait for an answer at the same time.
        replay: "record" keeps new replies and uses those that are kept; "only" sends nothing.

    Raises:
        ValueError: For an address with a user, a password, a query or no host.
    """

    def __init__(
        self,
        model: ModelName,
        url: Endpoint = "http://127.0.0.1:11434/v1",
        temperature: NonNegative = 0.0,
        max_tokens: Count = 1024,
        secret: SecretName = "",
        timeout: Positive = 60.0,
        retries: Whole = 3,
        at_once: Count = 4,
        replay: Replay = "record",
    ):
        self.model, self.url, self.temperature, self.max_tokens = model, url, temperature, max_tokens
        self.secret, self.timeout, self.retries, self.at_once, self.replay = secret, timeout, retries, at_once, replay
        self._chat = Chat(
            url, model, temperature, max_tokens, secret, timeout, retries, at_once, replay, part=f"The model {model!r}"
        )
        _ = self._chat.contact  # refuses an address that cannot be used

    def replies(self, asked: Sequence[Sequence[Message]], occasion: Sequence[int] = ()) -> list[Reply]:
        return self._chat.replies(asked, occasion)

    def reply(self, conversation: Sequence[Message], occasion: Sequence[int] = ()) -> Reply:
        return self._chat.replies([conversation], occasion)[0]
