import copy

import numpy as np
import pytest
import torch

from helpers.evaluate import Completion, divergence, generate, interval, measure, perplexity
from helpers.grpo import exact_kl
from helpers.tldr import load_tldr, summarize


@pytest.fixture(scope="module")
def prompts():
    return [summarize(row)["prompt"] for row in load_tldr("test[:6]")]


def test_a_batch_gives_what_each_prompt_gives_alone(sft, prompts):
    together = generate(*sft, prompts, max_new_tokens=40)
    alone = [generate(*sft, [prompt], max_new_tokens=40)[0] for prompt in prompts]
    assert together == alone
    assert generate(*sft, prompts[::-1], max_new_tokens=40, batch_size=2)[::-1] == together


def test_greedy_is_the_argmax_of_the_model(sft, prompts):
    model, tokenizer = sft
    ids = tokenizer(prompts[0])["input_ids"]
    for _ in range(5):
        with torch.no_grad():
            ids = [*ids, model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item()]
    (completion,) = generate(model, tokenizer, prompts[:1], max_new_tokens=5)
    assert completion == Completion(tokenizer.decode(ids[-5:]), ended=False, tokens=5)


def test_sampling_is_seeded_and_varied(sft, prompts):
    samples = [generate(*sft, prompts[:1] * 4, max_new_tokens=40, temperature=0.8, seed=seed) for seed in (0, 0, 1)]
    assert samples[0] == samples[1] != samples[2]
    assert len({sample.text for sample in samples[0]}) > 1


def test_measure_counts_characters_facts_and_sentences():
    rows = [{"facts": {"who": "boss", "feeling": "rather sad"}, "completion": " my boss left, I feel rather sad."}] * 2
    result = measure([Completion("OP feels rather sad.", True, 4), Completion("", False, 0)], rows)
    assert {name: values.tolist() for name, values in result.items()} == {
        "length": [20, 0],
        "distance": [180, 200],
        "coverage": [0.5, 0],
        "fluency": [1, 0],
        "rouge": [pytest.approx(6 / 11), 0],  # three words in common and in order, of four and of seven
        "ended": [1, 0],
    }
    assert np.isnan(measure([Completion("a cat", True, 2)], [{"facts": ["cat"], "completion": "a cat"}])["fluency"]).all()


def test_perplexity_is_that_of_the_texts_own_tokens(sft, prompts):
    model, tokenizer = sft
    texts = ["OP feels rather sad.", "The the the.", ""]
    values = perplexity(model, tokenizer, prompts[:3], texts)
    ids = tokenizer(prompts[0])["input_ids"]
    after = tokenizer(texts[0])["input_ids"]
    with torch.no_grad():
        loss = model(input_ids=torch.tensor([ids + after]), labels=torch.tensor([[-100] * len(ids) + after])).loss
    assert values[0] == pytest.approx(loss.exp().item(), rel=1e-4)
    assert values[1] > values[0] >= 1 and np.isnan(values[2])


def test_interval_holds_the_mean_and_narrows():
    values = np.random.default_rng(0).normal(5, 1, 400)
    low, high = interval(values)
    assert low < values.mean() < high and high - low == pytest.approx(2 * 1.96 / 20, rel=0.2)
    few = interval(values[:25])
    assert few[1] - few[0] > 2 * (high - low)
    assert interval([1, 1, 1]) == (1, 1)


def test_nothing_to_measure_is_said():
    with pytest.raises(ValueError, match="no prompts"):
        generate(None, None, [])
    with pytest.raises(ValueError, match="0 completions for 2 rows"):
        measure([], [{}, {}])
    with pytest.raises(ValueError, match="1 completions for 2 rows"):
        measure([Completion("", True, 0)], [{}, {}])
    with pytest.raises(ValueError, match="at least two"):
        interval([1.0])


def test_divergence_is_zero_from_itself_and_counts_the_end(sft, prompts):
    model, tokenizer = sft
    samples = generate(model, tokenizer, prompts, temperature=1.0, max_new_tokens=120)
    assert divergence(model, model, tokenizer, prompts, samples) == pytest.approx(0, abs=1e-6)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.norm.weight *= 1.3
    away = divergence(other, model, tokenizer, prompts, samples)
    assert (away > 0.001).all()
    text = Completion("OP feels rather sad.", ended=True, tokens=0)
    ids = torch.tensor([tokenizer(prompts[0] + text.text + tokenizer.eos_token)["input_ids"]])
    count = len(tokenizer(text.text + tokenizer.eos_token)["input_ids"])
    with torch.no_grad():
        exact = exact_kl(other(ids).logits, model(ids).logits)[0, -count - 1 : -1].mean().item()
    assert divergence(other, model, tokenizer, prompts[:1], [text]) == pytest.approx(exact, rel=1e-4)
