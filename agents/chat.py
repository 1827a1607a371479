"""An agent behind a server that speaks the chat-completions protocol (vLLM, llama.cpp, Ollama, hosted models).

Requests go out side by side, at most ``concurrency`` at a time, through the ``openai`` client, which sends those that
failed again with growing pauses (no connection, time-out, 408, 409, 429, 5xx). What still fails is a fault outside the
episode: the turn's output carries ``error``.

Invariants:
    * outputs come in the order of the requests, whatever the order of the answers;
    * a request is a function of the turn: messages, settings and, where it is sent, a seed made from the turn's slot;
    * an answer that is no chat completion is a fault; one without text is an output that says nothing;
    * tokens are the server's own count (``usage``) where it reports one, else those of a counter that is named.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from mempo_env.actions import ACTION_SEGMENTS, TagSet, action_end, encode_text, scan
from mempo_env.errors import UserError
from mempo_env.tokens import RegexTokenCounter

from .agent_spec import AgentSpec
from .base import SlotKey, TurnOutput, TurnRequest
from .contexts import ContextStrategy, MemoryContext, Message, fold_system
from .textual import Tokens, count_messages, count_text, slot_rng
from .wording import OWN_WORDING, Wording

T = TypeVar("T")
R = TypeVar("R")

_LOG = logging.getLogger(__name__)
_MOST_STOPS = 4  # the protocol's limit
_LONGEST_PAUSE = 8.0
_REFUSED = (401, 403, 404)  # key, rights, address or model: no request will ever pass


class _GarbledAnswerError(Exception):
    """The server answered, but not with a chat completion."""


@dataclass(frozen=True)
class _Answer:
    """One answer of the server, as far as it could be read."""

    text: str
    finish: str
    n_prompt: int | None
    n_output: int | None
    stopped_by: str


class ChatAgent:
    """Plays turns through a chat-completions server.

    What a reasoning model thinks apart from its answer (``reasoning_content``) is no part of the output: it is neither
    parsed nor shown again, but the server counts its tokens. A ``<think>`` block inside the answer is kept.

    Args:
        spec: Of kind ``chat``.
        context: What the model is shown at a turn.
        wording: Prompt style of the model.
        tokens: Counts where the server reports no usage (regex counter by default).
        api_key: For the server; any text for one that asks for none.
        pause: Seconds of the first pause after a garbled answer; doubled each time.

    Raises:
        UserError: The ``openai`` client is not installed or refuses the settings.
    """

    def __init__(
        self,
        spec: AgentSpec,
        context: ContextStrategy | None = None,
        wording: Wording = OWN_WORDING,
        *,
        tokens: Tokens | None = None,
        api_key: str = "none",
        pause: float = 0.5,
    ) -> None:
        try:
            import openai
        except ModuleNotFoundError as missing:
            raise UserError(
                "an agent of kind chat needs the openai client; install it with: pip install 'mempo-env[chat]'"
            ) from missing
        self.spec = spec
        self.name = spec.label
        self.context: ContextStrategy = context if context is not None else MemoryContext()
        self.wording = wording.folded() if spec.system_role == "fold" else wording
        self.tokens: Tokens = tokens if tokens is not None else RegexTokenCounter()
        self.turns = self.turns_uncounted = 0
        self._pause = pause
        self._openai = openai
        self._lock = threading.Lock()
        self._folded = False
        self._limit_name = "max_tokens"
        try:
            self._client = openai.OpenAI(
                base_url=spec.base_url or None, api_key=api_key, timeout=spec.timeout, max_retries=spec.retries
            )
        except (openai.OpenAIError, ValueError) as error:
            raise UserError(f"the chat client refuses its settings: {error}") from error

    def act(self, requests: Sequence[TurnRequest]) -> list[TurnOutput]:
        """Answers each request, in order; one that failed for good has an ``error``.

        Raises:
            UserError: The server refuses the key, the address or the model.
        """
        return side_by_side(self._answer, requests, self.spec.concurrency)

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    @property
    def counted_by(self) -> str:
        """Who counted the tokens so far: the server, a counter, or both."""
        counter = getattr(self.tokens, "name", type(self.tokens).__name__)
        if not self.turns_uncounted:
            return "server"
        return counter if self.turns_uncounted == self.turns else f"server; {counter} where it reports no usage"

    def _answer(self, request: TurnRequest) -> TurnOutput:
        messages = self.wording.messages(self.context, request)
        try:
            answer = self._ask(messages, request.key)
        except (_GarbledAnswerError, self._openai.APIError) as error:
            if getattr(error, "status_code", None) in _REFUSED:
                path = "" if self._client.base_url.path.strip("/") else " (of most servers it ends in /v1)"
                raise UserError(
                    f"{self._client.base_url} refuses model {self.spec.model!r}: {_reason(error)}; check the address"
                    f"{path}, the model's name and the key in ${self.spec.api_key_env}"
                ) from error
            _LOG.warning("turn %d of %s: %s", request.key.turn, request.key.group_id, _reason(error))
            return TurnOutput("", 0, 0, error=_reason(error))
        said, stop_reason = cut(answer.text, answer.finish, self.wording.style.tags, answer.stopped_by)
        text, raw_text = self.wording.read(said)
        with self._lock:
            self.turns += 1
            self.turns_uncounted += answer.n_prompt is None or answer.n_output is None
        if answer.n_prompt is None or answer.n_output is None:
            sent = fold_system(messages) if self._folded else messages
            n_prompt, n_output = count_messages(self.tokens, sent), count_text(self.tokens, said)
        else:
            n_prompt, n_output = answer.n_prompt, answer.n_output
        return TurnOutput(text, n_prompt, n_output, stop_reason=stop_reason, raw_text=raw_text)

    def _ask(self, messages: list[Message], key: SlotKey) -> _Answer:
        """Asks until there is an answer; a garbled one is asked for again as often as a failed one."""
        for attempt in range(self.spec.retries + 1):
            try:
                return _read(self._send(messages, key))
            except _GarbledAnswerError:
                if attempt == self.spec.retries:
                    raise
                time.sleep(min(self._pause * 2**attempt, _LONGEST_PAUSE))
        raise AssertionError("retries is at least 0")

    def _send(self, messages: list[Message], key: SlotKey) -> Any:
        """Sends one request; adapts it, once for all, to what the server says it cannot take."""
        while True:
            folded, limit_name = self._folded, self._limit_name
            try:
                return self._client.chat.completions.create(
                    model=self.spec.model,
                    messages=fold_system(messages) if folded else messages,
                    **self._settings(key, limit_name),
                )
            except self._openai.APIStatusError as error:
                # Another request may have found the same out meanwhile.
                if not self._adapt(_reason(error), folded, limit_name):
                    raise
            except ValueError as error:  # JSON was announced, and something else came
                raise _GarbledAnswerError(f"the answer is not JSON: {error}") from error

    def _settings(self, key: SlotKey, limit_name: str) -> dict[str, Any]:
        spec = self.spec
        settings: dict[str, Any] = {
            limit_name: spec.max_new_tokens,
            "temperature": 0.0 if spec.greedy else spec.temperature,
        }
        if not spec.greedy:
            settings["top_p"] = 1.0
        if spec.stop_at_action:
            settings["stop"] = list(self.wording.style.tags.action_closers)[:_MOST_STOPS]
        if spec.send_seed:
            settings["seed"] = int(slot_rng(key, "chat seed").integers(2**31))
        return settings

    def _adapt(self, complaint: str, folded: bool, limit_name: str) -> bool:
        """Whether the request should be sent again in another form, after the server's complaint."""
        complaint = complaint.lower()
        if "max_completion_tokens" in complaint and limit_name == "max_tokens":
            self._limit_name = "max_completion_tokens"
        elif self.spec.system_role == "auto" and not folded and "system" in complaint and "role" in complaint:
            self._folded = True
        else:
            return False
        _LOG.warning("the server wants requests in another form, and gets them so from now on: %s", complaint)
        return True


