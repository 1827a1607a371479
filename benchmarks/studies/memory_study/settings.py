"""Settings as plain data, for fingerprints that outlive the code they were made by.

Invariant: a field that a settings class gained after ``VERSION`` 1 counts only where it differs from its default, so
that what is stored is not run again because the project learned something new.
"""

from __future__ import annotations

import dataclasses
from typing import Any

FIELDS = {
    "RunConfig": "algo preset env model dataset data goals budget steps seed out context dtype device threads "
    "max_prompt_tokens env_args env_options tiny lora sampling warm_start train eval",
    "EnvSettings": "outcome memory instructions format_penalty topk max_passage_tokens retrieval two_hop_share "
    "comparison_share distractors score_step composition hops kinds",
    "WarmStartConfig": "target perfect_steps demonstrator_steps forget goals curriculum recall_rows tokens_per_step "
    "episodes_per_chunk optim",
    "TrainConfig": "groups_per_step group_size epochs minibatches micro_batch_tokens score_scope save_every "
    "keep_checkpoints save_episodes stop_kl optim",
    "EvalConfig": "goals episodes greedy split batch ceilings",
    "OptimConfig": "name lr weight_decay betas max_grad_norm warmup_steps schedule decay_from",
    "LoraSettings": "rank alpha dropout target_modules",
    "SamplingConfig": "temperature max_new_tokens greedy batch_size",
    "TinyConfig": "layers width heads feed_forward init_range rope_theta max_positions look_back",
    "GRPOConfig": "clip_low clip_high beta normalise_std eps return_baseline ratio aggregation divisor",
    "MemPOConfig": "clip_low clip_high beta normalise_std eps return_baseline ratio aggregation divisor weight "
    "baseline normalisation credit reference_episodes",
    "MemPOPaperConfig": "clip_low clip_high beta normalise_std eps return_baseline ratio aggregation divisor weight "
    "baseline normalisation credit reference_episodes",
    "PPOConfig": "clip_low clip_high beta kl_in gamma lam whiten value_clip value_coef critic_lr_factor",
}
"""The fields that each class had when the first results were stored; of other classes all fields count."""


def plain(settings: Any) -> Any:
    """Settings as dicts and lists, as ``dataclasses.asdict`` gives them, less later fields that are as by default.

    Args:
        settings: A dataclass, or what its fields hold.
    """
    if not dataclasses.is_dataclass(settings) or isinstance(settings, type):
        return settings
    known, found = FIELDS.get(type(settings).__name__), {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if known is None or field.name in known.split() or value != _default(field):
            found[field.name] = plain(value)
    return found


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
