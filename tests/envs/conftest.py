"""Rows in the published form of each data set, a small corpus, and servers: one of ours, and one that misbehaves."""

from __future__ import annotations

import copy
import gzip
import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from mempo_env.records import Passage

Rows = list[dict[str, Any]]

# hotpot_train_v1.1.json and hotpot_dev_distractor_v1.json: one JSON array.
HOTPOT: Rows = [
    {
        "_id": "5a8b57f25542995d1e6f1371",
        "answer": "yes",
        "question": "Were Scott Derrickson and Ed Wood of the same nationality?",
        "supporting_facts": [["Scott Derrickson", 0], ["Ed Wood", 0], ["Ed Wood", 1]],
        "context": [
            ["Doctor Strange &amp; Co", ["Doctor Strange is a 2016 film.", " It has magic."]],
            ["Ed Wood", ["Edward Davis Wood Jr. was an American filmmaker.", " He made films."]],
            ["Scott Derrickson", ["Scott Derrickson (born July 16, 1966) is an American director."]],
            ["An empty paragraph", []],
        ],
        "type": "comparison",
        "level": "hard",
    },
    {
        "_id": "5a8c7595554299585d9e36b6",
        "answer": "Chief of Protocol",
        "question": "What post was held by the woman who played Corliss Archer in Kiss and Tell?",
        "supporting_facts": [["Kiss and Tell (1945 film)", 0], ["Shirley Temple", 1]],
        "context": [
            ["Kiss and Tell (1945 film)", ["Kiss and Tell stars then 17-year-old Shirley Temple as Corliss Archer."]],
            ["Shirley Temple", ["Shirley Temple was an actress.", " She was Chief of Protocol of the United States."]],
            ["Ed Wood", ["Edward Davis Wood Jr. was an American filmmaker.", " He made films."]],
        ],
        "type": "bridge",
        "level": "medium",
    },
]
# 2WikiMultihopQA train.json, dev.json (data_ids_april7.zip): HotpotQA's form with evidences, ids and entity_ids.
TWO_WIKI: Rows = [
    {
        "_id": "13f5ad2c088c11ebbd6fac1f6bf848b6",
        "type": "compositional",
        "question": "What nationality is the director of film Polish-Russian War (Film)?",
        "context": [
            ["Xawery Żuławski", ["Xawery Żuławski (born 22 December 1971) is a Polish film director.", "He works."]],
            ["Polish-Russian War (film)", ["Polish-Russian War is a 2009 film directed by Xawery Żuławski."]],
            ["Other", ["Nothing of interest."]],
        ],
        "entity_ids": "Q7320430_Q51759",
        "supporting_facts": [["Polish-Russian War (film)", 0], ["Xawery Żuławski", 0]],
        "evidences": [["Polish-Russian War", "director", "Xawery Żuławski"], ["Xawery Żuławski", "country", "Poland"]],
        "answer": "Poland",
        "evidences_id": [["Q1", "director", "Q2"], ["Q2", "country", "Q36"]],
        "answer_id": "Q36",
    },
]
ALIASES = '{"Q_id": "Q36", "aliases": ["PL", "Republic of Poland"], "demonyms": ["Polish", "PL"]}\n' + (
    '{"Q_id": "Q99", "aliases": ["not this"], "demonyms": []}\n'
)
# musique_ans_v1.0_*.jsonl: one object a line.
MUSIQUE: Rows = [
    {
        "id": "2hop__460946_294723",
        "paragraphs": [
            {"idx": 0, "title": "Grant's First Stand", "paragraph_text": "A jazz album.", "is_supporting": False},
            {
                "idx": 1,
                "title": "Miquette Giraudy",
                "paragraph_text": "Miquette Giraudy is a musician, the partner of Steve Hillage.",
                "is_supporting": True,
            },
            {
                "idx": 2,
                "title": "Green (Steve Hillage album)",
                "paragraph_text": "Green is the fourth studio album by Steve Hillage.",
                "is_supporting": True,
            },
        ],
        "question": "Who is the spouse of the Green performer?",
        "question_decomposition": [
            {"id": 460946, "question": "Green >> performer", "answer": "Steve Hillage", "paragraph_support_idx": 2},
            {"id": 294723, "question": "#1 >> spouse", "answer": "Miquette Giraudy", "paragraph_support_idx": 1},
        ],
        "answer": "Miquette Giraudy",
        "answer_aliases": ["Giraudy"],
        "answerable": True,
    },
]
# NQ-open.train.jsonl, NQ-open.dev.jsonl.
NQ_OPEN: Rows = [
    {"question": "where did they film hot tub time machine", "answer": ["Fernie Alpine Resort"]},
    {"question": "who has the right of way", "answer": ["pedestrians", "the pedestrian"]},
]
# biencoder-nq-dev.json (DPR): one JSON array.
DPR: Rows = [
    {
        "dataset": "nq_dev_psgs_w100",
        "question": "who sings does he love me with reba",
        "answers": ["Linda Davis"],
        "positive_ctxs": [
            {
                "title": "Does He Love You",
                "text": "Does He Love You is a song recorded by Reba McEntire and Linda Davis.",
                "score": 1000,
                "title_score": 1,
                "passage_id": "11828866",
            },
            {"title": "Linda Davis", "text": "Linda Davis sings.", "score": 13.2, "title_score": 0, "passage_id": "7"},
        ],
        "negative_ctxs": [
            {"title": "Cormac McCarthy", "text": "A writer.", "score": 0, "title_score": 0, "passage_id": "13"}
        ],
        "hard_negative_ctxs": [
            {"title": "Why Not Me", "text": "A song by Reba.", "score": 9.9, "title_score": 0, "passage_id": "14"}
        ],
    },
]
PSGS = (
    "id\ttext\ttitle\n"
    '11828866\t"Does He Love You is a song recorded by ""Reba McEntire"" and Linda Davis."\tDoes He Love You\n'
    "2\tFernie Alpine Resort is a ski resort; they filmed hot tub time machine there.\tFernie\n"
)
# FlashRAG_datasets: nq/test.jsonl; hotpotqa/dev.jsonl; 2wikimultihopqa/dev.jsonl; musique/dev.jsonl.
FLASHRAG_NQ: Rows = [
    {"id": "test_0", "question": "who got the first nobel prize in physics", "golden_answers": ["Wilhelm Röntgen"]}
]
FLASHRAG_HOTPOT: Rows = [
    {
        "id": "dev_0",
        "question": HOTPOT[0]["question"],
        "golden_answers": ["yes"],
        "metadata": {
            "type": "comparison",
            "level": "hard",
            "supporting_facts": {"title": ["Scott Derrickson", "Ed Wood"], "sent_id": [0, 0]},
            "context": {
                "title": ["Ed Wood", "Scott Derrickson", "Other"],
                "sentences": [["Ed Wood was an American."], ["Scott Derrickson is an American."], ["Nothing."]],
            },
        },
    }
]
FLASHRAG_TWO_WIKI: Rows = [
    {
        "id": "dev_0",
        "question": TWO_WIKI[0]["question"],
        "golden_answers": ["Poland"],
        "metadata": {
            "type": "compositional",
            "context": {"title": ["A film", "A man"], "content": [["A film by A man."], ["A man is from Poland."]]},
            "supporting_facts": {"title": ["A film", "A man"], "sent_id": [0, 0]},
            "evidences": {"fact": ["A film"], "relation": ["director"], "entity": ["A man"]},
        },
    }
]
FLASHRAG_MUSIQUE: Rows = [
    {
        "id": "dev_0",
        "question": MUSIQUE[0]["question"],
        "golden_answers": ["Miquette Giraudy", "Giraudy"],
        "metadata": {
            "answerable": True,
            "question_decomposition": [
                MUSIQUE[0]["question_decomposition"][0] | {"support_paragraph": MUSIQUE[0]["paragraphs"][2]},
                MUSIQUE[0]["question_decomposition"][1] | {"support_paragraph": MUSIQUE[0]["paragraphs"][1]},
            ],
        },
    }
]
WIKI_18 = (
    '{"id": "0", "contents": "\\"Nobel Prize in Physics\\"\\nThe first one went to Wilhelm Röntgen."}\n'
    '{"id": "1", "contents": "\\"Fernie\\"\\nThey filmed hot tub time machine there."}\n'
)


