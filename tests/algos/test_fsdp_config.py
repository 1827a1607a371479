"""The FSDP config that ships: accelerate reads it, knows its fields, and its way to wrap a model changes no gradient.

The last is shown by a scenario of ``processes_worker.py``, in two processes on the CPU, on the tiny model.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from mempo_env.algos.processes import connect
from mempo_env.errors import UserError

CONFIG = Path(__file__).resolve().parents[2] / "configs/fsdp_qwen2.5_7b.yaml"


def test_accelerate_reads_it(tmp_path: Path) -> None:
    config = load_config_from_file(str(CONFIG))
    assert config.distributed_type == DistributedType.FSDP
    assert (config.num_processes, config.mixed_precision) == (4, "bf16")
    (tmp_path / "wrong.yaml").write_text(CONFIG.read_text() + "no_such_field: 1\n")
    with pytest.raises(ValueError, match="no_such_field"):
        load_config_from_file(str(tmp_path / "wrong.yaml"))


def test_its_fields_are_known_and_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = launch_command_parser()
    flags = {option for action in parser._actions for option in action.option_strings}
    given = yaml.safe_load(CONFIG.read_text())["fsdp_config"]
    assert [name for name in given if f"--{name}" not in flags] == []

    args: Any = parser.parse_args(["--config_file", str(CONFIG), "train.py"])
    args, _, _ = _validate_launch_command(args)
    assert args.use_fsdp
    with monkeypatch.context() as patch:
        for name, value in prepare_multi_gpu_env(args).items():
            if name not in os.environ:
                patch.setenv(name, value)
        plugin = FullyShardedDataParallelPlugin()
        with pytest.raises(UserError, match="does not train from shards"), connect():
            pass
    assert plugin.fsdp_version == 2
    assert plugin.transformer_cls_names_to_wrap == [Qwen2DecoderLayer.__name__]
    assert plugin.reshard_after_forward is True
    assert plugin.activation_checkpointing is True
    assert plugin.cpu_ram_efficient_loading is True
