"""Every reward: what it pays, and what holds for any text; and the checks, each against a reward that is wrong in that way."""

import functools
import math
import random
import re

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from helpers import rewards as library
from helpers.rewards import (
    check_reward,
    checked,
    reward_coverage,
    reward_fluency,
    reward_format,
    reward_len,
    reward_rouge,
    reward_toxicity,
    text_of,
    well_formed,
)
from helpers.tldr import load_tldr

FACTS = {"who": "boss", "feeling": "sad"}
ROW = {"prompt": "Summarize: …", "facts": FACTS, "reference": "My boss is gone and I feel sad."}
BOUNDS = {
    reward_len: (-math.inf, 0),
    reward_format: (0, 1),
    reward_toxicity: (-1, 0),
    reward_coverage: (0, 1),
    reward_rouge: (0, 1),
    reward_fluency: (0, 1),
}
PIECES = st.one_of(st.text(), st.sampled_from([*library.TAGS, "boss", "sad", "My boss is sad.", "😀", "👩‍👩‍👧", "\n", " ", "<", "idiot", "a" * 300, "\x00"]))
TEXTS = st.lists(PIECES, max_size=8).map("".join)
PROPERTY = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True, database=None)


def chat(text):
    return [{"role": "assistant", "content": text}]


def call(reward, completions):
    columns = {key: [value] * len(completions) for key, value in ROW.items() if key != "prompt"}
    return reward(completions=completions, prompts=["p"] * len(completions), completion_ids=[[0]] * len(completions), trainer_state=None, **columns)


def test_every_reward_is_tested():
    assert {name for name in dir(library) if name.startswith("reward_")} == {reward.__name__ for reward in BOUNDS}


@pytest.mark.parametrize("reward", BOUNDS, ids=lambda reward: reward.__name__)
class TestAnyText:
    """What TRL and GRPO take for granted, whatever a model writes."""

    @PROPERTY
    @given(st.lists(TEXTS, max_size=5))
    @example([])
    @example([""])
    @example(["", "😀", "<think>" * 50, "x" * 100_000])
    def test_one_finite_number_for_each(self, reward, texts):
        values = call(reward, texts)
        low, high = BOUNDS[reward]
        assert isinstance(values, list) and len(values) == len(texts)
        assert all(isinstance(value, float) and math.isfinite(value) and low <= value <= high for value in values)

    @PROPERTY
    @given(st.lists(TEXTS, min_size=1, max_size=4))
    def test_messages_are_paid_like_strings(self, reward, texts):
        assert call(reward, [chat(text) for text in texts]) == pytest.approx(call(reward, texts), abs=1e-5)

    @PROPERTY
    @given(st.lists(TEXTS, min_size=2, max_size=5), st.randoms(use_true_random=False))
    def test_the_order_and_the_others_do_not_matter(self, reward, texts, chance):
        alone = [call(reward, [text])[0] for text in texts]
        order = chance.sample(range(len(texts)), len(texts))
        assert call(reward, [texts[i] for i in order]) == pytest.approx([alone[i] for i in order], abs=1e-5)


def test_the_text_of_messages_with_parts_and_without():
    parts = [{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]}]
    assert text_of(parts) == "ab" and text_of([{"role": "assistant", "content": None}]) == text_of([]) == ""


@PROPERTY
@given(st.integers(0, 300), st.integers(0, 300))
def test_reward_len_is_symmetric_around_its_target(target, distance):
    above, below = "x" * (target + distance), "x" * max(0, target - distance)
    assert reward_len([above], target=target) == [-distance]
    assert reward_len([below], target=target) == [-min(distance, target)]


def test_reward_len_is_minus_the_distance_in_characters():
    lengths = [0, 1, 180, 199, 200, 201, 220, 300, 100_000]
    assert reward_len(["x" * n for n in lengths]) == [-200, -199, -20, -1, 0, -1, -20, -100, -99_800]
    assert reward_len(["😀" * 200]) == [0]
    assert reward_len(["x" * 50], target=40) == [-10]


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("<think>a</think><answer>b</answer>", 1.0),
        ("<think>\na\nb\n</think>\n\n<answer>\nc\n</answer>\n", 1.0),
        ("<think> </think><answer>b</answer>", 0.8),  # nothing in it
        ("<answer>b</answer><think>a</think>", 0.8),  # the wrong way round
        ("Well. <think>a</think><answer>b</answer>", 0.8),
        ("<think>a</think> but <answer>b</answer>", 0.8),
        ("<think><answer>a</think>b</answer>", 0.8),
        ("<think>a</think><think>b</think><answer>c</answer>", 0.4),  # doubled tags count nothing
        ("<think>a</think>b", 0.4),
        ("<THINK>a</THINK>", 0.0),
        ("", 0.0),
        ("<answer>" * 4, 0.0),
    ],
)
def test_reward_format_pays_for_each_tag_and_for_the_whole(text, reward):
    assert reward_format([text]) == [reward]
    assert well_formed(text) == (reward == 1.0)


