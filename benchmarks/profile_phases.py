"""Marked phases of a step under torch's profiler: own times of operators, by kind of work and by phase.

Invariant: ``seconds`` and ``phases`` are CPU time of a step without the profiler. Shares by kind and operator are of a
further step under it, of the clock's time in its profiled phases; an operator's time is its own, without those it
calls, so that they add up. The profiler makes what happens between operators dearer.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function

KINDS = ("matrix products", "attention", "head and softmax", "elementwise", "copies and indexing", "other operators")
OUTSIDE = "Python and other"
_PHASE = "phase/"
_STARTERS = {"autograd::engine": ": backward", "Optimizer.step": ": optimizer"}
_WORDS = {
    "attention": "scaled_dot_product flash_attention",
    "head and softmax": "softmax searchsorted cumsum logsumexp argmax",
    "matrix products": "mm addmm bmm baddbmm matmul linear mkldnn",
    "copies and indexing": (
        "copy cat index gather scatter select slice view reshape transpose clone expand embedding empty zeros fill "
        "as_strided stack split to t masked pad resolve detach permute unsqueeze squeeze narrow arange alias full ones "
        "contiguous zero new nonzero sort"
    ),
    "elementwise": (
        "add sub mul div neg silu rsqrt sqrt pow exp log mean sum cos sin clamp where lerp addcmul addcdiv abs "
        "isfinite norm maximum minimum max min eq ne lt le gt ge bitwise any all sigmoid foreach fused adamw rsub"
    ),
}


def kind_of(name: str, shapes: list[list[int]], vocab: int) -> str:
    """The kind of work of an operator.

    Args:
        name: As the profiler has it, such as ``aten::mm``.
        shapes: Of its inputs; a product with the vocabulary as a dimension is the head's.
        vocab: Size of the vocabulary.
    """
    if not name.startswith("aten::"):
        return "other operators"
    word = name.removeprefix("aten::").strip("_")
    if any(vocab in shape for shape in shapes if isinstance(shape, list | tuple)):
        return "head and softmax"
    for kind, words in _WORDS.items():
        # Short words stand for a whole part of a name: `t` is a transpose, `tanh` is none.
        if any(each in word if len(each) > 5 else each in word.split("_") for each in words.split()):
            return kind
    return "other operators"


@dataclass
class Span:
    """An operator, or a marked range, as it ran.

    Attributes:
        name: Of the operator.
        shapes: Of its inputs.
        thread: Where it ran.
        end: When it ended, in ns.
        own: ns without those it called.
        phase: Innermost marked phase around it; in that, what autograd or the optimizer started is told apart.
    """

    name: str
    shapes: list[list[int]]
    thread: int
    end: int
    own: int
    phase: str


def spans(events: Iterable[Any]) -> Iterator[Span]:
    """Tells who called whom by times alone: torch's own tree takes gigabytes for a step that decodes.

    Args:
        events: Kineto's.
    """
    stack: list[Span] = []
    for event in sorted(events, key=lambda e: (e.start_thread_id(), e.start_ns(), -e.duration_ns())):
        start, took, name = event.start_ns(), event.duration_ns(), event.name()
        while stack and (stack[-1].thread != event.start_thread_id() or stack[-1].end <= start):
            yield stack.pop()
        around = stack[-1].phase if stack else ""
        phase = around
        if name.startswith(_PHASE):
            phase = name.removeprefix(_PHASE)
        elif around and ":" not in around and name.startswith(tuple(_STARTERS)):
            phase = around + next(part for starter, part in _STARTERS.items() if name.startswith(starter))
        if stack:
            stack[-1].own -= took
        stack.append(Span(name, event.shapes(), event.start_thread_id(), start + took, took, phase))
    yield from reversed(stack)


class Totals:
    """Own times of operators, added up over profiles, each of which is let go at once.

    Args:
        vocab: Size of the vocabulary.
    """

    def __init__(self, vocab: int) -> None:
        self.vocab = vocab
        self.operators: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.kinds: dict[str, Counter[str]] = {}
        self.outside = 0

    def add(self, events: Iterable[Any]) -> None:
        """Adds the events of a profile, Kineto's, with shapes."""
        for span in spans(events):
            if span.name.startswith(_PHASE):
                self.outside += span.own
            elif span.phase:
                self.operators[span.name] += span.own
                self.calls[span.name] += 1
                kind = kind_of(span.name, span.shapes, self.vocab)
                self.kinds.setdefault(span.phase, Counter())[kind] += span.own

    def shares(self, top: int = 15) -> dict[str, Any]:
        """Shares of the time in marked phases: by kind, by phase and kind, and of the operators with most of it."""
        by_kind: Counter[str] = Counter()
        for found in self.kinds.values():
            by_kind.update(found)
        whole = self.outside + sum(by_kind.values())
        return {
            "kinds": {kind: by_kind[kind] / whole for kind in KINDS} | {OUTSIDE: self.outside / whole},
            "kinds_by_phase": {
                phase: {kind: found[kind] / whole for kind in KINDS} for phase, found in sorted(self.kinds.items())
            },
            "top": [
                {"operator": name, "share": taken / whole, "calls": self.calls[name]}
                for name, taken in self.operators.most_common(top)
            ],
        }


class Phases:
    """Marks phases, and adds up their CPU seconds; an inner phase's are not its outer one's.

    Attributes:
        seconds: By phase.
        totals: If given, each outermost phase runs under a profiler of its own and is added to them.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.totals: Totals | None = None
        self._inner = [0.0]
        self._profiling = False

    @contextmanager
    def phase(self, name: str, *, timed_only: bool = False) -> Iterator[None]:
        """A phase lasts as long as the context.

        Args:
            name: What it is called.
            timed_only: Whether its seconds alone are wanted; phases in it are profiled as if it were not there.
        """
        if timed_only or self.totals is None or self._profiling:
            with nullcontext() if timed_only else record_function(f"{_PHASE}{name}"), self._timed(name):
                yield
            return
        self._profiling = True
        session = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
        with session as found, record_function(f"{_PHASE}{name}"), self._timed(name):
            yield
        self._profiling = False
        self.totals.add(found.profiler.kineto_results.events())

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        begun = time.process_time()
        self._inner.append(0.0)
        yield
        taken = time.process_time() - begun
        self.seconds[name] += taken - self._inner.pop()
        self._inner[-1] += taken

    @contextmanager
    def marked(
        self, owner: Any, method: str, name: str, *, context: bool = False, timed_only: bool = False
    ) -> Iterator[None]:
        """Calls of an object's method are a phase; of one that gives a context, as long as that lasts."""
        plain = getattr(owner, method)

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name, timed_only=timed_only):
                return plain(*args, **kwargs)

        @contextmanager
        def entered(*args: Any, **kwargs: Any) -> Iterator[Any]:
            with self.phase(name), plain(*args, **kwargs) as given:
                yield given

        setattr(owner, method, entered if context else call)
        try:
            yield
        finally:
            delattr(owner, method)


def run(step: Callable[[], object], phases: Phases, vocab: int) -> dict[str, Any]:
    """Profiles a step that may be taken again: once to warm up, once for its seconds, once under the profiler."""
    step()
    phases.seconds.clear()
    step()
    seconds = dict(phases.seconds)
    phases.totals = Totals(vocab)
    step()
    whole = sum(seconds.values())
    shares = {name: taken / whole for name, taken in seconds.items()}
    return {"seconds": whole, "phases": shares} | phases.totals.shares()
