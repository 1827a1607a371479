"""An environment of your own, whole: boxes are opened five at a time, and what is not noted down is lost.

PYTHONPATH=examples mempo train --env own_environment:Boxes-v0 --algo mempo --out runs/boxes
PYTHONPATH=examples mempo check-env own_environment:Boxes-v0
"""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from mempo_env import Evidence, Goal, MemoryEnv, Task, Tool, ToolArgumentError, ToolSpec, UserError
from mempo_env.agents.expert import ExpertAgent

BOXES = "red blue green yellow pink purple white black grey teal brown orange silver golden beige crimson".split()
THINGS = "key ring map coin lamp rope book drum flute knife spoon bell clock candle mirror comb glove cup".split()
SPLITS = {"train": (0, 1, 2), "dev": (3,), "test": (4,)}  # residues of a task's indices: no task is in two splits


class OpenBoxes:
    """The tool: a class with ``spec`` and ``call``."""

    def __init__(self, most: int) -> None:
        self.most, self.inside = most, dict[str, str]()
        schema = {"type": "object", "properties": {"boxes": {"type": "array", "items": {"enum": BOXES}}}}
        self.spec = ToolSpec("open", f"Opens 1 to {most} boxes.", schema | {"required": ["boxes"]})

    def call(self, arguments: dict[str, Any]) -> str:
        """One line per box; arguments come from a language model: anything may be in them, and spaces around texts."""
        boxes = arguments.get("boxes")
        boxes = [str(box).strip() for box in boxes] if isinstance(boxes, list) else []
        if not 1 <= len(boxes) <= self.most or not set(boxes) <= set(BOXES):
            raise ToolArgumentError(f'open takes {{"boxes": [..]}}, 1 to {self.most} of {", ".join(BOXES)}.')
        return "\n".join(f"{box}: {self.inside.get(box, 'nothing')}" for box in boxes)


class BoxesEnv(MemoryEnv):
    """What is in each of 1 to 16 boxes?"""

    expert = "own_environment:BoxesExpert"

    def __init__(self, **memory_env: Any) -> None:
        super().__init__(**memory_env)  # goals, split, budget, outcome, memory, reward_hook, render_mode, ..
        if self.split not in SPLITS:
            raise UserError(f"split={self.split!r} is unknown; use one of {', '.join(SPLITS)}")
        self._open = OpenBoxes(self.budget.queries_per_call)

    @property
    def tools(self) -> Sequence[Tool]:
        return (self._open,)

    def sample_task(self, rng: np.random.Generator) -> Task:
        count = self.draw_goals(rng)
        while True:
            boxes, things = rng.permutation(len(BOXES))[:count], rng.integers(len(THINGS), size=count)
            if int(boxes.sum() + things.sum()) % 5 in SPLITS[self.split]:
                return Task(tuple(self.goal(BOXES[b], THINGS[t]) for b, t in zip(boxes, things, strict=True)))

    def goal(self, box: str, thing: str) -> Goal:
        """The expert asks for the evidence's query, and writes its note down once a result holds it word for word."""
        evidence = Evidence(query=box, note=f"{box}: {thing}")
        return Goal(f"What is in the {box} box?", answers=(thing,), evidence=(evidence,))

    def prepare(self, task: Task) -> None:
        self._open.inside = {goal.evidence[0].query: goal.answers[0] for goal in task.goals}

    @property
    def vocabulary(self) -> Sequence[str]:
        return [*BOXES, *THINGS, *"What is in the box nothing open takes to of".split()]


class BoxesExpert(ExpertAgent):
    """Asks for each goal's evidence, notes what it sees, and answers from its notes; flaws and all are inherited."""

    tool, argument = "open", "boxes"


gym.register("Boxes-v0", entry_point=BoxesEnv)
