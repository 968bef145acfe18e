"""PPO's parts against numbers worked out by hand, and the loop against a task that it must learn."""

import copy

import numpy as np
import pytest
import torch

from helpers.grpo import exact_kl
from helpers.ppo import PPOConfig, ValueModel, at_last_token, explained_variance, gae, masked_mean, policy_loss, rollout, train_ppo, value_loss, whiten
from helpers.tldr import load_tldr, summarize

PROMPTS = [summarize(row)["prompt"] for row in load_tldr("train[:40]") if len(row["prompt"]) < 450]


def test_gae_by_hand():
    rewards, values = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[0.5, 1.0, -1.0]])
    advantages, returns = gae(rewards, values, torch.ones(1, 3), gamma=0.9, lam=0.5)
    last = 2 - -1  # delta = r - V, for nothing follows
    middle = (1 + 0.9 * -1 - 1) + 0.9 * 0.5 * last
    first = (0 + 0.9 * 1 - 0.5) + 0.9 * 0.5 * middle
    torch.testing.assert_close(advantages, torch.tensor([[first, middle, last]]))
    torch.testing.assert_close(returns, advantages + values)


def test_gae_of_a_short_completion_ignores_its_padding():
    rewards, values = torch.tensor([[0.0, 1.0, 0.0, 0.0]]), torch.tensor([[0.5, 1.0, 9.0, 9.0]])
    padded, returns = gae(rewards, values, torch.tensor([[1, 1, 0, 0]]))
    alone, _ = gae(rewards[:, :2], values[:, :2], torch.ones(1, 2))
    torch.testing.assert_close(padded[:, :2], alone)
    assert (padded[:, 2:] == 0).all() and (returns[:, 2:] == 0).all()


def test_lambda_one_is_the_reward_to_go_minus_the_value():
    rewards, values = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
    advantages, returns = gae(rewards, values, torch.ones(3, 7), lam=1.0)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(advantages, to_go - values)
    torch.testing.assert_close(returns, to_go)


@pytest.mark.parametrize(
    ("ratio", "advantage", "objective", "gradient"),
    [
        (0.5, 2.0, 1.0, 1.0),  # a good token became rarer: full gradient
        (1.1, 2.0, 2.2, 2.2),  # within the limits
        (1.5, 2.0, 2.4, 0.0),  # clipped above, at 1.2
        (0.5, -2.0, -1.6, 0.0),  # clipped below, at .8
        (0.9, -2.0, -1.8, -1.8),
        (1.5, -2.0, -3.0, -3.0),  # a bad token became likelier: full gradient
    ],
)
def test_policy_loss_is_the_formula_on_both_sides(ratio, advantage, objective, gradient):
    logps = torch.tensor([[ratio]]).log().requires_grad_()
    loss, clipped = policy_loss(logps, torch.zeros(1, 1), torch.tensor([[advantage]]), torch.ones(1, 1), cliprange=0.2)
    loss.backward()
    assert loss.item() == pytest.approx(-objective, abs=1e-6)
    assert logps.grad.item() == pytest.approx(-gradient, abs=1e-6)
    assert clipped.item() == (gradient == 0)


def test_losses_are_means_over_the_completions_own_tokens():
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    old, advantages = torch.zeros(2, 3), torch.tensor([[1.0, -1.0, 1.0], [2.0, 99.0, 99.0]])
    ratios = torch.tensor([[1.5, 0.5, 1.0], [1.0, 7.0, 7.0]])
    loss, clipped = policy_loss(ratios.log(), old, advantages, mask)
    assert loss.item() == pytest.approx(-(1.2 - 0.8 + 1 + 2) / 4)
    assert clipped.item() == pytest.approx(2 / 4)
    values, returns = torch.tensor([[1.0, 2.0, 3.0], [4.0, 99.0, 99.0]]), torch.zeros(2, 3)
    assert value_loss(values, returns, mask).item() == pytest.approx((1 + 4 + 9 + 16) / 4 / 2)
    assert masked_mean(values, mask).item() == 2.5


def test_whitening_is_over_all_own_tokens():
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    white = whiten(torch.tensor([[1.0, 2.0, 3.0], [6.0, 99.0, 99.0]]), mask)
    own = white[mask.bool()]
    assert own.mean().item() == pytest.approx(0, abs=1e-6) and own.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert (white[~mask.bool()] == 0).all()


def test_a_score_stands_at_the_last_token():
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]])
    assert at_last_token(torch.tensor([1.0, 2.0, 3.0]), mask).tolist() == [[0, 0, 1], [0, 2, 0], [3, 0, 0]]


