"""Reward functions with TRL's signature: completions (and the columns of the data set) in, one number for each out.

Higher is better. A completion is a string when the prompt is one, else a list of messages; every reward here takes both.
`check_reward` says what is wrong with a reward of your own before a training does.
"""

import asyncio
import functools
import inspect
import math
import re
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from helpers.tldr import fact_coverage, fluency
from helpers.toxicity import load_detoxify


def text_of(completion):
    """The text of a completion, whether it is a string or a list of messages.

    >>> text_of("Hi."), text_of([{"role": "assistant", "content": "Hi."}])
    ('Hi.', 'Hi.')
    """
    return completion if isinstance(completion, str) else "".join(_content(message) for message in completion)


def _content(message):
    content = message["content"]
    if isinstance(content, list):  # parts, as multimodal models write them
        return "".join(part.get("text", "") for part in content)
    return content or ""  # None where a message only calls a tool


def _paired(completions, column, name):
    if len(column) != len(completions):
        raise ValueError(f"{len(column)} entries in {name!r} for {len(completions)} completions; there must be one for each, as TRL passes them.")
    return zip(completions, column, strict=True)


# ---------------------------------------------------------------------------------------------------------
# 1. Rewards
# ---------------------------------------------------------------------------------------------------------
def reward_len(completions, target=200, **kwargs):
    """Minus the distance of a completion's length from `target`, both in characters (not in tokens).

    >>> reward_len(["x" * 200, "x" * 220, ""])
    [0.0, -20.0, -200.0]
    """
    return [float(-abs(target - len(text_of(completion)))) for completion in completions]


TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_IN_ORDER = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)  # DOTALL: a dot is also a line break


def well_formed(text):
    """Whether the text is `<think>…</think><answer>…</answer>`: each tag once, in this order, something in both, nothing outside but white space.

    >>> well_formed("<think>\\nwhy\\n</think>\\n<answer>what</answer>"), well_formed("<think></think><answer></answer>")
    (True, False)
    """
    once = all(text.count(tag) == 1 for tag in TAGS)  # without this, tags could hide in the dots
    match = _IN_ORDER.fullmatch(text) if once else None
    return bool(match and match[1].strip() and match[2].strip())


def reward_format(completions, **kwargs):
    """0.2 for each of the four tags that occurs exactly once, and 0.2 more if the whole text is `well_formed`: 0 to 1.

    >>> reward_format(["<think>a</think><answer>b</answer>", "<think>a</think> b", "b"])
    [1.0, 0.4, 0.0]
    """
    texts = [text_of(completion) for completion in completions]
    return [round(0.2 * (sum(text.count(tag) == 1 for tag in TAGS) + well_formed(text)), 1) for text in texts]


def reward_toxicity(completions, **kwargs):
    """Minus the probability that a completion is toxic, by the profile's Detoxify classifier: -1 to 0.

    It reads no more than the classifier's window: the first 512 tokens with Detoxify's own, 256 with the shipped one.
    Raises FileNotFoundError if there is no classifier, see `helpers.toxicity.load_detoxify`.
    """
    texts = [text_of(completion) for completion in completions]
    if not texts:  # Detoxify fails on an empty list, and gives one number instead of a list for one text
        return []
    return [-score for score in np.atleast_1d(load_detoxify().predict(texts)["toxicity"]).tolist()]


def reward_coverage(completions, facts, **kwargs):
    """The share of the post's facts that a completion keeps, 0 to 1; `facts` is the data set's column.

    >>> reward_coverage(["My boss left.", "Someone left."], facts=[{"who": "boss"}, {"who": "boss"}])
    [1.0, 0.0]
    """
    return [fact_coverage(text_of(completion), fact) for completion, fact in _paired(completions, facts, "facts")]


@functools.cache
def _rouge():
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)


def reward_rouge(completions, reference, **kwargs):
    """ROUGE-L (Lin 2004) of a completion against a summary by a human: the F-measure of their longest common subsequence of words, 0 to 1.

    `reference` is a column of the data set. TL;DR calls it `completion`, which TRL does not pass on: rename it.

    >>> reward_rouge(["my boss left me", "nothing else"], reference=["My boss has left."] * 2)
    [0.75, 0.0]
    """
    return [float(_rouge().score(target, text_of(completion))["rougeL"].fmeasure) for completion, target in _paired(completions, reference, "reference")]


