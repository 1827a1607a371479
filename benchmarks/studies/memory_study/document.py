"""Writes the generated parts of docs/study.md and docs/study_tables.md, between markers, and their pictures.

Invariant: what stands between the markers is made from kept cells alone; everything else in the file is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mempo_env.errors import UserError

from . import plots
from .arms import ARMS, CROSSED, CROSSED_ARMS, REGIMES
from .cells import DEV_SEED, FOLLOWED, FRESH_SEEDS, REPLICATED, SEEDS, STUDY, candidates
from .real import LEARNING_RATE, REAL, REGIME
from .sections import real_sections, sections
from .study import Study
from .tables import Table, state

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs"
PICTURES = {
    "study_f1.png": (plots.by_goals, "F1 by number of goals, warm start, ceiling and arms, in every regime"),
    "study_learning.png": (plots.learning, "F1 of training episodes by update, sampled token and CPU second"),
    "study_quality.png": (plots.quality_bins, "Share of memories by Q(m), before and after"),
}
MAIN = (
    *("replication", "clipped", "distances", "f1", "differences", "training", "memories", "reading", "causes"),
    "tuning",
)
"""First words of the keys of those tables that stand in the page itself; the others have a page of their own."""
LONG = ("seeds-", "em-", "estimators-", "goals-", "pooled-")
"""Keys of tables that are folded away."""


def between(text: str, name: str, content: str) -> str:
    r"""A page with other content between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``.

    Raises:
        UserError: The page does not have both markers once.

    >>> between("a <!-- begin x -->old<!-- end x --> b", "x", "new")
    'a <!-- begin x -->\n\nnew\n\n<!-- end x --> b'
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise UserError(f"the page must have {begin} and {end} once each, in this order")
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    return re.sub(pattern, lambda _: f"{begin}\n\n{content.strip()}\n\n{end}", text, flags=re.DOTALL)


def arms_table(study: Study) -> str:
    """What each arm is, and of how many seeds it is in."""

    def seeds(arm: str) -> str:
        counts = {one.name: len(study.arms.get(one.name, {}).get(arm, {})) for one in study.regimes}
        return ", ".join(f"{regime} {n}" for regime, n in counts.items() if n) or "none"

    rows = [
        (
            f"`{arm.name}`",
            arm.words,
            "default" if arm.default else "`--full`" + ("" if len(arm.regimes) > 1 else f", {arm.regimes[0]} only"),
            seeds(arm.name),
        )
        for arm in ARMS.values()
    ]
    return Table("arms", "", ("arm", "what differs", "matrix", "seeds that are in, untuned"), rows).markdown()


def setup_table() -> str:
    """The settings, as the code has them."""
    tries = len(candidates("easy", "mempo"))
    rows = [
        (
            "seeds",
            f"{', '.join(map(str, SEEDS))}; tuning: {DEV_SEED}; replication: {', '.join(map(str, FRESH_SEEDS))}, tuned "
            + " and ".join(f"`{regime}-{arm}`" for regime, arm in REPLICATED)
            + ", and `{}-{}`".format(*FOLLOWED),
        ),
        *(
            (
                f"{regime.name}",
                f"{regime.goals[0]} to {regime.goals[1]} goals, outcome `{regime.outcome}`, "
                f"{STUDY.steps[regime.name]} updates of {STUDY.groups} tasks x {STUDY.group_size} episodes"
                + ("" if regime.default else f"; `--full` only, untuned, arms {', '.join(CROSSED_ARMS)}"),
            )
            for regime in (REGIMES | CROSSED).values()
        ),
        (
            "warm start",
            f"{STUDY.perfect_steps} steps on the expert, {STUDY.demonstrator_steps} on a demonstrator that forgets "
            f"each note with 20 % per rewrite, {STUDY.warm_goals[0]} to {STUDY.warm_goals[1]} goals",
        ),
        (
            "tests",
            f"{STUDY.episodes} tasks of the `test` split at each of {', '.join(map(str, STUDY.test_goals))} goals, "
            "greedy",
        ),
        (
            "tuning",
            f"{tries} candidates for each arm and regime, half the updates ({STUDY.tune_steps['easy']}), one seed, "
            f"{STUDY.episodes} tasks of the `dev` split at each of the regime's goals",
        ),
    ]
    return Table("setup", "", ("what", "how"), rows).markdown()


