"""The estimate of memory, against what transformers, peft and TRL really make; and the ladder of settings."""

import pytest
import torch
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

from helpers import course
from helpers.memory import QWEN2, ROOM, TILE, Shape, estimate, of_settings, plan, report

SHAPES = [Shape(64, 160, 3, 4, 2, 500, True), Shape(96, 128, 2, 6, 3, 300, False), Shape(64, 96, 2, 4, 1, 200, True, head_dim=32)]
SMALL = QWEN2["Qwen2-0.5B"]


def model_of(shape, **options):
    known = {name: value for name, value in vars(shape).items() if value is not None}
    return Qwen2ForCausalLM(Qwen2Config(**known, **options))


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_are_those_of_transformers(shape):
    model = model_of(shape)
    assert shape.weights == sum(weights.numel() for weights in model.parameters())
    assert shape.layer_weights == sum(weights.numel() for weights in model.model.layers.parameters())


def test_published_counts_of_qwen2():
    """494,032,768, 1,543,714,304 and 7,615,616,512 weights: the sizes of the checkpoints on the Hub."""
    assert [shape.weights for shape in QWEN2.values()] == [494_032_768, 1_543_714_304, 7_615_616_512]


@pytest.mark.parametrize("shape", SHAPES)
def test_loras_weights_are_those_of_peft(shape):
    from peft import get_peft_model

    model = get_peft_model(model_of(shape), course.lora_config(4))
    assert shape.lora_weights(4) == sum(weights.numel() for weights in model.parameters() if weights.requires_grad)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_cache_is_that_of_transformers(shape):
    cache = DynamicCache()
    model_of(shape)(input_ids=torch.zeros(5, 7, dtype=torch.long), past_key_values=cache)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert held == estimate(shape, 5, 3, 4, half=False)["KV cache"]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_what_pytorch_saves(half, checkpointing):
    """One layer more, and twice the tokens: the rest cancels out. To within 2 %: statistics of attention and norms are left out."""

    def saved(layers, tokens):
        model, kept = model_of(Shape(256, 512, layers, 4, 2, 64, True)).train(), {}
        if checkpointing:
            model.gradient_checkpointing_enable(dict(use_reentrant=False))
        own = {weights.untyped_storage().data_ptr() for weights in model.parameters()}

        def pack(tensor):
            if tensor.untyped_storage().data_ptr() not in own:
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        ids = torch.zeros(2, tokens // 2, dtype=torch.long)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            model.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        return sum(storage.nbytes() for storage in kept.values())

    def ours(layers, tokens):
        return estimate(Shape(256, 512, layers, 4, 2, 64, True), 1, tokens, 0, half=half, checkpointing=checkpointing)["activations"]

    growth = [f(3, 128) - f(2, 128) - f(3, 64) + f(2, 64) for f in (saved, ours)]
    assert growth[0] == pytest.approx(growth[1], rel=0.02) and growth[0] > 0


def test_trl_still_computes_logits_in_such_tiles():
    from trl.kernels.chunked_logprob import TOKEN_CHUNK_SIZE
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    assert TOKEN_CHUNK_SIZE * _CHUNKED_LOGPROB_CHUNK_SIZE == TILE
    assert estimate(SMALL, 64, 1, 1024)["logits"] == 8 * TILE and estimate(SMALL, 1, 1, 10)["logits"] == 8 * 10 * SMALL.vocab_size


def test_trl_loads_what_it_trains_in_32_bits(tmp_path):
    """… and LoRA's frozen weights in 16, with the profile's `model_init_kwargs`."""
    from trl import GRPOConfig, GRPOTrainer

    from helpers.rewards import reward_len
    from helpers.tldr import load_tldr

    def dtypes(peft_config=None, **settings):
        config = GRPOConfig(str(tmp_path), report_to=[], **course.profile().hardware | settings)
        trainer = GRPOTrainer(course.profile().models["sft"], reward_len, config, train_dataset=load_tldr("train[:8]"), peft_config=peft_config)
        return [{weights.dtype for weights in trainer.model.parameters() if weights.requires_grad is trained} for trained in (True, False)]

    assert dtypes() == [{torch.float32}, set()]
    assert dtypes(course.lora_config(4), model_init_kwargs={"dtype": "bfloat16"}) == [{torch.float32}, {torch.bfloat16}]


def test_parts_and_peak():
    parts = estimate(SMALL, 8, 600, 300)
    P = SMALL.weights
    assert (parts["weights"], parts["gradients"], parts["optimizer"], parts["reference"]) == (4 * P, 4 * P, 8 * P, 0)
    assert parts["peak"] == 16 * P + parts["activations"] + parts["logits"]  # the copies are smaller than the gradients, and gone when those are whole
    kept = estimate(SMALL, 8, 600, 300, checkpointing=False)
    assert kept["peak"] == 16 * P + 2 * SMALL.layer_weights + kept["activations"] + kept["logits"]
    assert estimate(SMALL, 8, 600, 300, reference=True)["peak"] == parts["peak"] + 4 * P
    lora = estimate(SMALL, 8, 600, 300, lora=16, reference=True)
    assert lora["reference"] == lora["copies in 16 bits"] == 0 and lora["weights"] == 2 * P + 4 * SMALL.lora_weights(16)
    many = estimate(SMALL, 1, 600, 300, generated=4096)  # where generating needs more than learning
    assert many["peak"] == 12 * P + many["KV cache"] + many["copies in 16 bits"] + 4 * 4096 * SMALL.vocab_size


def test_the_ladder_gives_up_one_thing_after_the_other():
    rungs = [plan(SMALL, gigabytes * 1e9) for gigabytes in (80, 24, 12.5, 8)]
    assert [(rung["checkpointing"], rung["lora"], rung["batch"]) for rung in rungs] == [(False, 0, 8), (True, 0, 8), (True, 0, 2), (True, 16, 8)]
    assert all(rung["peak"] <= ROOM * gigabytes * 1e9 for rung, gigabytes in zip(rungs, (80, 24, 12.5, 8), strict=True))
    with pytest.raises(ValueError, match="7.6 billion weights do not fit a card of 8 GB, not even with LoRA and one completion at a time: .*COURSE_PROFILE=embedded"):
        plan(QWEN2["Qwen2-7B"], 8e9)


def test_settings_are_read_as_grpo_config_would():
    assert of_settings({}) == estimate(SMALL, 8, 600, 512, half=True, checkpointing=True)  # TRL's defaults: bf16, checkpointing
    asked = dict(bf16=False, gradient_checkpointing=False, beta=0.1, per_device_train_batch_size=4, gradient_accumulation_steps=2, max_completion_length=300)
    assert of_settings(asked) == estimate(SMALL, 4, 600, 300, half=False, checkpointing=False, reference=True, generated=8)
    assert of_settings(dict(fp16=True, bf16=False))["copies in 16 bits"] > 0
    assert report(of_settings({})).startswith("10.3 GB at the peak: weights 2.0, optimizer 4.0")
