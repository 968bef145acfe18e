"""Complete prompts with a model and measure what came out: lengths, facts kept, whole sentences, perplexity, KL, intervals."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import bootstrap

from helpers.grpo import exact_kl
from helpers.rewards import reward_rouge
from helpers.tldr import fact_coverage, fluency


@dataclass(frozen=True)
class Completion:
    """What a model wrote after one prompt. `ended`: by itself, with an end-of-sequence token, not cut at the limit."""

    text: str
    ended: bool
    tokens: int


def padded(sequences, value, side, device):
    """Lists of ids -> one (B, T) tensor, padded with `value` on `side`."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in sequences], batch_first=True, padding_value=value, padding_side=side).to(device)


@torch.no_grad()
def generate(model, tokenizer, prompts, max_new_tokens=300, temperature=0.0, batch_size=100, seed=0):
    """Complete each prompt (a string), in batches: greedily, or sampled at `temperature` > 0.

    Prompts are padded on the left, where padding cannot come between a prompt and its completion. They are sorted by
    length on the way, so the answer does not depend on their order when decoding is greedy.
    Returns a list of `Completion`, in the order of the prompts. Raises ValueError without prompts.
    """
    if not prompts:
        raise ValueError("generate got no prompts; pass a list of strings, e.g. [row['prompt'] for row in load_tldr('test')].")
    model.eval()
    torch.manual_seed(seed)
    pad = tokenizer.pad_token_id
    ends = model.generation_config.eos_token_id
    ends = set(ends) if isinstance(ends, list) else {ends}
    # All of it is said, for a model's generation_config.json has wishes of its own: Qwen2-Instruct's also punishes repetition when decoding is greedy.
    sample = dict(repetition_penalty=1.0) | (dict(do_sample=True, temperature=temperature, top_k=0, top_p=1.0) if temperature else dict(do_sample=False))
    ids = tokenizer(list(prompts))["input_ids"]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    completions = [None] * len(ids)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        inputs = padded([ids[i] for i in rows], pad, "left", model.device)  # (B, P)
        mask = padded([[1] * len(ids[i]) for i in rows], 0, "left", model.device)  # (B, P)
        out = model.generate(input_ids=inputs, attention_mask=mask, max_new_tokens=max_new_tokens, pad_token_id=pad, **sample)
        for i, new in zip(rows, out[:, inputs.shape[1] :].tolist(), strict=True):  # (B, C)
            end = next((at for at, token in enumerate(new) if token in ends), None)
            text = tokenizer.decode(new[:end], skip_special_tokens=True)
            completions[i] = Completion(text, end is not None, len(new) if end is None else end + 1)
    return completions


def measure(completions, rows, target=200):
    """Metric -> an array with one value a completion: length, distance, coverage, fluency, rouge, ended.

    length, distance (from `target`): characters. coverage: share of the row's facts kept; of real posts nobody has listed
    the facts, there `load_tldr` takes the content words of the human summary. fluency: share of sentences that the grammar
    could have written; NaN for real posts, whose grammar nobody has. rouge: ROUGE-L against the human summary. ended: 0 or 1.
    Raises ValueError if there are no completions or not one for each row.
    """
    if not completions or len(completions) != len(rows):
        raise ValueError(f"measure got {len(completions)} completions for {len(rows)} rows; pass one completion, at least, for each row.")
    texts = [completion.text for completion in completions]
    length = np.array([len(text) for text in texts], dtype=float)
    by_grammar = isinstance(rows[0]["facts"], dict)
    return {
        "length": length,
        "distance": np.abs(length - target),
        "coverage": np.array([fact_coverage(text, row["facts"]) for text, row in zip(texts, rows, strict=True)]),
        "fluency": np.array([fluency(text) if by_grammar else np.nan for text in texts]),
        "rouge": np.array(reward_rouge(texts, [row["completion"] for row in rows])),
        "ended": np.array([completion.ended for completion in completions], dtype=float),
    }


def _spans(tokenizer, prompts, texts, batch_size, device):
    """Batches of texts behind their prompts: token ids (B, T), and for each row where the text begins and ends."""
    for start in range(0, len(texts), batch_size):
        before = tokenizer(list(prompts[start : start + batch_size]))["input_ids"]
        after = [tokenizer(text)["input_ids"] if text else [] for text in texts[start : start + batch_size]]
        ids = padded([p + c for p, c in zip(before, after, strict=True)], tokenizer.pad_token_id, "right", device)
        yield ids, [(len(p), len(p) + len(c)) for p, c in zip(before, after, strict=True)]


@torch.no_grad()
def perplexity(model, tokenizer, prompts, texts, batch_size=50):
    """How surprised `model` is by each text after its prompt: exp of the mean negative log-probability of the text's tokens.

    Returns an array, one value a text, 1 or more; NaN for an empty text. Give it the reference model to see how far a
    trained model's texts have left what the reference would write.
    """
    model.eval()
    values = []
    for ids, spans in _spans(tokenizer, prompts, texts, batch_size, model.device):
        logps = model(input_ids=ids).logits[:, :-1].float().log_softmax(-1)  # (B, T-1, V): position t predicts token t+1
        logps = logps.gather(-1, ids[:, 1:, None])[..., 0]  # (B, T-1)
        values += [row[begin - 1 : end - 1].mean().neg().exp().item() for row, (begin, end) in zip(logps, spans, strict=True)]
    return np.array(values)


@torch.no_grad()
def divergence(model, reference, tokenizer, prompts, completions, batch_size=50):
    """How far `model` has moved from `reference`: the KL divergence per token over these completions, exact over the vocabulary.

    completions: of `generate`, sampled by `model` at temperature 1; their end-of-sequence tokens count, too.
    Returns an array, one mean per completion, in nats, 0 or more.
    """
    texts = [completion.text + tokenizer.eos_token * completion.ended for completion in completions]
    values = []
    for ids, spans in _spans(tokenizer, prompts, texts, batch_size, model.device):
        kl = exact_kl(model(input_ids=ids).logits, reference(input_ids=ids).logits)  # (B, T)
        values += [row[begin - 1 : end - 1].mean().item() for row, (begin, end) in zip(kl, spans, strict=True)]
    return np.array(values)


def interval(values, confidence=0.95, seed=0):
    """The bootstrap confidence interval (BCa, 2,000 resamples) of the mean of `values`, as (low, high).

    Raises ValueError for fewer than two values.
    """
    values = np.asarray(values, dtype=float)
    if values.size < 2:
        raise ValueError(f"interval needs at least two values to resample, got {values.size}.")
    if np.ptp(values) == 0:  # nothing varies, so no resample does
        return float(values[0]), float(values[0])
    result = bootstrap((values,), np.mean, confidence_level=confidence, n_resamples=2000, rng=np.random.default_rng(seed))
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