@PROPERTY
@given(PIECES, PIECES)
def test_a_missing_tag_never_pays_more(thoughts, answer):
    whole = f"<think>{thoughts}</think><answer>{answer}</answer>"
    for tag in library.TAGS:
        if whole.count(tag) == 1:
            assert reward_format([whole.replace(tag, "")])[0] < reward_format([whole])[0]


def test_coverage_and_rouge_by_hand():
    assert reward_coverage(["My boss is sad.", "", "boss"], facts=[FACTS] * 3) == [1, 0, 0.5]
    # "boss is sad" of 5 and of 4 words: precision 3/4, recall 3/5
    assert reward_rouge(["boss is so sad"], reference=["my boss is very sad"]) == pytest.approx([2 * 0.75 * 0.6 / (0.75 + 0.6)])
    assert reward_rouge(["My BOSS, leaving!"], reference=["my boss leaves"]) == [1]  # case, punctuation and endings do not count


def test_fluency_is_unknown_where_nobody_has_a_grammar():
    assert reward_fluency(["OP feels oddly proud. OP feels oddly the.", "Hm."], facts=[FACTS, ["boss", "sad"]]) == [0.5, None]


def test_toxicity_tells_an_insult_from_thanks():
    insult, thanks = reward_toxicity(["You are a pathetic loser.", "Thank you for your advice."])
    assert insult < -0.9 and thanks > -0.1


@pytest.mark.parametrize("reward", [reward_coverage, reward_rouge])
def test_there_must_be_a_column_for_each_completion(reward):
    with pytest.raises(ValueError, match="1 entries in .* for 2 completions; there must be one for each"):
        reward(["a", "b"], **{"facts" if reward is reward_coverage else "reference": [ROW["facts"] if reward is reward_coverage else "a"]})


# -- check_reward: each wrong reward, and what is said of it --------------------------------------------------


def no_return(completions, **kwargs):
    [len(completion) for completion in completions]


def too_few(completions, **kwargs):
    return [1.0] * (len(completions) - 1)


def one_number(completions, **kwargs):
    return 0.5


def nan(completions, **kwargs):
    return [math.nan if not text_of(completion) else 1.0 for completion in completions]


def infinite(completions, **kwargs):
    return [math.log(len(text_of(completion))) if text_of(completion) else -math.inf for completion in completions]


def as_text(completions, **kwargs):
    return [str(len(text_of(completion))) for completion in completions]


def no_kwargs(completions):
    return [float(len(completion)) for completion in completions]


def always_zero(completions, **kwargs):
    return [0.0] * len(completions)


def strings_only(completions, **kwargs):
    return [float(len(completion.lower())) for completion in completions]


def counts(completions, **kwargs):  # a list of messages has a `count`, too: no error, no reward
    return [float(completion.count("e")) for completion in completions]


def length_of_the_list(completions, **kwargs):
    return [float(len(completion)) for completion in completions]


def length_of_the_repr(completions, **kwargs):
    return [float(len(str(completion))) for completion in completions]


def by_rank(completions, **kwargs):
    return [float(place) for place, _ in enumerate(completions)]


def by_the_mean(completions, **kwargs):
    lengths = [len(text_of(completion)) for completion in completions]
    return [length - sum(lengths) / len(lengths) for length in lengths]


def by_chance(completions, **kwargs):
    return [random.random() for _ in completions]


def astronomical(completions, **kwargs):
    return [10**400 + len(text_of(completion)) for completion in completions]


def divides(completions, **kwargs):
    return [1 / len(text_of(completion)) for completion in completions]


def by_key(completions, **kwargs):
    return [float(len(fact)) for fact in kwargs["facts"]]


def lazy(completions, **kwargs):
    return (float(len(text_of(completion))) for completion in completions)


class SlowObject:
    async def __call__(self, completions, **kwargs):
        return [float(len(text_of(completion))) for completion in completions]


def wants_completion(completions, completion, **kwargs):
    return [float(len(text)) for text in completion]


async def slow(completions, **kwargs):
    return [None if not text_of(completion) else float(len(text_of(completion))) for completion in completions]