def reward_fluency(completions, facts=None, **kwargs):
    """The share of sentences that TinyTLDR's grammar could have written, 0 to 1. To watch with a weight of 0: nobody has a grammar of real text.

    None, which TRL leaves out, where the rows carry no grammar's facts.
    """
    known = facts or [{}] * len(completions)
    return [fluency(text_of(completion)) if isinstance(fact, dict) else None for completion, fact in _paired(completions, known, "facts")]


# ---------------------------------------------------------------------------------------------------------
# 2. Checks
# ---------------------------------------------------------------------------------------------------------
def _count(values):
    return "None" if values is None else f"{len(values)} values" if hasattr(values, "__len__") else repr(values)


def checked(reward):
    """The same reward function, but one that returns nothing or the wrong number of values says so, by name.

    TRL counts the values itself, but meets a function without `return` as "'NoneType' object is not iterable".
    Single values may be None: TRL leaves that completion out of this reward. Raises ValueError.
    """

    @functools.wraps(reward)
    def wrapper(completions, **kwargs):
        values = reward(completions=completions, **kwargs)
        if _count(values) != f"{len(completions)} values":
            raise ValueError(f"the reward {reward.__name__!r} returned {_count(values)} for {len(completions)} completions; return a list with one number for each of them.")
        return values

    return wrapper


EXAMPLES = (
    "",
    "Yes.",
    "My boss left. OP feels oddly proud.",
    "Line one.\nLine two.\n\nLine three.",
    "😀 Ça va? 好",
    "<think>\nWho left?\n</think>\n<answer>\nMy boss.\n</answer>",
    "It was by the lake. " * 10,
    "word " * 2000,
)
KINDS = ("strings", "messages")


def check_reward(rewards, row=None, completions=None, kinds=KINDS):
    """Call rewards as TRL would, on example completions, and say what is wrong with them: a list of sentences, empty if nothing was found.

    rewards: a function, or the list of them that a trainer is to get. row: a row of the data set, for the columns that a
    reward asks for. completions: two or more texts that a good reward tells apart; by default `EXAMPLES`, with the row's own
    prompt and completion. kinds: as what it has to take them, "strings" (for string prompts) and "messages" (for
    conversational ones). Async functions are awaited. The `completion_ids` of the examples are their bytes. What no check
    can see is whether the reward wants what you want.

    Raises ValueError for another kind, for fewer than two completions, and for a row that is none.
    """
    if isinstance(kinds, str) or not kinds or not set(kinds) <= set(KINDS):
        raise ValueError(f"kinds is {kinds!r}; it must be a list of 'strings', 'messages' or both.")
    if not isinstance(row or {}, Mapping):
        raise ValueError(f"row is a {type(row).__name__}; give one row of the data set, such as rows[0].")
    row = row or {}
    if completions is None:
        completions = [*EXAMPLES, *(row[column] for column in ("prompt", "completion") if isinstance(row.get(column), str))]
    if isinstance(completions, str) or len(completions) < 2:
        raise ValueError(f"check_reward needs a list of two or more texts to tell apart, got {completions!r:.60}.")
    rewards = list(rewards) if isinstance(rewards, (list, tuple)) else [rewards]
    names = [_name(reward) for reward in rewards]
    found = [f"{name}: {number} rewards have this name, and TRL logs them as one; give each its own." for name, number in Counter(names).items() if number > 1]
    for name, reward in zip(names, rewards, strict=True):
        found += [f"{name}: {problem}" for problem in _problems(reward, row, list(completions), kinds)]
    return found


def _name(reward):
    while isinstance(reward, functools.partial):
        reward = reward.func
    return getattr(reward, "__name__", type(reward).__name__)


