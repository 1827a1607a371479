"""Who plays: context strategies, the LoRA policy and its sampler, scripted agents, the rollout loop, the evaluation.

Invariant: an agent answers requests and holds no state between them; everything a learner needs is in its outputs.
"""
