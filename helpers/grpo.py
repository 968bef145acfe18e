"""GRPO's arithmetic in plain PyTorch, without TRL, under TRL's names.

Shapes: B completions, in groups of G (`num_generations`) for one prompt; C tokens a completion; V tokens in the vocabulary.
"""

import math

import torch

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo")
CLIPPED = LOSS_TYPES[:5]  # they share the clipped objective and differ in how they average it


def make_completion_mask(completion_ids, eos_token_ids, mask_truncated_completions=False):
    """1 for each token of a completion up to and with its first end-of-sequence token, 0 for the padding behind: (B, C) -> (B, C), integers.

    So the end itself is trained. mask_truncated_completions: a completion without an end counts for nothing at all
    (DAPO, Yu et al. 2025, section 3.4). Follows `_generate_and_score_completions` of TRL's `GRPOTrainer`.

    >>> import torch
    >>> make_completion_mask(torch.tensor([[5, 6, 0, 0], [5, 6, 7, 8]]), [0])
    tensor([[1, 1, 1, 0],
            [1, 1, 1, 1]])
    """
    is_end = torch.isin(completion_ids, torch.as_tensor(eos_token_ids, device=completion_ids.device))  # (B, C)
    mask = (is_end.cumsum(1) - is_end.long() == 0).long()  # no end before this token
    return mask * is_end.any(1, keepdim=True) if mask_truncated_completions else mask


def per_token_logps_and_entropies(model, input_ids, attention_mask, logits_to_keep, temperature=1.0):
    """What `model` says of each of the last `logits_to_keep` tokens, as two (B, C), in nats: its log-probability, and the entropy of its place.

    input_ids, attention_mask: (B, P + C), prompt and completion joined. The logits at position t predict token t + 1:
    hence the shift by one. temperature: that of the sampling. Follows `_get_per_token_logps_and_entropies` of TRL's
    `GRPOTrainer`.
    """
    logits = model(input_ids=input_ids, attention_mask=attention_mask, logits_to_keep=logits_to_keep + 1).logits[:, :-1]  # (B, C, V)
    logps = (logits.float() / temperature).log_softmax(-1)
    return logps.gather(-1, input_ids[:, -logits_to_keep:, None])[..., 0], -(logps.exp() * logps).sum(-1)


def per_token_logps(model, input_ids, attention_mask, logits_to_keep, temperature=1.0):
    """The first half of `per_token_logps_and_entropies`: the log-probability of each token, (B, C), in nats."""
    return per_token_logps_and_entropies(model, input_ids, attention_mask, logits_to_keep, temperature)[0]


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
    weights = rewards.new_ones(rewards.shape[1]) if reward_weights is None else torch.as_tensor(reward_weights).to(rewards)  # (K,)
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

    estimator: "k1" = -d, "k2" = d² / 2, "k3" = exp(d) - d - 1, with d the reference's log-probability minus the policy's
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


def importance_ratio(log_ratio, completion_mask, importance_sampling_level="token"):
    """How much likelier a token is than when it was sampled, exp(`log_ratio`): (B, C) -> (B, C), or for "sequence" (B, 1).

    log_ratio: per_token_logps - old_per_token_logps. "sequence" takes the mean of the log-ratios over a completion, so
    one ratio for all of its tokens (GSPO, Zheng et al. 2025, equation 7). Raises ValueError for another level.
    """
    if importance_sampling_level == "token":
        return log_ratio.exp()
    if importance_sampling_level == "sequence":
        return ((log_ratio * completion_mask).sum(1, keepdim=True) / completion_mask.sum(1, keepdim=True).clamp(min=1)).exp()
    raise ValueError(f"importance_sampling_level is {importance_sampling_level!r}; it must be 'token' or 'sequence'.")


