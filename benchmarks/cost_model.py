"""What a training step costs, by goals, budget, context strategy, model and machines: tables, JSON, and docs/speed.md.

    python benchmarks/cost_model.py --out benchmarks/results/cost_model.json
    python benchmarks/cost_model.py --page docs/speed.md

Lengths of episodes and kernels per token are those that ``cost_check.py`` stored; the rest is arithmetic of
``cost_formulas.py``, ``cost_episodes.py`` and ``cost_machines.py``. **Every number for a GPU is a prediction.**

Invariant: the tables of the page are functions of the stored results, so that a test can make them again.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, get_args

from cost_episodes import Context, EpisodeLaw, EpisodeShape
from cost_formulas import QWEN, SMOLLM2, ModelShape
from cost_machines import (
    H100,
    Machine,
    Plan,
    all_reduce_seconds,
    broadcast_seconds,
    decode_bound,
    flops_per_episode,
    memory_of,
    step_cost,
)

from mempo_env.budgets import get_budget

RESULTS = Path(__file__).parent / "results"
MARK = re.compile(r"(<!-- made: (\w+) -->\n\n)((?:(?!<!--).)*?)(\n*<!-- end -->)", re.DOTALL)
THOUGHT = 100
"""Assumed tokens of a turn's thought; the scripted expert, of whose episodes the other lengths are, does not think."""
STEPS = 30_000
NODES = 100
BudgetName = Literal["brief", "paper"]


def shape(check: dict[str, Any], budget: str, goals: int) -> EpisodeShape:
    """An episode of a policy that thinks, by the stored lengths."""
    found = check["laws"][budget]
    law = EpisodeLaw(EpisodeShape(**found["low"]), EpisodeShape(**found["high"]))
    return law.at(goals, get_budget(budget), THOUGHT)


