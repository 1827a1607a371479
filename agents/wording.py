"""What an agent says and reads: a prompt style with the instructions that go with it.

Invariant: the environment sees its own grammar only, and a policy's ids are those of what was sampled; ``read`` is the
one place where the two differ.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from mempo_env.env import MemoryEnv
from mempo_env.errors import UserError
from mempo_env.prompt_styles import OWN, PromptStyle

from .base import TurnRequest
from .contexts import ContextStrategy, Message, fold_system


@dataclass(frozen=True)
class Wording:
    """A prompt style, bound to an environment's tools and budget.

    Attributes:
        style: The style.
        instructions: The system message; empty: the environment's own.

    Raises:
        ValueError: The style has instructions of its own, and none were made from them; use ``of``.
    """

    style: PromptStyle = OWN
    instructions: str = ""

    def __post_init__(self) -> None:
        if self.style.instructions and not self.instructions:
            raise ValueError(f"style {self.style.name} has its own instructions; make them with Wording.of(style, env)")

    @classmethod
    def of(cls, style: PromptStyle, env: MemoryEnv) -> Wording:
        """A style in an environment.

        Raises:
            UserError: The environment demands a memory, and the style's outputs have none.
        """
        if env.memory_mode == "required" and not style.has_memory:
            raise UserError(
                f"prompt style {style.name} has no memory, but the environment demands one; "
                "use the context history, or memory=optional"
            )
        return cls(style, style.instruct([tool.spec for tool in env.tools], env.budget) if style.instructions else "")

    def folded(self) -> Wording:
        """The same without a system message."""
        return dataclasses.replace(self, style=dataclasses.replace(self.style, system_role=False))

    def dress(self, request: TurnRequest) -> TurnRequest:
        """The request as context strategies are given it."""
        return dataclasses.replace(request, style=self.style, instructions=self.instructions or request.instructions)

    def messages(self, context: ContextStrategy, request: TurnRequest) -> list[Message]:
        """What the model is given at a turn."""
        messages = context.messages(self.dress(request))
        return messages if self.style.system_role else fold_system(messages)

    def read(self, text: str) -> tuple[str, str | None]:
        """An output as ``TurnOutput`` takes it: in the environment's grammar, and raw where that differs."""
        return (self.style.read(text), text) if self.style.translates else (text, None)


OWN_WORDING = Wording()
