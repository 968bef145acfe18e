"""The fast sampler against `generate`: the same tokens greedily, the same frequencies when sampling; and inside a trainer."""

from types import SimpleNamespace

import pytest
import torch
from scipy.stats import chisquare
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from helpers import course
from helpers.models import load_model
from helpers.rewards import reward_len
from helpers.rollout import Sampler, fast_rollout
from helpers.tldr import load_tldr, summarize

ENDS = [0, 2]


def by_generate(model, prompt_ids, max_new_tokens, **sampling):
    longest = max(map(len, prompt_ids))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompt_ids])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompt_ids])
    out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, eos_token_id=ENDS, pad_token_id=0, **sampling)
    completions = []
    for new in out[:, longest:].tolist():
        end = next((at for at, token in enumerate(new) if token in ENDS), len(new))
        completions.append(new[: end + 1])
    return completions


@pytest.mark.parametrize("name", ["sft", "grpo-length"])
def test_greedy_is_generate_token_for_token(name):
    model, tokenizer = load_model(course.profile().models[name])
    prompt_ids = [tokenizer(row["prompt"])["input_ids"] for row in load_tldr("test[:12]").map(summarize)]
    assert len({len(ids) for ids in prompt_ids}) > 4
    ours = Sampler(model).generate(prompt_ids, 60, 0, ENDS)
    assert ours == by_generate(model, prompt_ids, 60, do_sample=False)
    ended = [ids[-1] in ENDS for ids in ours]
    assert any(ended) == (name == "grpo-length")  # some leave the batch early


@pytest.mark.parametrize("shape", [dict(num_key_value_heads=2), dict(num_key_value_heads=1, tie_word_embeddings=False), dict(head_dim=24)])
def test_other_shapes_of_qwen2(shape):
    """Grouped queries, an output layer of its own, a head size of its own."""
    torch.manual_seed(0)
    settings = dict(vocab_size=50, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, initializer_range=0.3)
    model = Qwen2ForCausalLM(Qwen2Config(**settings | shape)).eval()
    prompt_ids = [[5, 6, 7], [8] * 9, [11]]
    assert Sampler(model).generate(prompt_ids, 20, 0, ENDS) == by_generate(model, prompt_ids, 20, do_sample=False)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_sampled_frequencies_are_those_of_the_model(temperature):
    torch.manual_seed(0)
    settings = dict(vocab_size=8, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, initializer_range=0.2)
    model = Qwen2ForCausalLM(Qwen2Config(**settings)).eval()
    drawn = torch.tensor(Sampler(model).generate([[3, 4]] * 4000, 2, temperature, [99]))  # (4000, 2)
    with torch.no_grad():
        logits = model(torch.tensor([[3, 4, token] for token in range(8)])).logits / temperature
    first, second = logits[0, 1].softmax(-1), logits[:, 2].softmax(-1)  # of the first token; of the second, given each first
    expected = (first[:, None] * second).flatten().double()
    counted = torch.bincount(drawn[:, 0] * 8 + drawn[:, 1], minlength=64)
    enough = expected * 4000 >= 5  # the rule for the test: at least five expected
    observed, wanted = ([*values[enough].tolist(), values[~enough].sum().item()] for values in (counted, expected * 4000))
    assert enough.sum() > 8
    assert chisquare(observed, [value * sum(observed) / sum(wanted) for value in wanted]).pvalue > 0.001


def test_another_architecture_is_refused():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=10, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(TypeError, match="'gpt2'.*model.generate"):
        Sampler(model)


def trainer(folder, **settings):
    settings = dict(per_device_train_batch_size=4, num_generations=4, max_completion_length=12, max_steps=2, learning_rate=1e-3, report_to=[], save_strategy="no") | settings
    config = GRPOConfig(str(folder), disable_tqdm=True, **settings, **course.profile().hardware)
    return GRPOTrainer(course.profile().models["sft"], reward_len, config, train_dataset=load_tldr("train[:4]").map(summarize), rollout_func=fast_rollout)


def test_a_trainer_trains_with_it_and_it_sees_the_new_weights(tmp_path):
    run = trainer(tmp_path, temperature=1.0)
    run.train()
    assert run.state.global_step == 2 and run.state.log_history[-1]["completions/max_length"] <= 12
    prompt = list(load_tldr("test[:1]").map(summarize)["prompt"])
    first = fast_rollout(prompt, run)["completion_ids"]
    with torch.no_grad():
        run.model.model.norm.weight.mul_(-1)
    assert first != fast_rollout(prompt, run)["completion_ids"]


def test_other_kinds_of_sampling_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"knows temperature only.*'top_p': 0.9"):
        fast_rollout(["a"], trainer(tmp_path, top_p=0.9))


@pytest.mark.parametrize("kind", ["is_zero3", "is_fsdp"])
def test_weights_in_parts_are_refused(kind, tmp_path):
    run = trainer(tmp_path)
    run._dist = SimpleNamespace(**{"is_zero3": False, "is_fsdp": False, kind: True})
    with pytest.raises(ValueError, match="ZeRO-3 and FSDP .* Use DDP"):
        fast_rollout(["a"], run)
