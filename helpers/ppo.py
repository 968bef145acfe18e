"""PPO for language models, as in RLHF of 2022: a value model, an advantage for each token, a clipped objective.

TRL shipped a PPO trainer up to version 1.12; this one keeps its names, in a file to be read in one sitting, to stand
beside TRL's `GRPOTrainer`. Left out: clipping the value model's loss, and all logging. Shapes: B completions, C tokens a completion, P tokens a prompt.

    rollout -> reward, values -> gae -> policy_loss + value_loss -> step
"""

import copy
import time
from dataclasses import dataclass

import torch
from torch import nn

from helpers.evaluate import padded
from helpers.grpo import kl_estimate, per_token_logps


@dataclass(frozen=True)
class PPOConfig:
    """The settings, under the names of TRL 1.12's `PPOConfig`, with its defaults where the tiny model does not ask for others."""

    max_steps: int  # batches of completions
    batch_size: int = 32  # prompts per batch, one completion each
    learning_rate: float = 2e-4  # of the policy; falls linearly to 0, as the next one does
    value_learning_rate: float = 5e-3  # of the value model, which starts from nothing and has no time to lose
    num_ppo_epochs: int = 4  # updates per batch
    cliprange: float = 0.2  # epsilon
    gamma: float = 1.0  # discount per token
    lam: float = 0.95  # lambda of GAE
    vf_coef: float = 0.1  # weight of the value model's loss; 0: it stays at 0 and never learns
    kl_coef: float = 0.0  # beta: the KL divergence per token is subtracted from the reward; 0: no reference model
    temperature: float = 0.8
    response_length: int = 128  # tokens; what is longer is cut
    max_grad_norm: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Rollout:
    """Completions that a policy sampled. `texts` has B strings; the rest are tensors."""

    input_ids: torch.Tensor  # (B, P + C): prompts padded on the left, completions on the right
    attention_mask: torch.Tensor  # (B, P + C)
    completion_ids: torch.Tensor  # (B, C)
    completion_mask: torch.Tensor  # (B, C), 1 up to and with the token that ends the completion
    texts: list


@torch.no_grad()
def rollout(model, tokenizer, prompts, max_new_tokens=128, temperature=0.8):
    """Sample one completion for each prompt (a string), from torch's global generator. Returns a `Rollout`."""
    model.eval()
    ids = tokenizer(list(prompts))["input_ids"]
    prompt_ids = padded(ids, tokenizer.pad_token_id, "left", model.device)  # (B, P)
    prompt_mask = padded([[1] * len(row) for row in ids], 0, "left", model.device)
    sample = dict(do_sample=True, temperature=temperature, top_k=0, top_p=1.0, max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id)
    input_ids = model.generate(input_ids=prompt_ids, attention_mask=prompt_mask, **sample)  # (B, P + C)
    completion_ids = input_ids[:, prompt_ids.shape[1] :]  # (B, C)
    ends = torch.isin(completion_ids, torch.tensor(model.generation_config.eos_token_id, device=model.device))
    completion_mask = (ends.cumsum(1) - ends.long() == 0).long()  # 0 after the first end
    texts = tokenizer.batch_decode([row[mask.bool()] for row, mask in zip(completion_ids, completion_mask, strict=True)], skip_special_tokens=True)
    return Rollout(input_ids, torch.cat([prompt_mask, completion_mask], 1), completion_ids, completion_mask, texts)


class ValueModel(nn.Module):
    """A copy of a causal language model whose head gives one number per token: the reward that it still expects from there."""

    def __init__(self, model):
        super().__init__()
        self.body = copy.deepcopy(model.base_model)
        self.head = nn.Linear(model.config.hidden_size, 1, device=model.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def hidden(self, rollout):
        """The body's state (B, C, H) *before* each completion token is chosen: at the token to its left."""
        states = self.body(input_ids=rollout.input_ids, attention_mask=rollout.attention_mask).last_hidden_state  # (B, P + C, H)
        return states[:, -rollout.completion_ids.shape[1] - 1 : -1]

    def forward(self, rollout):
        """Values (B, C): what is expected before each completion token is chosen."""
        return self.head(self.hidden(rollout))[..., 0]


def masked_mean(values, mask):
    """The mean over the completions' own tokens, a scalar. values, mask: (B, C)."""
    return (values * mask).sum() / mask.sum()


def gae(rewards, values, mask, gamma=1.0, lam=0.95):
    """Generalised advantage estimation (Schulman et al. 2016, equation 16): `(advantages, returns)`, both (B, C).

    rewards, values, mask: (B, C); a completion's reward stands at its last token. From the back to the front:
    delta_t = r_t + gamma V_{t+1} - V_t, and A_t = delta_t + gamma lam A_{t+1}; behind the last token, V and A are 0.
    The returns, A_t + V_t, are what the value model is trained on.
    """
    advantages, following, next_value = torch.zeros_like(values), 0.0, 0.0
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]  # (B,)
        following = (delta + gamma * lam * following) * mask[:, t]
        next_value = values[:, t] * mask[:, t]
        advantages[:, t] = following
    return advantages, (advantages + values) * mask