def real_setup_table() -> str:
    """The settings of the study on a language model, as the code has them."""
    base, regime = REAL.base, REAL.regimes[REGIME]
    shown = " to ".join(map(str, dict.fromkeys(REAL.warm_goals)))
    rows = [
        ("model", f"SmolLM2-135M-Instruct, {base.dtype}; preset `{base.preset}` where nothing else is said"),
        (
            "warm start",
            f"{REAL.perfect_steps} steps of all weights on the expert's episodes with {shown} goals, "
            f"{base.warm_start.tokens_per_step} tokens a step, learning rate {base.warm_start.optim.lr:g}",
        ),
        (
            "reinforcement learning",
            f"{REAL.steps[REGIME]} updates of {REAL.groups} tasks x {REAL.group_size} episodes of "
            f"{regime.goals[0]} goals from the train files, outcome `{regime.outcome}`, learning rate "
            f"{LEARNING_RATE:g} of an adapter",
        ),
        (
            "tests",
            f"{REAL.episodes} tasks of the `{REAL.split}` files at each of "
            f"{', '.join(map(str, REAL.test_goals))} goals, greedy; one seed",
        ),
    ]
    return Table("real-setup", "", ("what", "how"), rows).markdown()


def real_results(study: Study) -> str:
    """What is missing, and the tables."""
    missing = f"Not in yet: {', '.join(study.missing)}.\n\n" if study.missing else ""
    return missing + results(real_sections(study))


def results(tables: Sequence[Table]) -> str:
    """Tables, long ones folded."""
    parts = []
    for table in tables:
        text = f"**{table.title}**\n\n{table.markdown()}"
        if table.key.startswith(LONG):
            text = f"<details><summary>{table.title}</summary>\n\n{table.markdown()}\n\n</details>"
        parts.append(text)
    return "\n\n".join(parts) or "No cell is kept yet."


def shared_out(tables: Sequence[Table]) -> tuple[list[Table], list[Table]]:
    """The tables of the page itself, and the others."""
    main = [table for table in tables if table.key.partition("-")[0] in MAIN]
    return main, [table for table in tables if table not in main]


def write_document(study: Study, real: Study, default: Mapping[str, str], docs: Path = DOCS) -> list[Path]:
    """Writes the pages' generated parts and the pictures.

    Args:
        study: What is kept.
        real: The same of the study on a language model.
        default: Kinds of the cells of the default matrix by name.
        docs: Folder of the pages, with the pictures in its ``images``.

    Returns:
        The files that were written.
    """
    page, more, images = docs / "study.md", docs / "study_tables.md", docs / "images"
    text, written = page.read_text(encoding="utf-8"), [page, more]
    tables = sections(study)
    first = [table for table in tables if table.key == "overview"]
    main, others = shared_out([table for table in tables if table not in first])
    shown = []
    for name, (draw, words) in PICTURES.items():
        if study.warm.get("memory"):
            images.mkdir(parents=True, exist_ok=True)
            draw(study, images / name)
            written.append(images / name)
            shown.append(f"![{words}]({images.name}/{name})")
    for name, content in (
        ("overview", results(first)),
        ("state", "\n".join(f"- {line}" for line in state(study, default))),
        ("arms", arms_table(study)),
        ("setup", setup_table()),
        ("pictures", "\n\n".join(shown) or "No cell is kept yet."),
        ("results", results(main)),
        ("real-setup", real_setup_table()),
        ("real-results", real_results(real)),
    ):
        text = between(text, name, content)
    page.write_text(text, encoding="utf-8")
    more.write_text(between(more.read_text(encoding="utf-8"), "tables", results(others)), encoding="utf-8")
    return written