def aggregate(per_token_loss, completion_mask, loss_type="dapo", *, max_completion_length=512, num_items_in_batch=None, gradient_accumulation_steps=1, steps_per_generation=None):
    """The losses of all tokens, (B, C), as one number: what `loss_type` divides by.

    "grpo", "sapo": the mean over each completion, then over completions. "luspo": the sum over each, then the mean.
    "bnpo": the mean over the tokens of these B completions. "dr_grpo": the sum over B * max_completion_length.
    "dapo", "cispo", "vespo": the mean over the tokens of one optimizer step, num_items_in_batch *
    gradient_accumulation_steps / steps_per_generation.

    num_items_in_batch: tokens of everything generated at once; by default those of these completions.
    gradient_accumulation_steps: the losses of so many calls are added up before an update. steps_per_generation: what was
    generated at once is cut into so many calls; by default as many as are added up. One process.
    Raises ValueError for an unknown loss_type, and where num_items_in_batch is needed.
    """
    total = per_token_loss * completion_mask  # (B, C)
    lengths = completion_mask.sum(1).clamp(min=1)  # (B,)
    if loss_type in ("grpo", "sapo"):
        loss = (total.sum(1) / lengths).mean()
    elif loss_type == "luspo":
        loss = total.sum(1).mean()
    elif loss_type == "bnpo":
        loss = total.sum() / completion_mask.sum().clamp(min=1)
    elif loss_type == "dr_grpo":
        loss = total.sum() / (len(total) * max_completion_length)
    elif loss_type in ("dapo", "cispo", "vespo"):
        steps_per_generation = steps_per_generation or gradient_accumulation_steps
        if num_items_in_batch is None:
            if steps_per_generation > 1 or gradient_accumulation_steps > 1:
                raise ValueError(f"{loss_type!r} divides by the tokens of the whole generation; several calls share them, so give their number as num_items_in_batch.")
            num_items_in_batch = completion_mask.sum()
        return total.sum() / (max(1, int(num_items_in_batch)) * gradient_accumulation_steps / steps_per_generation)
    else:
        raise ValueError(f"loss_type is {loss_type!r}; it must be one of {', '.join(map(repr, LOSS_TYPES))}.")
    return loss / gradient_accumulation_steps


