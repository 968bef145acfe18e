"""GRPO's arithmetic in plain PyTorch, without TRL, under TRL's names.

Shapes: B completions, in groups of G (`num_generations`) for one prompt; C tokens a completion; V tokens in the vocabulary.
"""

import torch


def per_token_logps(model, input_ids, attention_mask, logits_to_keep, temperature=1.0):
    """The log-probability that `model` gives to each of the last `logits_to_keep` tokens, as (B, C), in nats.

    input_ids, attention_mask: (B, P + C), prompt and completion joined. The logits at position t predict token t + 1:
    hence the shift by one. temperature: that of the sampling. Follows `_get_per_token_logps_and_entropies` of TRL's
    `GRPOTrainer`.
    """
    logits = model(input_ids=input_ids, attention_mask=attention_mask, logits_to_keep=logits_to_keep + 1).logits[:, :-1]  # (B, C, V)
    logps = (logits.float() / temperature).log_softmax(-1)
    return logps.gather(-1, input_ids[:, -logits_to_keep:, None])[..., 0]  # (B, C)


def group_advantages(rewards, num_generations, scale_rewards="group", reward_weights=None, multi_objective_aggregation="sum_then_normalize"):
    """Rewards, centred within each group and scaled: the advantages of GRPO, as (B,).

    rewards: (B,), the G completions of a prompt one after the other, or (B, K) from K reward functions. NaN stands for None:
    that function has nothing to say about that completion. A completion without any reward counts for no mean and no
    spread, and its advantage is 0. reward_weights: (K,), by default ones.

    "sum_then_normalize": the weighted sum of the rewards, centred; scale_rewards "group" divides by the group's standard
    deviation (ddof 1) plus 1e-4, "batch" by that of all, "none" not at all. "normalize_then_sum": each function's rewards
    are centred and scaled in each group by itself, then summed with the weights, then scaled over the batch.
    DeepSeekMath (Shao et al. 2024, section 4.1.2) and GDPO (Liu et al. 2026) with the details of TRL's
    `_generate_and_score_completions`. Raises ValueError for rewards that make no whole groups, or for another option.

    >>> import torch
    >>> group_advantages(torch.tensor([1.0, 0.0, 0.0]), 3)
    tensor([ 1.1545, -0.5773, -0.5773])
    """
    if num_generations < 2 or len(rewards) % num_generations:
        raise ValueError(f"{len(rewards)} rewards make no groups of {num_generations}; num_generations must be 2 or more and divide their number.")
    if scale_rewards not in ("group", "batch", "none"):
        raise ValueError(f"scale_rewards is {scale_rewards!r}; it must be 'group', 'batch' or 'none'.")
    if multi_objective_aggregation not in ("sum_then_normalize", "normalize_then_sum"):
        raise ValueError(f"multi_objective_aggregation is {multi_objective_aggregation!r}; it must be 'sum_then_normalize' or 'normalize_then_sum'.")
    rewards = rewards[:, None] if rewards.ndim == 1 else rewards  # (B, K)
    weights = torch.ones(rewards.shape[1]) if reward_weights is None else torch.as_tensor(reward_weights, dtype=rewards.dtype)  # (K,)
    if len(weights) != rewards.shape[1]:
        raise ValueError(f"{len(weights)} reward_weights for {rewards.shape[1]} reward functions; give one for each.")
    unscorable = rewards.isnan().all(1)  # (B,)
    grouped = rewards.view(-1, num_generations, rewards.shape[1])  # (B / G, G, K)
    if multi_objective_aggregation == "normalize_then_sum":
        grouped = (grouped - grouped.nanmean(1, keepdim=True)) / (_nanstd(grouped, 1) + 1e-4)
    total = (grouped * weights).nansum(2).view(-1)  # (B,)
    total[unscorable] = torch.nan
    if multi_objective_aggregation == "normalize_then_sum":
        return ((total - total.nanmean()) / (_nanstd(total, 0) + 1e-4)).nan_to_num(0.0)
    total = total.view(-1, num_generations)  # (B / G, G)
    advantages = total - total.nanmean(1, keepdim=True)
    if scale_rewards == "group":
        advantages = advantages / (_nanstd(total, 1) + 1e-4)
    elif scale_rewards == "batch":
        advantages = advantages / (_nanstd(total.view(-1), 0) + 1e-4)
    return advantages.view(-1).nan_to_num(0.0)


def _nanstd(values, dim):
    """The standard deviation (ddof 1) of what is not NaN; `dim` stays, with size 1. NaN for fewer than two values."""
    count = (~values.isnan()).sum(dim, keepdim=True)
    squares = (values - values.nanmean(dim, keepdim=True)).square().nansum(dim, keepdim=True)
    return (squares / torch.where(count > 1, count - 1, torch.nan)).sqrt()


def kl_estimate(per_token_logps, ref_per_token_logps, estimator="k3"):
    """The KL divergence of the policy from the reference, estimated from sampled tokens: same shape as the log-probabilities, in nats.

    estimator: "k1" = -d, "k2" = d² / 2, "k3" = exp(d) - d - 1, with d = ref_per_token_logps - per_token_logps
    (Schulman 2020, "Approximating KL Divergence"; TRL's GRPO takes k3). The tokens must be sampled from the policy.
    Raises ValueError for another estimator.
    """
    d = ref_per_token_logps - per_token_logps
    if estimator == "k1":
        return -d
    if estimator == "k2":
        return d.square() / 2
    if estimator == "k3":
        return d.exp() - d - 1
    raise ValueError(f"there is no estimator {estimator!r}; it must be 'k1', 'k2' or 'k3'.")


def exact_kl(logits, ref_logits):
    """The KL divergence of the policy from the reference at each position, summed over the whole vocabulary: (..., V) -> (...), in nats.

    What `kl_estimate` estimates from one token. Raises ValueError for shapes that differ.
    """
    if logits.shape != ref_logits.shape:
        raise ValueError(f"logits of shape {tuple(logits.shape)} and of {tuple(ref_logits.shape)}; both must come from the same tokens and vocabulary.")
    logps, ref_logps = logits.float().log_softmax(-1), ref_logits.float().log_softmax(-1)
    return (logps.exp() * (logps - ref_logps)).sum(-1)
