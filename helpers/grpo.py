"""GRPO's arithmetic in plain PyTorch, without TRL, under TRL's names.

Shapes: B completions, in groups of G (`num_generations`) for one prompt; C tokens a completion; V tokens in the vocabulary.
"""


def per_token_logps(model, input_ids, attention_mask, logits_to_keep, temperature=1.0):
    """The log-probability that `model` gives to each of the last `logits_to_keep` tokens, as (B, C), in nats.

    input_ids, attention_mask: (B, P + C), prompt and completion joined. The logits at position t predict token t + 1:
    hence the shift by one. temperature: that of the sampling. Follows `_get_per_token_logps_and_entropies` of TRL's
    `GRPOTrainer`.
    """
    logits = model(input_ids=input_ids, attention_mask=attention_mask, logits_to_keep=logits_to_keep + 1).logits[:, :-1]  # (B, C, V)
    logps = (logits.float() / temperature).log_softmax(-1)
    return logps.gather(-1, input_ids[:, -logits_to_keep:, None])[..., 0]  # (B, C)


def group_advantages(rewards, num_generations, scale_rewards="group"):
    """Rewards, centred within each group and scaled: the advantages of GRPO, as (B,).

    rewards: (B,), the G completions of a prompt one after the other. scale_rewards: "group" divides by the group's standard
    deviation (ddof 1) plus 1e-4, "batch" by that of all rewards, "none" not at all. The formula of DeepSeekMath (Shao et
    al. 2024, section 4.1.2), with TRL's details. Raises ValueError for rewards that make no whole groups, or another scale.

    >>> import torch
    >>> group_advantages(torch.tensor([1.0, 0.0, 0.0]), 3)
    tensor([ 1.1545, -0.5773, -0.5773])
    """
    if num_generations < 2 or len(rewards) % num_generations:
        raise ValueError(f"{len(rewards)} rewards make no groups of {num_generations}; num_generations must be 2 or more and divide their number.")
    grouped = rewards.view(-1, num_generations)  # (B / G, G)
    centred = (grouped - grouped.mean(1, keepdim=True)).view(-1)  # (B,)
    if scale_rewards == "none":
        return centred
    if scale_rewards == "batch":
        return centred / (rewards.std() + 1e-4)
    if scale_rewards == "group":
        return centred / (grouped.std(1).repeat_interleave(num_generations) + 1e-4)
    raise ValueError(f"scale_rewards is {scale_rewards!r}; it must be 'group', 'batch' or 'none'.")


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
