"""The file that is written: whole, alike, closed to what it holds, and never over another's."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import importlib.resources
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mempo_env.agents.episodes_io import save_episodes
from mempo_env.agents.viewer import page as page_module
from mempo_env.agents.viewer.page import SCRIPTS, STYLES, check_out, write_page
from mempo_env.agents.viewer.sources import Source, find_sources
from mempo_env.errors import UserError

from .conftest import HOSTILE, faulty_episode, hostile_episode, plain_episode, unpacked


class Elements(html.parser.HTMLParser):
    """Tags with their attributes, and what stands in them as HTML parsers see it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[int, str] = {}
        self.open = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.open = True

    def handle_endtag(self, tag: str) -> None:
        self.open = False

    def handle_data(self, data: str) -> None:
        at = len(self.found) - 1
        if self.open:
            self.inside[at] = self.inside.get(at, "") + data


def test_every_episode_is_in_the_page(page: Callable[..., Path]) -> None:
    out = page(before=[plain_episode(0), plain_episode(1)], after=[plain_episode(0), faulty_episode(1)])
    index, blocks = unpacked(out)
    assert index["sources"] == ["before", "after"]
    assert [(row["s"], row["n"], row["b"], row["i"]) for row in index["rows"]] == [
        (0, 0, 0, 0), (0, 1, 0, 1), (1, 0, 0, 2), (1, 1, 0, 3),
    ]  # fmt: skip
    assert [len(block) for block in blocks] == [4]
    assert blocks[0][1]["goals"][1]["given"] == "dog 1"


def test_blocks_are_cut_by_size_and_rows_name_them(page: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "BLOCK_BYTES", 5000)
    index, blocks = unpacked(page(after=[plain_episode(n) for n in range(20)]))
    assert len(blocks) > 3
    assert [blocks[row["b"]][row["i"]]["seed"] for row in index["rows"]] == list(range(20))


def test_the_limit_holds_for_each_source(page: Callable[..., Path]) -> None:
    episodes = [plain_episode(n) for n in range(5)]
    index, _ = unpacked(page(limit=2, before=episodes, after=episodes))
    assert [(row["s"], row["n"]) for row in index["rows"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_the_same_episodes_give_the_same_bytes(page: Callable[..., Path]) -> None:
    first = page(after=[plain_episode(), hostile_episode()]).read_bytes()
    assert page(after=[plain_episode(), hostile_episode()]).read_bytes() == first


def test_nothing_hostile_leaves_its_block(page: Callable[..., Path]) -> None:
    plain = Elements(page(after=[plain_episode()]).read_text("ascii"))
    evil = Elements(page("<script>x</script>&'\"", after=[hostile_episode()]).read_text("ascii"))
    structure = [(tag, sorted(attributes)) for tag, attributes in evil.found]
    assert structure == [(tag, sorted(attributes)) for tag, attributes in plain.found]
    titles = [evil.inside[at] for at, (tag, _) in enumerate(evil.found) if tag == "title"]
    assert titles == ["<script>x</script>&'\""]
    _, blocks = unpacked(page(after=[hostile_episode()]))
    goals = blocks[0][0]["goals"]
    assert [goal["question"] for goal in goals] == [f"{text}?" for text in HOSTILE]


def test_the_policy_allows_this_style_and_script_and_nothing_else(page: Callable[..., Path]) -> None:
    elements = Elements(page(after=[plain_episode()]).read_text("ascii"))
    policy = next(a["content"] for t, a in elements.found if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split(";")}
    assert rules["default-src"] == ["'none'"]
    assert rules["trusted-types"] == ["'none'"]
    for name, tag in (("style-src", "style"), ("script-src", "script")):
        (at,) = [n for n, (t, a) in enumerate(elements.found) if t == tag and a.get("type") in (None, "module")]
        digest = base64.b64encode(hashlib.sha256(elements.inside[at].encode()).digest()).decode()
        assert rules[name] == [f"'sha256-{digest}'"]
    order = [tag for tag, _ in elements.found]
    at = next(n for n, (_, a) in enumerate(elements.found) if a.get("http-equiv") == "Content-Security-Policy")
    assert not {"script", "style", "link"} & set(order[:at]), "the policy must come before what it governs"


def test_the_assets_ask_for_nothing_and_make_no_markup_from_text() -> None:
    folder = importlib.resources.files("mempo_env.agents.viewer.assets")
    names = {path.name for path in folder.iterdir() if not path.name.startswith("__")}
    assert names == {*STYLES, *SCRIPTS, "page.html"}
    for name in sorted(names):
        text = (folder / name).read_text("ascii")
        assert text.count("\n") < 300, name
        assert "</script" not in text or name == "page.html"
        allowed = text.replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttp|WebSocket|import\(|\bimport .* from", allowed), (
            name
        )
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(", text), name


def test_only_a_page_of_ours_is_replaced(tmp_path: Path, page: Callable[..., Path]) -> None:
    out = page(after=[plain_episode()])
    check_out(out)
    other = tmp_path / "other.html"
    other.write_text("<!doctype html>mine")
    with pytest.raises(UserError, match=r"not written by mempo view; choose another --out"):
        check_out(other)
    with pytest.raises(UserError, match="is a folder"):
        check_out(tmp_path)
    with pytest.raises(UserError, match="there is no folder"):
        check_out(tmp_path / "no" / "view.html")


def test_a_file_that_cannot_be_read_leaves_no_page(tmp_path: Path) -> None:
    broken = tmp_path / "x.episodes.jsonl"
    save_episodes(broken, [plain_episode()])
    broken.write_text(broken.read_text() + "{}\n")
    with pytest.raises(UserError, match=r"x.episodes.jsonl:2"):
        write_page(tmp_path / "view.html", "x", {}, [Source(broken, "x")])
    empty = tmp_path / "empty.episodes.jsonl"
    empty.touch()
    with pytest.raises(UserError, match="holds no episodes yet"):
        write_page(tmp_path / "view.html", "x", {}, [Source(empty, "x")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.episodes.jsonl", "x.episodes.jsonl"]


def test_sources_of_a_run_an_evaluation_and_a_file(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in (
        "eval/after.episodes.jsonl.gz", "eval/before.episodes.jsonl.gz", "eval/imitation.episodes.jsonl.gz",
        "training/step-000020.episodes.jsonl.gz", "training/step-000001.episodes.jsonl.gz",
        "eval/.after.episodes.jsonl.gz.12.part", "metrics.jsonl", "base/model.jsonl.gz",
        "more/episodes/brief-2.jsonl.gz",
    ):  # fmt: skip
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).touch()
    assert [source.name for source in find_sources(run)] == [
        "before", "after", "imitation", "more/brief-2", "training/step-000001", "training/step-000020",
    ]  # fmt: skip
    assert [source.name for source in find_sources(run / "eval" / "after.episodes.jsonl.gz")] == ["after"]
    assert [source.name for source in find_sources(run / "more")] == ["brief-2"]
    for place, said in (
        (run / "base", "holds no episodes"),
        (run / "no", "does not exist"),
        (run / "eval" / ".after.episodes.jsonl.gz.12.part", "is no file of episodes"),
    ):
        with pytest.raises(UserError, match=said):
            find_sources(place)