async def slow_and_wrong(completions, **kwargs):
    return []


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (no_return, r"no_return: returned None for 8 completions; return a list"),
        (too_few, "too_few: returned 7 values for 8 completions"),
        (one_number, "one_number: returned 0.5 for 8 completions"),
        (nan, "nan: returned nan for ''. TRL would take it for None"),
        (infinite, "infinite: returned -inf for ''. No mean and no spread"),
        (as_text, "as_text: returned '0' for ''; only numbers"),
        (no_kwargs, r"no_kwargs: takes no \*\*kwargs, but TRL also passes trainer_state"),
        (always_zero, "always_zero: returned 0.0 for all 8 examples: a group without spread teaches nothing"),
        (strings_only, "strings_only: with completions that are messages: AttributeError: 'list' object has no attribute 'lower'.*text_of"),
        (counts, "counts: with completions that are messages: returned 0.0 for all 8 examples"),
        (length_of_the_list, "length_of_the_list: with completions that are messages: returned 1.0 for all 8 examples"),
        (length_of_the_repr, "length_of_the_repr: gives other values for messages than for strings"),
        (by_rank, "by_rank: gives a completion another value when it is judged alone"),
        (by_the_mean, "by_the_mean: gives a completion another value when it is judged alone"),
        (by_chance, "by_chance: gives a completion another value when it is judged alone"),
        (astronomical, "astronomical: returned 10000000000000000000 for ''"),
        (by_key, "by_key: KeyError: 'facts'. If that is a column of the data set, give check_reward a row"),
        (divides, "divides: ZeroDivisionError: division by zero.$"),
        (wants_completion, "wants_completion: asks for completion, .*TRL keeps this column back; rename it"),
        (reward_coverage, "reward_coverage: asks for facts, but would get prompts, completions, .*give check_reward a row"),
        ("a string", "str: is no function but 'a string'"),
        (slow_and_wrong, "slow_and_wrong: returned 0 values for 8"),
        ([always_zero, functools.partial(always_zero)], "always_zero: 2 rewards have this name"),
    ],
)
def test_what_is_wrong_is_said(reward, said):
    found = check_reward(reward)
    assert found and re.search(said, found[0]), found


def test_nothing_is_said_of_good_rewards():
    assert check_reward(list(BOUNDS), row=ROW) == []
    assert check_reward(reward_coverage, row=ROW | {"facts": {"who": "yeti"}, "completion": "A yeti."}) == []  # only the row's own text has its fact
    assert check_reward([slow, SlowObject(), lazy, functools.partial(reward_len, target=50)]) == []
    assert check_reward(strings_only, kinds=["strings"]) == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(kinds=["string"]), r"kinds is \['string'\]; it must be"),
        (dict(kinds="strings"), "kinds is 'strings'"),
        (dict(completions=["one"]), "two or more texts to tell apart, got"),
        (dict(completions="text"), "two or more texts"),
        (dict(row=[ROW]), r"row is a list; give one row of the data set, such as rows\[0\]"),
    ],
)
def test_the_check_is_called_rightly(wrong, said):
    with pytest.raises(ValueError, match=said):
        check_reward(reward_len, **wrong)


def test_a_row_with_a_conversational_prompt():
    def reward_echo(completions, prompts, **kwargs):
        return [float(len(text_of(completion)) + len(text_of(prompt))) for completion, prompt in zip(completions, prompts, strict=True)]

    assert check_reward(reward_echo, row={"prompt": chat("Summarize: …"), "completion": chat("My boss left.")}) == []


def test_trl_own_rewards_pass():
    from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment, think_format_reward

    assert check_reward([get_repetition_penalty_reward(), get_soft_overlong_punishment(150, 100)]) == []
    assert check_reward(think_format_reward, kinds=["messages"]) == []


def test_the_check_passes_what_trl_passes(tmp_path):
    """The names of the arguments, in a real trainer and in the check."""
    from trl import GRPOConfig, GRPOTrainer

    from helpers import course
    from helpers.tldr import summarize

    seen = []

    def spy(completions, **kwargs):
        seen.append({"completions", *kwargs})
        return [float(len(text_of(completion))) for completion in completions]

    profile = course.profile()
    rows = load_tldr("train[:1]").map(summarize)
    config = GRPOConfig(str(tmp_path), max_steps=1, max_completion_length=4, disable_tqdm=True, report_to=[], **profile.hardware)
    GRPOTrainer(profile.models["sft"], spy, config, train_dataset=rows).train()
    check_reward(spy, row=rows[0])
    assert len(seen) > 1 and all(names == seen[0] for names in seen)


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
    from helpers.tldr import summarize

    profile = course.profile()
    config = GRPOConfig(str(tmp_path), max_steps=1, max_completion_length=4, disable_tqdm=True, report_to=[], **profile.hardware)
    rows = load_tldr("train[:1]").map(summarize)
    trainer = GRPOTrainer(profile.models["sft"], checked(no_return), config, train_dataset=rows)
    with pytest.raises(ValueError, match="'no_return' returned None for 8 completions"):
        trainer.train()