def plan(check: dict[str, Any], **changes: Any) -> Plan:
    """The paper's batch, 8 groups of 16, with the kernels counted of a bfloat16 model under a float32 adapter."""
    return Plan(kernels=check["decode_kernels_per_layer"]["smollm2"], **changes)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; all columns but the first stand on the right."""
    names = list(head)
    lines = [names, ["---", *["---:"] * (len(names) - 1)], *map(list, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cases() -> Iterator[tuple[BudgetName, int, Context]]:
    """Budgets, goals and context strategies of the tables."""
    for budget in get_args(BudgetName):
        for goals in (2, 10):
            for context in get_args(Context):
                yield budget, goals, context


def episodes(check: dict[str, Any]) -> str:
    """FLOPs of an episode by part."""
    rows = []
    for model in (SMOLLM2, QWEN):
        for budget, goals, context in cases():
            episode = shape(check, budget, goals)
            parts = flops_per_episode(model, episode, plan(check, context=context))
            rows.append(
                [
                    f"{model.name}, {budget}, {goals} goals, {context}",
                    str(episode.n_turns),
                    f"{episode.total(context):,.0f}",
                    *(f"{flops / 1e12:,.1f}" for flops in parts.values()),
                    f"{sum(parts.values()) / 1e12:,.1f}",
                ]
            )
    return table(["", "turns", "TT", "prefill", "decode", "Q(m)", "reference", "update", "TFLOP an episode"], rows)


def memory(check: dict[str, Any]) -> str:
    """Bytes of Qwen2.5-7B on one GPU."""
    rows = []
    for name, value in memory_of(QWEN, H100).items():
        shown = f"{value:,.0f}"
        if not ("micro-batch" in name or name.startswith("positions")):
            shown = f"{value / 1e9:,.1f} GB" if value > 1e8 else f"{value / 1e3:,.0f} kB"
        rows.append([name, shown])
    return table(["Qwen2.5-7B, LoRA of rank 16, 90 % of 80 GB", ""], rows)


def decoding(check: dict[str, Any]) -> str:
    """What bounds a decoding step, by rows side by side."""
    rows = []
    for count in (1, 16, 64, 256):
        bound = decode_bound(QWEN, H100, count, 1500, plan(check).kernels)
        slowest = max(bound, key=bound.__getitem__)
        cells = [f"{1000 * seconds:.1f}" for seconds in bound.values()]
        rows.append([str(count), *cells, slowest, f"{count / max(bound.values()):,.0f}"])
    return table(["rows of 1,500 positions", "compute ms", "bandwidth ms", "launch ms", "bound by", "tokens/s"], rows)


def steps(check: dict[str, Any], machine: Machine = H100) -> str:
    """Seconds of a step of 128 episodes on 8 GPUs."""
    rows = []
    for budget, goals, context in cases():
        cost = step_cost(QWEN, shape(check, budget, goals), plan(check, context=context), machine, 8)
        rows.append(
            [
                f"{budget}, {goals} goals, {context}",
                *(f"{seconds:.1f}" for name, seconds in cost.parts.items() if name != "communication"),
                f"{1000 * cost.communication:.1f}",
                f"{cost.seconds:.0f}",
                cost.dominant,
                f"{cost.seconds * STEPS / 3600:,.0f}",
            ]
        )
    head = ["8 groups of 16 on 8 GPUs", "prefill", "decode", "tools", "Q(m)", "reference", "update", "comm. ms"]
    return table([*head, "step s", "most", f"hours of {STEPS:,} steps"], rows)


def levers(check: dict[str, Any]) -> str:
    """What single changes do to a step of 10 goals under ``paper``."""
    episode, usual = shape(check, "paper", 10), plan(check)
    graph = replace(H100, launch=0.0)
    changes: dict[str, tuple[Plan, Machine]] = {
        "as it is": (usual, H100),
        "prefixes not shared in the learner": (replace(usual, share=False), H100),
        "gradient checkpointing, as in the 7B presets": (replace(usual, checkpointing=True), H100),
        "full history instead of memory": (replace(usual, context="history"), H100),
        "Q(m) of each goal alone (`per_goal`)": (replace(usual, scope="per_goal"), H100),
        "no reference pass (beta 0)": (replace(usual, reference=False), H100),
        "decoding from a captured graph": (usual, graph),
        "the same, no row waits for a longer one": (replace(usual, tail=1.0), graph),
        "learner at 0.3 of the rate": (usual, replace(H100, learn_share=0.3)),
        "learner at 0.4 of the rate": (usual, replace(H100, learn_share=0.4)),
    }
    base = step_cost(QWEN, episode, usual, H100, 8).seconds
    rows = []
    for name, (made, machine) in changes.items():
        cost = step_cost(QWEN, episode, made, machine, 8)
        sampling = cost.prefill + cost.decode + cost.tools
        learning = cost.scoring + cost.reference + cost.update
        rows.append([name, f"{sampling:.0f}", f"{learning:.1f}", f"{cost.seconds:.0f}", f"{cost.seconds / base:.2f}"])
    return table(["`paper`, 10 goals, 8 GPUs", "sampling s", "learning s", "step s", "of the first"], rows)


def scaling(check: dict[str, Any]) -> str:
    """More GPUs: the paper's batch, and a batch that grows with them."""
    episode = shape(check, "paper", 10)
    rows = []
    for gpus in (1, 8, 64, 8 * NODES):
        for groups in sorted({8, max(8, gpus)}):
            cost = step_cost(QWEN, episode, plan(check, groups=groups), H100, gpus)
            rows.append(
                [
                    f"{gpus} GPU{'s' * (gpus > 1)}, {groups * 16:,} episodes a step",
                    f"{cost.busy:.1%}",
                    f"{cost.prefill + cost.decode + cost.tools:.0f}",
                    f"{cost.scoring + cost.reference + cost.update:.1f}",
                    f"{cost.communication:.2f}",
                    f"{cost.seconds:.0f}",
                    f"{groups * 16 / cost.seconds:,.1f}",
                    f"{cost.seconds * STEPS / 3600:,.0f}",
                ]
            )
    head = ["`paper`, 10 goals, memory", "GPUs with work", "sampling s", "learning s", "communication s", "step s"]
    return table([*head, "episodes/s", f"hours of {STEPS:,} steps"], rows)


def communication(check: dict[str, Any]) -> str:
    """What data-parallel LoRA sends, beside full training."""
    rows = []
    for name, size in (("LoRA of rank 16, float32", QWEN.adapter * 4), ("all weights, bfloat16", QWEN.weights * 2)):
        sums = [f"{1000 * all_reduce_seconds(H100, gpus, size):,.0f}" for gpus in (8, 64, 8 * NODES)]
        rows.append([name, f"{size / 1e6:,.0f}", *sums, f"{1000 * broadcast_seconds(H100, size):,.0f}"])
    head = ["", "MB", "sum over 8, ms", "over 64", f"over {8 * NODES}", "to samplers, ms"]
    return table(head, rows)


