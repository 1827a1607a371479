"""Advantage estimators: pure functions of tensors, each with its equation.

Notation (after MemPO, arXiv 2603.00680): a group of N episodes of one task; R^T_i the return of episode i; Q_m the
quality of memory m, of which each (rollout, turn) pair counts once.

Invariant: an episode that is not ``valid`` (an infrastructure fault) has advantage 0 and enters no statistic; where
there is nothing to compare (one episode, one memory, equal values) the advantage is exactly 0, never the raw value.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .algorithm_config import EPS, Normalisation


def group_advantages(returns: Tensor, valid: Tensor, *, normalise_std: bool = True, eps: float = EPS) -> Tensor:
    """Trajectory advantage A^T_i = (R^T_i - mean_j R^T_j) / (std_j R^T_j + eps) (GRPO, arXiv 2402.03300, eq. 4.1.2).

    Args:
        returns: (N,) episode returns.
        valid: (N,) False for episodes that ended on a fault.
        normalise_std: Divide by the unbiased standard deviation; off is Dr. GRPO (arXiv 2503.20783).
        eps: Added to the standard deviation.

    Returns:
        (N,) advantages; all 0 for a group of one or of equal returns.

    >>> group_advantages(torch.tensor([1.0, 0.0, 5.0]), torch.tensor([True, True, False]), normalise_std=False)
    tensor([ 0.5000, -0.5000,  0.0000])
    """
    return _standardise(returns, valid, normalise_std, eps)


def leave_one_out_advantages(returns: Tensor, valid: Tensor) -> Tensor:
    """Trajectory advantage A^T_i = R^T_i - 1/(N-1) sum_{j != i} R^T_j (RLOO, arXiv 2402.14740).

    It equals N/(N-1) (R^T_i - mean_j R^T_j).

    Args:
        returns: (N,) episode returns.
        valid: (N,) False for episodes that ended on a fault.

    Returns:
        (N,) advantages; all 0 for a group of one or of equal returns.

    >>> leave_one_out_advantages(torch.tensor([1.0, 0.0, 5.0, 0.0]), torch.tensor([True, True, False, True]))
    tensor([ 1.0000, -0.5000,  0.0000, -0.5000])
    """
    count = int(valid.sum())
    return _standardise(returns, valid, False, EPS) * (count / max(count - 1, 1))


def leave_one_out_mean(values: Tensor, owner: Tensor, kind: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean over the values of all other owners, MemPO's ``reference``, ``leave_one_out`` and ``same_turn``.

    Args:
        values: (M,) memory qualities.
        owner: (M,) who is left out together: the episode that wrote each, or each for itself.
        kind: (M,) values of equal kind alone are compared, such as those of one turn; None: all are.

    Returns:
        (M,) mean over the values of equal kind whose owner differs, and (M,) whether there was any.
    """
    others = owner[:, None] != owner[None, :]  # (M, M)
    if kind is not None:
        others = others & (kind[:, None] == kind[None, :])  # (M, M)
    count = others.sum(dim=1)  # (M,)
    if bool((values == values[:1]).all()):
        return values, count > 0  # rounding in a mean of equal numbers is no advantage
    total = (others * values[None, :]).sum(dim=1)  # (M,)
    return total / count.clamp(min=1), count > 0


def centred_memory_advantages(reward: Tensor, baseline: Tensor, has_baseline: Tensor) -> Tensor:
    """Memory advantage A^M = Q(m) - b, not normalised (``mempo``).

    Args:
        reward: (M,) memory qualities Q(m).
        baseline: (M,) baseline b of each.
        has_baseline: (M,) False where there was nothing to compare with.

    Returns:
        (M,) advantages, 0 where there is no baseline.
    """
    return torch.where(has_baseline, reward - baseline, torch.zeros_like(reward))


def standardised_memory_advantages(
    reward: Tensor, turn: Tensor, normalisation: Normalisation, eps: float = EPS
) -> Tensor:
    """Memory advantage A^M = (R^M - mean R^M) / std R^M (``mempo-paper``; arXiv 2603.00680).

    Args:
        reward: (M,) memory rewards R^M of a group, one per (rollout, turn).
        turn: (M,) turn index of each.
        normalisation: ``pooled``: mean and std over all memories of the group; ``per_turn``: over those of equal turn.
        eps: Added to the standard deviation.

    Returns:
        (M,) advantages; 0 for a set of one.
    """
    if normalisation == "pooled":
        return _standardise(reward, torch.ones_like(reward, dtype=torch.bool), True, eps)
    result = torch.zeros_like(reward)
    for index in sorted(set(turn.tolist())):
        same = turn == index
        result = torch.where(same, _standardise(reward, same, True, eps), result)
    return result


def guard_failed_group(centred: Tensor) -> Tensor:
    """Memory advantage where no episode of a group had an outcome above 0: Q - b, not normalised, where Q is above b.

    A^T is 0 there unless format penalties or step rewards differ, so that A^M would act all but alone; a z-scored one
    then drove success to 0 in trials (also Dark Room, arXiv 2607.21273).

    Args:
        centred: (M,) Q - b.

    Returns:
        (M,) max(Q - b, 0).
    """
    return centred.clamp(min=0)


def _standardise(values: Tensor, member: Tensor, divide: bool, eps: float) -> Tensor:
    """Centres (and scales) ``values`` over ``member``; 0 elsewhere and where fewer than two members differ."""
    chosen = values[member]
    result = torch.zeros_like(values)
    # A std of equal numbers can come out as 1e-9 instead of 0, and dividing noise by noise is no advantage.
    if chosen.numel() < 2 or bool((chosen == chosen[0]).all()):
        return result
    centred = chosen - chosen.mean()
    result[member] = centred / (chosen.std(unbiased=True) + eps) if divide else centred
    return result
