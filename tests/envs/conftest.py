"""Rows in the published form of each data set, written by hand, and a way to write them to files."""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

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
