"""Reward functions with TRL's signature: completions (and the columns of the data set) in, one number for each out.

Higher is better. A completion is a string when the prompt is one, else a list of messages; every reward here takes both.
"""

import functools

from helpers.tldr import fact_coverage


def text_of(completion):
    """The text of a completion, whether it is a string or a list of messages.

    >>> text_of("Hi."), text_of([{"role": "assistant", "content": "Hi."}])
    ('Hi.', 'Hi.')
    """
    return completion if isinstance(completion, str) else "".join(message["content"] for message in completion)


def reward_len(completions, target=200, **kwargs):
    """Minus the distance of a completion's length from `target`, both in characters (not in tokens).

    >>> reward_len(["x" * 200, "x" * 220, ""])
    [0.0, -20.0, -200.0]
    """
    return [float(-abs(target - len(text_of(completion)))) for completion in completions]


def reward_coverage(completions, facts, **kwargs):
    """The share of the post's facts that a completion keeps, 0 to 1; `facts` is the data set's column.

    >>> reward_coverage(["My boss left.", "Someone left."], facts=[{"who": "boss"}, {"who": "boss"}])
    [1.0, 0.0]
    """
    return [fact_coverage(text_of(completion), fact) for completion, fact in zip(completions, facts, strict=True)]


def checked(reward):
    """The same reward function, but one that returns nothing or the wrong number of values says so, by name.

    TRL counts the values itself, but meets a function without `return` as "'NoneType' object is not iterable".
    Single values may be None: TRL leaves that completion out of this reward. Raises ValueError.
    """

    @functools.wraps(reward)
    def wrapper(completions, **kwargs):
        values = reward(completions=completions, **kwargs)
        got = "None" if values is None else f"{len(values)} values" if hasattr(values, "__len__") else repr(values)
        if got != f"{len(completions)} values":
            raise ValueError(f"the reward {reward.__name__!r} returned {got} for {len(completions)} completions; return a list with one number for each of them.")
        return values

    return wrapper
