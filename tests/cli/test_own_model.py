"""docs/own_model.md: the lines that take an adapter away give the model that the run trained."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mempo_env.algos.checkpoint import ADAPTERS, latest_checkpoint
from mempo_env.algos.job import load_run_policy

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "own_model.md"


def test_the_merged_model_is_the_trained_policy(
    run_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (lines,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    newest = latest_checkpoint(run_copy)
    assert newest is not None
    # The run is too short to learn anything: an adapter that has learned is put in.
    file = newest / ADAPTERS / "policy" / "adapter_model.safetensors"
    generator = torch.Generator().manual_seed(0)
    save_file({k: torch.randn(w.shape, generator=generator) * 0.1 for k, w in load_file(file).items()}, file)
    monkeypatch.chdir(tmp_path)
    exec(lines.replace("runs/mine", str(run_copy)).replace("step-000040", newest.name), {})
    merged, tokenizer = AutoModelForCausalLM.from_pretrained("mine"), AutoTokenizer.from_pretrained("mine")
    policy, base = load_run_policy(run_copy), AutoModelForCausalLM.from_pretrained(run_copy / "base")
    ids = torch.tensor([tokenizer("Ada plays chess")["input_ids"]])  # (1, T)
    with torch.no_grad():
        expected, found, untrained = (model(input_ids=ids).logits for model in (policy.model, merged, base))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert (untrained - expected).abs().max() > 1e-4