def side_by_side(function: Callable[[T], R], items: Sequence[T], workers: int) -> list[R]:
    """Calls a function for each item in threads; results in order, the first exception is raised.

    The threads are daemons: an executor's would keep an interrupted program until the server has answered.

    Args:
        function: Waits for somebody else most of its time.
        items: What to call it with.
        workers: Most calls under way at a time.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, R | None, BaseException | None]] = queue.SimpleQueue()
    stopped = threading.Event()
    for index in range(len(items)):
        waiting.put(index)

    def work() -> None:
        while not stopped.is_set():
            try:
                index = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((index, function(items[index]), None))
            except BaseException as error:
                done.put((index, None, error))

    for number in range(min(workers, len(items))):
        threading.Thread(target=work, name=f"chat-{number}", daemon=True).start()
    results: dict[int, R] = {}
    try:
        for _ in items:
            index, result, error = done.get()
            if error is not None:
                raise error
            results[index] = result  # type: ignore[assignment]
    finally:
        stopped.set()
    return [results[index] for index in range(len(items))]


def cut(text: str, finish: str, tags: TagSet, stopped_by: str = "") -> tuple[str, str]:
    """An output up to the end of its first action block.

    A server that stops at a closing tag does not return it. Where the output ends inside an action block and the server
    says that it stopped (rather than ran out of tokens), the tag is put back. The protocol does not tell that case from
    a model that ended its turn there, which so has its block closed as well.

    Args:
        text: What the server returned.
        finish: Its ``finish_reason``.
        tags: Tags of the outputs.
        stopped_by: The stop text, where the server names it.

    Returns:
        The output and its stop reason, as ``TurnOutput`` has it.
    """
    data = encode_text(text)
    blocks = scan(data, tags)
    if finish == "stop" and blocks and not blocks[-1].closed:
        last = blocks[-1]
        tag = data[last.start + 1 : last.inner_start - 1].decode()
        if last.segment in ACTION_SEGMENTS:
            data += f"</{tag}>".encode()
        elif stopped_by:  # a closing tag inside a memory or a thought: text of that block, which was never closed
            data += stopped_by.encode()
    end = action_end(data, tags)
    if end is not None:
        return data[:end].decode(), "action"
    return data.decode(), {"stop": "eos", "length": "length"}.get(finish, "")


def _read(completion: Any) -> _Answer:
    """Reads an answer without trusting it: servers differ, and the client does not check what it is given."""
    choices = getattr(completion, "choices", None)
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = getattr(choice, "message", None)
    if message is None:
        raise _GarbledAnswerError(f"the answer is no chat completion: {str(completion)[:200]!r}")
    content = getattr(message, "content", None)
    if content is not None and not isinstance(content, str):
        raise _GarbledAnswerError(f"the answer's content is no text: {str(content)[:200]!r}")
    usage = getattr(completion, "usage", None)
    stopped_by = getattr(choice, "stop_reason", None)  # vLLM's
    return _Answer(
        text=content or "",
        finish=str(getattr(choice, "finish_reason", "") or ""),
        n_prompt=_count(getattr(usage, "prompt_tokens", None)),
        n_output=_count(getattr(usage, "completion_tokens", None)),
        stopped_by=stopped_by if isinstance(stopped_by, str) else "",
    )


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _reason(error: Exception) -> str:
    """One line on what failed."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]
