"""The estimate of memory, against what transformers, peft and TRL really make; and the ladder of settings."""

from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache

from helpers import course
from helpers.memory import QWEN2, ROOM, TILE, Shape, estimate, main, make_model, of_settings, plan, report, saved_bytes, simulated_peak

SHAPES = [Shape(64, 160, 3, 4, 2, 500, True), Shape(96, 128, 2, 6, 3, 300, False), Shape(64, 96, 2, 4, 1, 200, True, head_dim=32)]
SMALL = QWEN2["Qwen2-0.5B"]


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_are_those_of_transformers(shape):
    model = make_model(shape)
    assert shape.weights == sum(weights.numel() for weights in model.parameters())
    assert shape.layer_weights == sum(weights.numel() for weights in model.model.layers.parameters())


def test_published_counts_of_qwen2():
    """494,032,768, 1,543,714,304 and 7,615,616,512 weights: the sizes of the checkpoints on the Hub."""
    assert [shape.weights for shape in QWEN2.values()] == [494_032_768, 1_543_714_304, 7_615_616_512]


@pytest.mark.parametrize("shape", SHAPES)
def test_loras_weights_are_those_of_peft(shape):
    from peft import get_peft_model

    model = get_peft_model(make_model(shape), course.lora_config(4))
    assert shape.lora_weights(4) == sum(weights.numel() for weights in model.parameters() if weights.requires_grad)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_cache_is_that_of_transformers(shape):
    cache = DynamicCache()
    make_model(shape)(input_ids=torch.zeros(5, 7, dtype=torch.long), past_key_values=cache)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert held == estimate(shape, 5, 3, 4, half=False)["KV cache"] == estimate(shape, 2, 3, 4, generated=5)["KV cache"] == 2 * estimate(shape, 5, 3, 4, lora=2)["KV cache"]


def test_the_cache_is_in_32_bits_under_autocast():
    """As TRL generates in: autocast over weights of 32 bits."""
    cache = DynamicCache()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        make_model(SHAPES[0])(input_ids=torch.zeros(5, 7, dtype=torch.long), past_key_values=cache)
    assert {layer.values.dtype for layer in cache.layers} <= {torch.float32, torch.bfloat16}
    assert cache.layers[0].keys.dtype == torch.float32  # the estimate takes the larger for both


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_what_pytorch_saves(half, checkpointing, padding):
    """One layer more, and twice the texts: the rest cancels out. To within 2 %: statistics of attention and norms are left out."""

    options = dict(half=half, checkpointing=checkpointing, padding=padding)

    def saved(layers, texts):
        return saved_bytes(Shape(256, 512, layers, 4, 2, 64, True), texts, 64, **options)

    def ours(layers, texts):
        return estimate(Shape(256, 512, layers, 4, 2, 64, True), texts, 64, 0, **options)["activations"]

    growth = [f(3, 4) - f(2, 4) - f(3, 2) + f(2, 2) for f in (saved, ours)]
    assert growth[0] == pytest.approx(growth[1], rel=0.02) and growth[0] > 0


@pytest.mark.parametrize(("batch", "length", "checkpointing", "off"), [(1, 300, True, 0.01), (8, 700, True, 0.05), (8, 700, False, 0.05)])
def test_the_peak_of_a_model_that_does_not_exist(batch, length, checkpointing, off, monkeypatch):
    """Qwen2-0.5B with 3 of its layers. The logits, in TRL's tiles, are in neither."""
    shape = replace(SMALL, num_hidden_layers=3)
    monkeypatch.setattr("helpers.memory.TILE", (0, 0))
    ours = estimate(shape, batch, length, 0, checkpointing=checkpointing, padding=False)["peak"]
    assert ours == pytest.approx(simulated_peak(shape, batch, length, checkpointing), rel=off)