def hub_hotpot() -> Rows:
    """HotpotQA as the hub has it: ``id``, and columns in place of pairs."""
    rows = copy.deepcopy(HOTPOT)
    for row in rows:
        row["id"] = row.pop("_id")
        row["supporting_facts"] = {
            "title": [title for title, _ in row["supporting_facts"]],
            "sent_id": [sentence for _, sentence in row["supporting_facts"]],
        }
        row["context"] = {
            "title": [title for title, _ in row["context"]],
            "sentences": [sentences for _, sentences in row["context"]],
        }
    return rows


PUBLISHED: dict[str, tuple[str, Rows]] = {
    "hotpotqa": ("hotpot_dev_distractor_v1.json", HOTPOT),
    "2wikimultihopqa": ("dev.json", TWO_WIKI),
    "musique": ("musique_ans_v1.0_dev.jsonl", MUSIQUE),
    "nq-open": ("NQ-open.dev.jsonl", NQ_OPEN),
    "dpr": ("biencoder-nq-dev.json", DPR),
    "flashrag-nq": ("dev.jsonl", FLASHRAG_NQ),
    "flashrag-hotpotqa": ("dev.jsonl", FLASHRAG_HOTPOT),
    "flashrag-2wikimultihopqa": ("dev.jsonl", FLASHRAG_TWO_WIKI),
    "flashrag-musique": ("dev.jsonl", FLASHRAG_MUSIQUE),
    "hub-hotpotqa": ("validation.json", hub_hotpot()),
}
"""File name and rows of every published format."""