def grpo_loss(
    per_token_logps,
    old_per_token_logps,
    ref_per_token_logps,
    advantages,
    completion_mask,
    *,
    loss_type="dapo",
    beta=0.0,
    epsilon=0.2,
    epsilon_high=None,
    delta=None,
    importance_sampling_level="token",
    use_bias_correction_kl=True,
    max_completion_length=512,
    num_items_in_batch=None,
    gradient_accumulation_steps=1,
    steps_per_generation=None,
    entropies=None,
    top_entropy_quantile=1.0,
    entropy_coef=0.0,
    off_policy_mask_threshold=None,
    importance_sampling_ratio=None,
    sapo_temperature_pos=1.0,
    sapo_temperature_neg=1.05,
    vespo_k_pos=2.0,
    vespo_lambda_pos=3.0,
    vespo_k_neg=3.0,
    vespo_lambda_neg=2.0,
):
    """The loss of TRL's `GRPOTrainer._compute_loss`, and what it logs: `(loss, metrics)`, a scalar and TRL's name -> float.

    per_token_logps, old_per_token_logps, ref_per_token_logps: (B, C), of the policy being trained, of the one that sampled
    the completions, of the reference; only the first has a gradient. old None: the policy has not moved since.
    ref None: allowed where beta is 0. advantages: (B,), or (B, C). completion_mask: (B, C), 1 where a token counts.
    entropies: (B, C), for the two options that need them, and to be logged.

    Options have the names and defaults of `GRPOConfig`; `aggregate` explains those of averaging, `group_advantages`
    holds scale_rewards, `make_completion_mask` mask_truncated_completions. epsilon, epsilon_high: the ratio is clipped to
    [1 - epsilon, 1 + epsilon_high] (for "cispo", to at most epsilon_high). delta, above 1 + epsilon_high: what the clip
    leaves alone is at most this. top_entropy_quantile: only this share of the tokens, the most undecided, has a policy
    loss. off_policy_mask_threshold: bad completions that have become unlikelier than this, in nats per token, have none.
    importance_sampling_ratio: (B, C) or (B, 1), of the old policy to an engine of its own that sampled (vLLM).

    Follows DeepSeekMath (Shao et al. 2024, equation 3) and the papers that notebook 05 names for each loss_type and option.
    In evaluation TRL takes 1 for gradient_accumulation_steps and steps_per_generation. Not here: several processes, tools
    (put their tokens out of completion_mask), the router's loss of mixtures of experts, and the controller that changes
    entropy_coef between updates.
    Raises ValueError for shapes that do not fit, for an unknown option, and where something needed is None.
    """
    _check(per_token_logps, old_per_token_logps, ref_per_token_logps, advantages, completion_mask, loss_type, beta, entropies, top_entropy_quantile, entropy_coef)
    mask = completion_mask
    advantages = advantages[:, None] if advantages.ndim == 1 else advantages  # (B, 1)
    epsilon_high = epsilon if epsilon_high is None else epsilon_high
    if old_per_token_logps is None:
        old_per_token_logps = per_token_logps.detach()

    # Step 4 of notebook 05, the ratio. (Steps 1 and 2 came before.)
    log_ratio = per_token_logps - old_per_token_logps  # (B, C)
    ratio = importance_ratio(log_ratio, mask, importance_sampling_level)  # (B, C) or (B, 1)

    # Step 5: the clipped objective, or what a loss_type has in its place.
    if loss_type in CLIPPED:
        per_token_loss, metrics = _clipped(ratio, advantages, mask, epsilon, epsilon_high, delta)
    elif loss_type == "cispo":
        per_token_loss, metrics = _cispo(ratio, advantages, mask, per_token_logps, epsilon_high)
    elif loss_type == "sapo":
        per_token_loss, metrics = _sapo(ratio, advantages, sapo_temperature_pos, sapo_temperature_neg)
    else:
        shape = (vespo_k_pos, vespo_lambda_pos, vespo_k_neg, vespo_lambda_neg)
        per_token_loss, metrics = _vespo(log_ratio, advantages, mask, per_token_logps, shape, importance_sampling_ratio)

    # Options that silence or weigh tokens.
    acting = mask  # the tokens that have a policy loss
    if off_policy_mask_threshold is not None:
        drift = -(log_ratio.detach() * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)  # (B, 1)
        per_token_loss = per_token_loss * ((advantages >= 0) | (drift <= off_policy_mask_threshold))
    if top_entropy_quantile < 1.0 and mask.any():
        acting = mask * (entropies >= entropies[mask.bool()].float().quantile(1 - top_entropy_quantile))
        per_token_loss = per_token_loss * acting
    if importance_sampling_ratio is not None and loss_type != "vespo":
        per_token_loss = per_token_loss * importance_sampling_ratio

    # Step 3: the KL divergence.
    if beta != 0.0:
        per_token_kl = kl_estimate(per_token_logps, ref_per_token_logps)
        if use_bias_correction_kl:
            per_token_kl = per_token_kl * ratio
        per_token_loss = per_token_loss + beta * per_token_kl
        metrics["kl"] = _mean(per_token_kl, mask)

    # Step 6: one number.
    averaging = dict(num_items_in_batch=num_items_in_batch, gradient_accumulation_steps=gradient_accumulation_steps, steps_per_generation=steps_per_generation)
    loss = aggregate(per_token_loss, mask, loss_type, max_completion_length=max_completion_length, **averaging)
    if entropies is not None:
        metrics["entropy"] = _mean(entropies, mask)
        if entropy_coef:
            loss = loss - entropy_coef * (entropies * acting).sum() / acting.sum().clamp(min=1) / gradient_accumulation_steps
    return loss, metrics


def _clipped(ratio, advantages, mask, epsilon, epsilon_high, delta):
    """PPO's clipped objective and step 7, its metrics: `(per_token_loss, metrics)`."""
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon_high)
    if delta is not None:
        ratio = ratio.clamp(max=delta)
    per_token_loss = -torch.min(ratio * advantages, clipped * advantages)
    low = (ratio < 1 - epsilon) & (advantages < 0)
    high = (ratio > 1 + epsilon_high) & (advantages > 0)
    return per_token_loss, {
        "clip_ratio/low_mean": _mean(low.float(), mask),
        "clip_ratio/high_mean": _mean(high.float(), mask),
        "clip_ratio/region_mean": _mean((low | high).float(), mask),
        "clip_ratio/low_min": _by_completion(low, mask).min().item(),
        "clip_ratio/high_max": _by_completion(high, mask).max().item(),
    }