def test_a_rollout_masks_what_follows_the_end(sft):
    model, tokenizer = sft
    torch.manual_seed(0)
    batch = rollout(model, tokenizer, PROMPTS[:6], max_new_tokens=110, temperature=1.0)
    lengths = batch.completion_mask.sum(1)
    assert lengths.min() < lengths.max()
    ends = set(model.generation_config.eos_token_id)
    for ids, length, text in zip(batch.completion_ids.tolist(), lengths.tolist(), batch.texts, strict=True):
        assert not ends & set(ids[: length - 1])
        assert ids[length - 1] in ends or length == 110
        assert text == tokenizer.decode(ids[:length], skip_special_tokens=True)
    assert batch.input_ids.shape == batch.attention_mask.shape and batch.input_ids[:, -batch.completion_ids.shape[1] :].equal(batch.completion_ids)


def test_a_value_is_a_guess_before_its_token(sft):
    model, tokenizer = sft
    torch.manual_seed(0)
    batch = rollout(model, tokenizer, PROMPTS[:2], max_new_tokens=20)
    value = ValueModel(model)
    torch.nn.init.normal_(value.head.weight)
    before = value(batch)
    changed = copy.deepcopy(batch)
    changed.input_ids[:, -10] = 77  # the token at place 10 of 20 …
    difference = (value(changed) - before).abs()
    assert (difference[:, :11] < 1e-4).all() and (difference[:, 11] > 1e-4).all()  # … is known only from the next place on
    assert before.shape == batch.completion_mask.shape


SHORT = ["OP feels", "The author feels", "I feel", "Now the author feels"] * 8


def names_one_of_two(completions, **kwargs):
    """A reward that a model can learn from a few completions of four tokens."""
    return [float("totally" in text or "completely" in text) for text in completions]


def test_it_learns_and_does_the_same_twice(sft):
    model, tokenizer = sft
    config = PPOConfig(8, learning_rate=1e-3, num_ppo_epochs=2, response_length=4, temperature=1.0)
    log = train_ppo(copy.deepcopy(model), tokenizer, SHORT, names_one_of_two, config)
    rewards = [entry["reward"] for entry in log]
    assert rewards[0] < 0.4 and np.mean(rewards[-3:]) > 0.8
    assert any(entry["clip_fraction"] > 0 for entry in log)  # two updates a batch: the second is off-policy
    again = train_ppo(copy.deepcopy(model), tokenizer, SHORT, names_one_of_two, config)
    assert rewards == [entry["reward"] for entry in again]


def test_explained_variance_of_perfect_constant_and_wrong_values():
    returns, mask = torch.tensor([[1.0, 3.0, 99.0]]), torch.tensor([[1, 1, 0]])
    for values, share in (([1.0, 3.0, 0.0], 1), ([2.0, 2.0, 0.0], 0), ([3.0, 1.0, 0.0], -3)):
        assert explained_variance(torch.tensor([values]), returns, mask).item() == pytest.approx(share)


def test_the_value_model_learns_at_its_own_rate_and_can_be_held_at_zero(sft):
    model, tokenizer = sft

    def errors(**settings):
        config = PPOConfig(4, learning_rate=0.0, num_ppo_epochs=1, response_length=4, temperature=1.0, lam=1.0, **settings)
        return [entry["value_loss"] for entry in train_ppo(copy.deepcopy(model), tokenizer, SHORT, lambda completions: [1.0] * len(completions), config)]

    assert errors(vf_coef=0.0) == pytest.approx([0.5] * 4)  # every return is 1, every value 0
    assert errors()[-1] < 0.4


def test_the_kl_penalty_holds_the_policy_back(sft):
    model, tokenizer = sft

    def moved(kl_coef):
        policy = copy.deepcopy(model)
        train_ppo(policy, tokenizer, SHORT, names_one_of_two, PPOConfig(12, learning_rate=1e-3, num_ppo_epochs=1, response_length=4, temperature=1.0, kl_coef=kl_coef))
        torch.manual_seed(1)
        batch = rollout(policy, tokenizer, SHORT, 4, 1.0)
        with torch.no_grad():
            ours, theirs = (m(batch.input_ids, attention_mask=batch.attention_mask).logits[:, -5:-1] for m in (policy, model))
        return masked_mean(exact_kl(ours, theirs), batch.completion_mask).item()

    assert moved(kl_coef=3.0) < 0.5 * moved(kl_coef=0.0)
