"""GRPO's arithmetic against numbers worked out by hand, and against the exact value where the vocabulary allows it."""

import pytest
import torch

from helpers.grpo import exact_kl, group_advantages, kl_estimate, per_token_logps


def test_log_probabilities_are_of_the_next_token(sft):
    model, tokenizer = sft
    ids = torch.tensor([tokenizer("OP feels rather sad.")["input_ids"]])
    with torch.no_grad():
        logps = per_token_logps(model, ids, torch.ones_like(ids), 3, temperature=0.5)
        for place in (1, 2, 3):  # from the end: what the text before it says about this token
            alone = (model(input_ids=ids[:, :-place]).logits[0, -1] / 0.5).log_softmax(-1)[ids[0, -place]]
            assert logps[0, -place].item() == pytest.approx(alone.item(), abs=1e-4)
    assert logps.shape == (1, 3)


def test_padding_on_the_left_changes_nothing(sft):
    model, tokenizer = sft
    ids = torch.tensor([tokenizer("OP feels rather sad.")["input_ids"]])
    padded = torch.cat([torch.full((1, 5), tokenizer.pad_token_id), ids], 1)
    mask = torch.cat([torch.zeros(1, 5, dtype=torch.long), torch.ones_like(ids)], 1)
    with torch.no_grad():
        torch.testing.assert_close(per_token_logps(model, padded, mask, 3), per_token_logps(model, ids, torch.ones_like(ids), 3), atol=1e-4, rtol=1e-4)


def test_advantages_by_hand():
    rewards = torch.tensor([1.0, 3.0, 5.0, 5.0])
    torch.testing.assert_close(group_advantages(rewards, 2, "none"), torch.tensor([-1.0, 1.0, 0.0, 0.0]))
    deviation = 2**0.5 + 1e-4  # of 1 and 3, with ddof 1
    torch.testing.assert_close(group_advantages(rewards, 2), torch.tensor([-1 / deviation, 1 / deviation, 0.0, 0.0]))
    of_all = (11 / 3) ** 0.5 + 1e-4  # squared distances from 3.5: 6.25, .25, 2.25, 2.25, over 3
    torch.testing.assert_close(group_advantages(rewards, 2, "batch"), torch.tensor([-1.0, 1.0, 0.0, 0.0]) / of_all)


def test_a_group_must_be_whole_and_a_scale_known():
    with pytest.raises(ValueError, match="5 rewards make no groups of 2"):
        group_advantages(torch.ones(5), 2)
    with pytest.raises(ValueError, match="groups of 1"):
        group_advantages(torch.ones(4), 1)
    with pytest.raises(ValueError, match="'std'.*'group', 'batch' or 'none'"):
        group_advantages(torch.ones(4), 2, "std")


def test_the_exact_divergence_of_a_coin():
    coin, bent = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
    assert exact_kl(coin, bent).item() == pytest.approx(0.5108, abs=1e-4)  # .5 log(.5/.9) + .5 log(.5/.1)
    assert exact_kl(bent, coin).item() == pytest.approx(0.3681, abs=1e-4)  # the other way round is another number
    assert exact_kl(coin + 7, coin).item() == pytest.approx(0, abs=1e-6)  # logits need not be normalised
    with pytest.raises(ValueError, match="same tokens"):
        exact_kl(coin, torch.zeros(1, 3))


@pytest.mark.parametrize(("estimator", "biased"), [("k1", False), ("k2", True), ("k3", False)])
def test_estimators_against_the_exact_divergence(estimator, biased):
    """Their mean over all tokens, weighted by the policy's probabilities, is their expectation: no sampling needed."""
    generator = torch.Generator().manual_seed(0)
    logits, ref_logits = torch.randn(2, 5, 50, generator=generator, dtype=torch.float64)
    logps, ref_logps = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    expectation = (logps.exp() * kl_estimate(logps, ref_logps, estimator)).sum(-1)
    off = (expectation / exact_kl(logits, ref_logits) - 1).abs()
    assert (off > 0.02).all() if biased else (off < 1e-5).all()