def _cispo(ratio, advantages, mask, per_token_logps, epsilon_high):
    """The log-probability, weighted with the capped ratio as a constant (MiniMax-M1, arXiv 2506.13585)."""
    per_token_loss = -ratio.clamp(max=epsilon_high).detach() * advantages * per_token_logps
    return per_token_loss, {"cispo_clip_ratio": _mean(((ratio > epsilon_high) & (advantages > 0)).float(), mask)}


def _sapo(ratio, advantages, temperature_pos, temperature_neg):
    """A sigmoid in place of the clip, with slope 1 at ratio 1 (SAPO, arXiv 2511.20347)."""
    temperature = torch.where(advantages > 0, temperature_pos, temperature_neg)
    return -torch.sigmoid(temperature * (ratio - 1)) * 4 / temperature * advantages, {}


def _vespo(log_ratio, advantages, mask, per_token_logps, shape, importance_sampling_ratio):
    """The log-probability, weighted with w^k * exp(lambda * (1 - w)) as a constant (VESPO, arXiv 2602.10693).

    w is the ratio of the whole completion, a product over its tokens; the weight is 1 for w = 1. Bounds as in TRL.
    """
    k_pos, lambda_pos, k_neg, lambda_neg = shape
    k = torch.where(advantages >= 0, k_pos, k_neg)
    lam = torch.where(advantages >= 0, lambda_pos, lambda_neg).clamp(min=1e-4)
    lowest = math.log(1e-8)
    log_w = (log_ratio.detach().clamp(-20, 20) * mask).sum(1, keepdim=True)  # (B, 1)
    if importance_sampling_ratio is not None:
        log_w = log_w + importance_sampling_ratio.log().clamp(lowest, 20).sum(1, keepdim=True)
    log_w = log_w.clamp(lowest, 20)
    phi = (lam + k * log_w - lam * log_w.exp()).exp().nan_to_num(0.0, 0.0, 0.0)  # (B, 1)
    return -phi * advantages * per_token_logps, {"vespo/phi_seq_mean": _mean(phi, mask)}


def _check(per_token_logps, old_per_token_logps, ref_per_token_logps, advantages, completion_mask, loss_type, beta, entropies, top_entropy_quantile, entropy_coef):
    if per_token_logps.ndim != 2:
        raise ValueError(f"per_token_logps has shape {tuple(per_token_logps.shape)}; it must be (B, C): completions, tokens.")
    shape = tuple(per_token_logps.shape)
    others = dict(old_per_token_logps=old_per_token_logps, ref_per_token_logps=ref_per_token_logps, completion_mask=completion_mask, entropies=entropies)
    for name, tensor in others.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, per_token_logps {shape}; they must be the same: one number for each token of each completion.")
    if tuple(advantages.shape) not in (shape[:1], (shape[0], 1), shape):
        raise ValueError(f"advantages has shape {tuple(advantages.shape)}; for per_token_logps of {shape} it must be {shape[:1]}, one for each completion, or {shape}.")
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"loss_type is {loss_type!r}; it must be one of {', '.join(map(repr, LOSS_TYPES))}.")
    if beta != 0.0 and ref_per_token_logps is None:
        raise ValueError(f"beta is {beta}, but ref_per_token_logps is None; give the reference model's log-probabilities, or set beta=0.0.")
    if entropies is None and (top_entropy_quantile < 1.0 or entropy_coef):
        raise ValueError("top_entropy_quantile and entropy_coef need entropies: give those of `per_token_logps_and_entropies`, (B, C).")


def _mean(values, mask):
    """Over the tokens that count; over completions where there is one value for each, (B, 1)."""
    total = values.sum() / len(values) if values.shape[1] == 1 else (values * mask).sum() / mask.sum().clamp(min=1)
    return total.item()


def _by_completion(hit, mask):
    """The share of tokens for which `hit` is true, for each completion that has any: up to (B,). NaN alone if none has."""
    share = hit[:, 0].float() if hit.shape[1] == 1 else (hit * mask).sum(1) / mask.sum(1)
    return share[~share.isnan()] if (~share.isnan()).any() else share