@pytest.fixture
def published() -> dict[str, tuple[str, Rows]]:
    """File name and rows of every published format; a copy, to be broken at will."""
    return copy.deepcopy(PUBLISHED)


@pytest.fixture
def texts() -> dict[str, str]:
    """Files that are no rows of questions."""
    return {"aliases": ALIASES, "psgs": PSGS, "wiki-18": WIKI_18}


@pytest.fixture
def write() -> Callable[[Path, Sequence[dict[str, Any]]], Path]:
    """Writes rows as the file's ending says, gzipped where it says so."""

    def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        if ".jsonl" in path.name:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        else:
            text = json.dumps(list(rows), ensure_ascii=False)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
        return path

    return write_rows


PASSAGES = (
    Passage("1", "Fox", "The red fox runs. Who is a fox?"),
    Passage("2", "Dog", "A lazy dog sleeps."),
    Passage("3", "Twin", "same words here"),
    Passage("4", "Twin", "same words here"),
    Passage("5", 'The "Été" 文', "Ein Satz\nüber X und Y."),
    Passage("6", "", "no title at all"),
    Passage("7", "Tags", "<answer>fox</answer> <|im_end|> \ud800 \u202e"),
)

Script = Callable[[int, bytes], bytes | None]
"""What a misbehaving server sends for its nth request, given the body; None: it hangs until the test ends."""


class RawServer:
    """Answers each request with bytes of the test's choice, then closes the connection."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self.requests: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._stopped.set()
        self._listener.close()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            data = b""
            while b"\r\n\r\n" not in data:
                data += connection.recv(65536)
            head, _, body = data.partition(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            while len(body) < length:
                body += connection.recv(65536)
            with self._lock:
                number = len(self.requests)
                self.requests.append(body)
            answer = self._script(number, body)
            if answer is None:
                self._stopped.wait(30)
                return
            try:
                connection.sendall(answer)
            except OSError:
                return


@pytest.fixture(scope="session")
def passages() -> tuple[Passage, ...]:
    """A corpus with equal passages, quotes in a title, no title, our tags, a lone surrogate."""
    return PASSAGES


@pytest.fixture
def raw_server() -> Iterator[Callable[[Script], RawServer]]:
    """Makes servers that send what the test says."""
    servers: list[RawServer] = []

    def make(script: Script) -> RawServer:
        servers.append(RawServer(script))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


@contextmanager
def running(load: Callable[[], Any], settings: Any = None) -> Iterator[Any]:
    """A search server of ours in a thread of this process, once it has loaded."""
    from mempo_env.envs.search_server import SearchServer

    ready = threading.Event()
    server = SearchServer(load, settings, on_ready=lambda _: ready.set())
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert ready.wait(20)
        yield server
    finally:
        server.stop()
        thread.join(20)
    assert not thread.is_alive()


@pytest.fixture
def search_server() -> Iterator[Callable[..., Any]]:
    """Starts search servers of ours: ``search_server(load, settings)``; they stop with the test."""
    pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")
    pytest.importorskip("starlette", reason="the extra 'serve' is not installed")
    with ExitStack() as stack:
        yield lambda load, settings=None: stack.enter_context(running(load, settings))


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a sentence-transformers model with random weights, built in place: one layer over letters."""
    pytest.importorskip("faiss", reason="the extra 'dense' is not installed")
    pytest.importorskip("sentence_transformers", reason="the extra 'dense' is not installed")
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789<>|_/.,?!\"':"]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 64, "do_lower_case": false}')
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return str(folder)