def test_trl_still_computes_logits_in_such_tiles():
    from trl.kernels.chunked_logprob import TOKEN_CHUNK_SIZE
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    assert TILE == (TOKEN_CHUNK_SIZE, _CHUNKED_LOGPROB_CHUNK_SIZE)
    h = SMALL.hidden_size
    assert estimate(SMALL, 64, 1, 1024)["logits"] == 2 * 4096 * 32768 + 4 * h * (4096 + 32768)
    assert estimate(SMALL, 1, 1, 10, half=False)["logits"] == 4 * 10 * 32768 + 4 * h * (10 + 32768)


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
    P, head = SMALL.weights, SMALL.vocab_size * SMALL.hidden_size
    parts = estimate(SMALL, 8, 600, 300)
    assert (parts["weights"], parts["gradients"], parts["optimizer"], parts["reference"], parts["copies in 16 bits"]) == (4 * P, 4 * P, 8 * P, 0, 2 * SMALL.layer_weights)
    assert parts["peak"] == 16 * P + max(parts["activations"], 8 * head)  # in the midst of the backward pass, or at its end
    assert estimate(SMALL, 1, 60, 30)["peak"] == 16 * P + 8 * head
    large = QWEN2["Qwen2-7B"]  # its head is a matrix of its own
    assert estimate(large, 1, 60, 30)["peak"] == 16 * large.weights + estimate(large, 1, 60, 30)["activations"]
    piece = estimate(SMALL, 8, 600, 300, generated=16)  # the beginning, when the gradients of the piece before are there
    assert piece["peak"] == 16 * P + piece["copies in 16 bits"] + piece["activations"] + piece["logits"]
    kept = estimate(SMALL, 8, 600, 300, checkpointing=False)
    assert kept["peak"] == 16 * P + kept["copies in 16 bits"] + kept["activations"] + kept["logits"]
    assert estimate(SMALL, 8, 600, 300, reference=True)["peak"] == parts["peak"] + 4 * P
    lora = estimate(SMALL, 8, 600, 300, lora=16, reference=True)
    assert lora["reference"] == lora["copies in 16 bits"] == 0 and lora["weights"] == 2 * P + 4 * SMALL.lora_weights(16)
    assert lora["peak"] == lora["weights"] + lora["optimizer"] + lora["activations"] + lora["logits"]
    assert estimate(SMALL, 8, 600, 300, lora=16, half=False)["weights"] == 4 * P + 4 * SMALL.lora_weights(16)
    assert estimate(SMALL, 8, 600, 300, half=False)["copies in 16 bits"] == 0
    many = estimate(SMALL, 1, 600, 300, generated=4096)  # where generating needs more than learning
    assert many["peak"] == 12 * P + many["KV cache"] + many["copies in 16 bits"] + 2 * head + 4 * 4096 * SMALL.vocab_size


def test_the_ladder_gives_up_one_thing_after_the_other():
    cards = (80, 24, 14.0, 8)
    rungs = [plan(SMALL, gigabytes * 1e9, batch=32) for gigabytes in cards]
    assert [(rung["checkpointing"], rung["lora"], rung["batch"]) for rung in rungs] == [(False, 0, 32), (True, 0, 32), (True, 0, 2), (True, 16, 32)]
    for rung, gigabytes in zip(rungs, cards, strict=True):
        options = dict(checkpointing=rung["checkpointing"], lora=rung["lora"], reference=True, generated=32)
        assert rung["peak"] == estimate(SMALL, rung["batch"], 600, 300, **options)["peak"] <= ROOM * gigabytes * 1e9
    assert ROOM == 0.8
    with pytest.raises(ValueError, match="7.6 billion weights do not fit a card of 8 GB, not even with LoRA and one completion at a time: .*COURSE_PROFILE=embedded"):
        plan(QWEN2["Qwen2-7B"], 8e9)


def test_settings_are_read_as_grpo_config_would():
    assert of_settings({}) == estimate(SMALL, 8, 600, 512, half=True, checkpointing=True)  # TRL's defaults: bf16, checkpointing
    asked = dict(bf16=False, gradient_checkpointing=False, beta=0.1, per_device_train_batch_size=4, gradient_accumulation_steps=2, max_completion_length=300)
    assert of_settings(asked) == estimate(SMALL, 4, 600, 300, half=False, checkpointing=False, reference=True, generated=8)
    assert of_settings(dict(fp16=True, bf16=False))["copies in 16 bits"] > 0
    assert report(of_settings({})).startswith("9.3 GB at the peak: weights 2.0, optimizer 4.0")


def test_the_command(capsys):
    main(["--model", "Qwen2-7B", "--batch", "4"])
    shown = capsys.readouterr().out
    assert "Qwen2-7B, 7.62 billion weights, 4 completions" in shown and "8 GB                  nothing" in shown and "24 GB                 LoRA" in shown
    main(["--model", course.profile().models["sft"]])
    assert "80 GB                 all weights, checkpointing off, 8 at once" in capsys.readouterr().out