def whiten(values, mask):
    """Centre and scale over all tokens of the batch; the centre is a baseline of its own. values, mask: (B, C)."""
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask)
    return (values - mean) * torch.rsqrt(variance + 1e-8) * mask


def policy_loss(per_token_logps, old_per_token_logps, advantages, mask, cliprange=0.2):
    """PPO's clipped objective (Schulman et al. 2017, equation 7), with a minus sign: `(loss, clip_fraction)`, scalars.

    All arguments are (B, C). Of the unclipped and the clipped objective the smaller one counts: the larger loss.
    clip_fraction: the share of tokens at which the clipped one is smaller, and so the gradient 0.
    """
    ratio = torch.exp(per_token_logps - old_per_token_logps)
    unclipped, clipped = ratio * advantages, ratio.clamp(1 - cliprange, 1 + cliprange) * advantages
    return -masked_mean(torch.min(unclipped, clipped), mask), masked_mean((clipped < unclipped).float(), mask)


def value_loss(values, returns, mask):
    """Half the mean squared error of the value model, a scalar. All arguments are (B, C)."""
    return 0.5 * masked_mean((values - returns) ** 2, mask)


def explained_variance(values, returns, mask):
    """The share of the returns' variance that the values foresee, a scalar: 1 is all, 0 as much as their mean, below 0 less. All (B, C)."""
    return 1 - masked_mean((returns - values) ** 2, mask) / masked_mean((returns - masked_mean(returns, mask)) ** 2, mask)


def at_last_token(scores, mask):
    """One score per completion -> rewards per token, (B,) -> (B, C): all of it at the completion's last token, 0 before."""
    rewards = torch.zeros(mask.shape, device=mask.device)
    return rewards.scatter(1, mask.sum(1, keepdim=True) - 1, scores[:, None])


def train_ppo(policy, tokenizer, prompts, reward, config):
    """Train `policy` in place on `prompts` (strings) for `config.max_steps` batches; returns one dict of metrics per batch.

    reward: a function with TRL's signature, called as `reward(completions=texts)`. Its scale matters: the value model
    has to reach it, so keep it within a few units of 0.
    """
    torch.manual_seed(config.seed)
    value = ValueModel(policy)
    reference = copy.deepcopy(policy).eval().requires_grad_(False) if config.kl_coef else None
    optimizer = torch.optim.AdamW(
        [
            dict(params=policy.parameters(), lr=config.learning_rate),
            dict(params=value.parameters(), lr=config.value_learning_rate),
        ],
        weight_decay=0.0,
    )
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=config.max_steps)
    order = torch.cat([torch.randperm(len(prompts)) for _ in range(-(-config.max_steps * config.batch_size // len(prompts)))])
    log = []
    for rows in order[: config.max_steps * config.batch_size].view(-1, config.batch_size):
        begin = time.perf_counter()
        batch = rollout(policy, tokenizer, [prompts[i] for i in rows], config.response_length, config.temperature)
        mask = batch.completion_mask  # (B, C)
        inputs = (batch.input_ids, batch.attention_mask, mask.shape[1], config.temperature)
        scores = torch.tensor(reward(completions=batch.texts), device=mask.device)  # (B,)
        with torch.no_grad():
            old_logps, old_values = per_token_logps(policy, *inputs), value(batch) * mask
            rewards = at_last_token(scores, mask)
            if reference is not None:
                rewards -= config.kl_coef * kl_estimate(old_logps, per_token_logps(reference, *inputs), "k1") * mask
            advantages, returns = gae(rewards, old_values, mask, config.gamma, config.lam)
            advantages = whiten(advantages, mask)
        for _ in range(config.num_ppo_epochs):
            loss, clip_fraction = policy_loss(per_token_logps(policy, *inputs), old_logps, advantages, mask, config.cliprange)
            error = value_loss(value(batch), returns, mask)
            (loss + config.vf_coef * error).backward()
            for network in (policy, value):
                nn.utils.clip_grad_norm_(network.parameters(), config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        schedule.step()
        metrics = dict(reward=scores.mean(), policy_loss=loss, value_loss=error, clip_fraction=clip_fraction)
        metrics["explained_variance"] = explained_variance(old_values, returns, mask)
        log.append({name: metric.item() for name, metric in metrics.items()} | {"step_time": time.perf_counter() - begin})
    return log
