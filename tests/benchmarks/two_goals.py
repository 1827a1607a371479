"""A task with a one-hop and a two-hop goal, whose facts are counted by hand in several test files."""

from __future__ import annotations

from mempo_env.records import Evidence, Goal, Task

TASK = Task(
    goals=(
        Goal("Ada plays what?", ("chess",), evidence=(Evidence("Ada plays", "Ada plays chess", "Ada"),)),
        Goal(
            "Ben trusts someone who eats what?",
            ("rice",),
            kind="two-hop",
            evidence=(
                Evidence("Ben trusts", "Ben trusts Cy", "Ben"),
                Evidence("Cy eats", "Cy eats rice", "Cy", after=0),
            ),
        ),
    ),
    id="t",
)