def _arguments(row, texts, kind):
    """What TRL's `_calculate_rewards` passes to a reward function; `prompt` and `completion` are the columns that it keeps back."""
    from transformers import TrainerState

    prompt = text_of(row.get("prompt", "Summarize: …"))
    columns = {key: [value] * len(texts) for key, value in row.items() if key not in ("prompt", "completion", "completion_ids")}
    as_messages = kind == "messages"
    return columns | dict(
        prompts=[[{"role": "user", "content": prompt}] if as_messages else prompt] * len(texts),
        completions=[[{"role": "assistant", "content": text}] if as_messages else text for text in texts],
        completion_ids=[list(text.encode()) for text in texts],
        trainer_state=TrainerState(max_steps=1),
        log_extra=lambda column, values: None,
        log_metric=lambda name, value: None,
    )


def _call(reward, arguments):
    values = reward(**arguments)
    if inspect.isawaitable(values):

        async def wait():
            return await values

        with ThreadPoolExecutor(1) as thread:  # a notebook's own thread already runs an event loop
            values = thread.submit(asyncio.run, wait()).result()
    return list(values) if inspect.isgenerator(values) else values


def _problems(reward, row, texts, kinds):
    if not callable(reward):
        return [
            f"is no function but {reward!r}; give a function (completions, **kwargs) that returns a list of numbers. (TRL also takes a model; only functions are checked here.)"
        ]
    given, wanted = _arguments(row, texts, kinds[0]), inspect.signature(reward).parameters.values()
    missing = [p.name for p in wanted if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in given]
    found = []
    if not any(p.kind is p.VAR_KEYWORD for p in wanted):
        found.append("takes no **kwargs, but TRL also passes trainer_state, log_extra, log_metric and all columns; end its arguments with **kwargs.")
    if missing:
        hint = "TRL keeps this column back; rename it. " if {"completion", "prompt"} & set(missing) else ""
        found.append(f"asks for {', '.join(missing)}, but would get {', '.join(given)}. {hint}For columns of the data set, give check_reward a row of it.")
    if found:
        return found
    values, problems = {}, {}
    for kind in kinds:
        try:
            values[kind] = _call(reward, _arguments(row, texts, kind))
            problems[kind] = _wrong_values(values[kind], texts)
            if not problems[kind]:
                alone = [_call(reward, _arguments(row, [text], kind))[0] for text in texts]
                problems[kind] = (
                    "" if _same(values[kind], alone) else "gives a completion another value when it is judged alone; it must not depend on the rest of the batch, nor on chance."
                )
        except Exception as error:  # whatever a reward can raise is what is to be reported
            hint = " If that is a column of the data set, give check_reward a row of it." if isinstance(error, KeyError) else ""
            problems[kind] = f"{type(error).__name__}: {error}.{hint}"
    if not any(problems.values()) and not all(_same(values[kinds[0]], others) for others in values.values()):
        return ["gives other values for messages than for strings; is it the text that it looks at? text_of(completion) gives it."]
    if len(set(problems.values())) == 1:  # the same for both kinds
        return [problem for problem in set(problems.values()) if problem]
    return [f"with completions that are {kind}: {problem} text_of(completion) gives the text of both kinds." for kind, problem in problems.items() if problem]


def _wrong_values(values, texts):
    """What is wrong with the values that a reward gave for these texts; "" if nothing is."""
    if _count(values) != f"{len(texts)} values":
        return f"returned {_count(values)} for {len(texts)} completions; return a list with one number for each."
    values = [value.item() if hasattr(value, "item") else value for value in values]
    for value, text in zip(values, texts, strict=True):
        if value is not None and not isinstance(value, (int, float)):
            return f"returned {value!r} for {text[:30]!r}; only numbers, and None for a completion that is not to count."
        if value is not None and not abs(value) < 1e18:  # TRL computes in 32 bits, and squares
            advice = "TRL would take it for None; return None if you mean that." if value != value else "No mean and no spread can be taken of it."
            return f"returned {str(value)[:20]} for {text[:30]!r}. {advice}"
    if len(set(values)) == 1:
        return f"returned {values[0]} for all {len(texts)} examples: a group without spread teaches nothing. If that is right for these, pass completions that it tells apart."
    return ""


def _same(some, others):
    return all((a is None and b is None) or (a is not None and b is not None and math.isclose(a, b, abs_tol=1e-5)) for a, b in zip(some, others, strict=True))
