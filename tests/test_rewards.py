import pytest

from helpers.rewards import checked, reward_coverage, reward_len

FACTS = [{"who": "boss", "feeling": "sad"}]


def chat(text):
    return [{"role": "assistant", "content": text}]


def test_reward_len_is_minus_the_distance_in_characters():
    lengths = [0, 1, 180, 199, 200, 201, 220, 300, 100_000]
    assert reward_len(["x" * n for n in lengths]) == [-200, -199, -20, -1, 0, -1, -20, -100, -99_800]
    assert reward_len(["😀" * 200]) == [0]
    assert reward_len(["x" * 50], target=40) == [-10]


def test_rewards_take_strings_and_messages_alike():
    texts = ["My boss is sad.", "", "boss"]
    for reward in (reward_len, reward_coverage):
        kwargs = dict(facts=FACTS * 3, prompts=["p"] * 3, trainer_state=None)
        assert reward(texts, **kwargs) == reward([chat(text) for text in texts], **kwargs)
    assert reward_coverage(texts, facts=FACTS * 3) == [1, 0, 0.5]
    assert reward_len([]) == [] and reward_coverage([], facts=[]) == []


def test_coverage_needs_facts_for_each_completion():
    with pytest.raises(ValueError, match="zip"):
        reward_coverage(["a", "b"], facts=FACTS)


@pytest.mark.parametrize(("result", "got"), [(None, "None"), ([1.0], "1 values"), ([1.0, 2.0, 3.0], "3 values"), (0.5, "0.5")])
def test_a_wrong_return_is_named(result, got):
    def my_reward(completions, **kwargs):
        return result

    with pytest.raises(ValueError, match=f"'my_reward' returned {got} for 2 completions"):
        checked(my_reward)(completions=["a", "b"])


def test_a_right_return_passes_unchanged():
    def some(completions, **kwargs):
        return [None, 1.0]

    assert checked(some)(completions=["a", "b"], prompts=["p"] * 2) == [None, 1.0]
    assert checked(reward_len).__name__ == "reward_len"  # TRL names its metrics by it


def test_a_wrong_reward_ends_a_training_clearly(tmp_path):
    from trl import GRPOConfig, GRPOTrainer

    from helpers import course
    from helpers.tldr import load_tldr, summarize

    def forgot_to_return(completions, **kwargs):
        [len(completion) for completion in completions]

    profile = course.profile()
    config = GRPOConfig(str(tmp_path), max_steps=1, max_completion_length=4, disable_tqdm=True, report_to=[], **profile.hardware)
    rows = load_tldr("train[:1]").map(summarize)
    trainer = GRPOTrainer(profile.models["sft"], checked(forgot_to_return), config, train_dataset=rows)
    with pytest.raises(ValueError, match="'forgot_to_return' returned None for 8 completions"):
        trainer.train()