def versus(check: dict[str, Any]) -> str:
    """FLOPs, kept bytes, seconds and peak memory: predicted, measured, error."""
    rows = []
    for line in check["flops"]:
        rows.append([f"{line['model']}: {line['what']}, GFLOP", line["predicted"] / 1e9, line["measured"] / 1e9, ""])
    for line in check["kept"]:
        rows.append([f"{line['what']}, bytes", line["predicted"], line["measured"], ""])
    for part in check["seconds"]:
        for line in part["rows"]:
            error = line["predicted"] / line["measured"] - 1
            note = f"calibrated: share {part['share']:.2f}" if line["calibrated"] else ""
            if "line" in line:
                note = f"{error:+.1%}; by a line {line['line'] / line['measured'] - 1:+.1%}"
            rows.append([f"{part['model']}: {line['what']}, CPU s", line["predicted"], line["measured"], note])
    for line in check["peak"]:
        rows.append([f"{line['what']}, peak MB", line["predicted"] / 1e6, line["measured"] / 1e6, ""])
    cells = [
        [name, f"{predicted:,.4g}", f"{measured:,.4g}", note or f"{predicted / measured - 1:+.1%}"]
        for name, predicted, measured, note in rows
    ]
    return table(["", "predicted", "measured", "error"], cells)


def tokens(check: dict[str, Any]) -> str:
    """TT and PT by goals: predicted from those of 2 and 10 goals, measured, error."""
    rows = []
    for line in check["tokens"]:
        cells = [
            f"{line['predicted'][part]:,.0f} / {line['measured'][part]:,.0f} "
            f"({line['predicted'][part] / line['measured'][part] - 1:+.0%})"
            for part in ("total", "peak")
        ]
        name = f"{line['budget']}, {line['goals']} goals, {line['context']}"
        rows.append([name + (" (fitted)" if line["calibrated"] else ""), *cells])
    return table(["", "TT: predicted / measured", "PT: predicted / measured"], rows)


def profiles(check: dict[str, Any]) -> str:
    """The stored profiles: phases, kinds, operators; what is not stored is named with the command that measures it."""
    parts = []
    for name in ("tiny", "smollm2"):
        path = RESULTS / f"profile_{name}.json"
        if not path.exists():
            where = f"benchmarks/results/{path.name}"
            parts.append(f"Not stored yet: `python benchmarks/profile_step.py {name} --out {where}`.")
            continue
        found = json.loads(path.read_text(encoding="utf-8"))
        phases = ", ".join(f"{phase} {share:.0%}" for phase, share in found["phases"].items())
        kinds = [[kind, f"{share:.1%}"] for kind, share in found["kinds"].items()]
        top = ", ".join(f"`{each['operator']}` {each['share']:.1%}" for each in found["top"][:6])
        head = [f"{name}: {found['seconds']:.1f} CPU s ({phases})", "share under the profiler"]
        parts.append(f"{table(head, kinds)}\n\nOperators with most time of their own: {top}.")
    return "\n\n".join(parts)


_MADE = (profiles, episodes, memory, decoding, steps, levers, scaling, communication, versus, tokens)
TABLES = {each.__name__: each for each in _MADE}


def stored() -> dict[str, Any]:
    """What ``cost_check.py`` stored."""
    found: dict[str, Any] = json.loads((RESULTS / "cost_check.json").read_text(encoding="utf-8"))
    return found


def page(text: str, check: dict[str, Any]) -> str:
    """A document with its made tables made anew."""
    return MARK.sub(lambda old: f"{old[1]}{TABLES[old[2]](check)}\n\n<!-- end -->", text)


def as_json(check: dict[str, Any], model: ModelShape = QWEN) -> dict[str, Any]:
    """Step costs of every case, unrounded."""
    found = []
    for budget, goals, context in cases():
        for gpus, groups in ((8, 8), (8 * NODES, 8), (8 * NODES, 8 * NODES)):
            episode, made = shape(check, budget, goals), plan(check, context=context, groups=groups)
            cost = step_cost(model, episode, made, H100, gpus)
            found.append(
                {"plan": asdict(made), "gpus": gpus, "episode": asdict(episode), "budget": budget}
                | {"seconds": cost.seconds, "parts": cost.parts, "busy": cost.busy}
                | {"flops_per_episode": flops_per_episode(model, episode, made)}
            )
    return {"model": asdict(model), "machine": asdict(H100), "memory": memory_of(model, H100), "steps": found}


def main() -> None:
    """Prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON of every case")
    parser.add_argument("--page", type=Path, help="document whose made tables are written anew")
    flags = parser.parse_args()
    check = stored()
    if flags.out:
        flags.out.write_text(json.dumps(as_json(check), indent=1) + "\n", encoding="utf-8")
    if flags.page:
        flags.page.write_text(page(flags.page.read_text(encoding="utf-8"), check), encoding="utf-8")
    else:
        for name, made in TABLES.items():
            sys.stdout.write(f"{name}\n\n{made(check)}\n\n")


if __name__ == "__main__":
    main()