def test_estimators_by_hand():
    policy, reference = torch.tensor([0.5, 0.2]).log(), torch.tensor([0.25, 0.4]).log()
    half, double = torch.tensor(0.5).log().item(), torch.tensor(2.0).log().item()  # d, for a rarer and a likelier token
    torch.testing.assert_close(kl_estimate(policy, reference, "k1"), torch.tensor([-half, -double]))
    torch.testing.assert_close(kl_estimate(policy, reference, "k2"), torch.tensor([half**2 / 2, double**2 / 2]))
    torch.testing.assert_close(kl_estimate(policy, reference), torch.tensor([0.5 - half - 1, 2 - double - 1]))
    with pytest.raises(ValueError, match="'k4'"):
        kl_estimate(policy, reference, "k4")


def test_a_group_without_spread_and_one_with_a_none():
    rewards = torch.tensor([5.0, 5.0, 5.0, 5.0, 1.0, 2.0, torch.nan, 4.0, torch.nan, 3.0, torch.nan, torch.nan])
    advantages = group_advantages(rewards, 4)
    assert advantages[:4].tolist() == [0, 0, 0, 0]
    torch.testing.assert_close(advantages[4:8], torch.tensor([-0.873, -0.218, 0.0, 1.091]), atol=1e-3, rtol=0)  # mean 7/3, deviation 1.528
    assert advantages[8:].tolist() == [0, 0, 0, 0]  # one value alone has no spread


def test_weights_and_options_are_checked():
    with pytest.raises(ValueError, match="3 reward_weights for 2 reward functions"):
        group_advantages(torch.ones(4, 2), 2, reward_weights=[1, 2, 3])
    with pytest.raises(ValueError, match="'sum'.*'sum_then_normalize' or 'normalize_then_sum'"):
        group_advantages(torch.ones(4, 2), 2, multi_objective_aggregation="sum")


def trl_advantages(folder, rewards, **settings):
    """What TRL's trainer makes of these rewards, (B, K), for groups of 4: one fixed reward function for each column."""
    from trl import GRPOConfig, GRPOTrainer

    from helpers import course
    from helpers.tldr import load_tldr, summarize

    def fixed(column):
        def reward(completions, **kwargs):
            return [None if value.isnan() else value.item() for value in column]

        return reward

    config = GRPOConfig(str(folder), per_device_train_batch_size=len(rewards), num_generations=4, max_completion_length=1, report_to=[], **course.profile().hardware, **settings)
    rows = load_tldr("train[:3]").map(summarize)
    trainer = GRPOTrainer(course.profile().models["sft"], [fixed(column) for column in rewards.T], config, train_dataset=rows)
    trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    return torch.tensor(list(trainer._logs["advantages"]))


@pytest.mark.parametrize("reward_weights", [None, [1.0, 0.0, 0.01]])
@pytest.mark.parametrize(
    "settings",
    [
        dict(scale_rewards="group"),
        dict(scale_rewards="batch"),
        dict(scale_rewards="none"),
        dict(multi_objective_aggregation="normalize_then_sum"),
    ],
    ids=lambda settings: "-".join(settings.values()),
)
def test_advantages_equal_trl(tmp_path, settings, reward_weights):
    """Random rewards of three functions on three groups: one without spread, one with a None, one that nobody can score."""
    rewards = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 100.0, 1e-3])
    rewards[:4] = 0.5
    rewards[4, 1] = torch.nan
    rewards[10] = torch.nan
    theirs = trl_advantages(tmp_path, rewards, reward_weights=reward_weights, **settings)
    ours = group_advantages(rewards, 4, reward_weights=reward_weights, **settings)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert ours[10] == 0 and ours.abs().max() > 0.01
