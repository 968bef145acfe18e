"""Profiles, and the promise of the embedded one: nothing leaves this machine."""

import os
import random
import socket
import subprocess
import sys

import pytest

from helpers import course


def run(code, **env):
    """Run Python code in a process of its own, in the project's folder; its output and errors, as one text."""
    done = subprocess.run([sys.executable, "-c", code], cwd=course.ROOT, env=os.environ | env, capture_output=True, text=True, timeout=300)
    return done.stdout + done.stderr


def test_an_unknown_profile_is_refused_by_naming_both():
    out = run("from helpers import course; course.start()", COURSE_PROFILE="laptop")
    assert "ValueError: COURSE_PROFILE is 'laptop'; the profiles are 'embedded' and 'gpu'" in out


def test_the_gpu_profile_points_at_the_hub():
    code = "from helpers import course; p = course.profile(); print(p.name, p.models['sft'], p.dataset, p.hardware['use_cpu'], p.device)"
    assert "gpu Qwen/Qwen2-0.5B-Instruct trl-lib/tldr True cpu" in run(code, COURSE_PROFILE="gpu")


@pytest.mark.parametrize(
    ("card", "bf16", "expected"),
    [
        (15.8e9, False, dict(fp16=True, bf16=False, gradient_checkpointing=True, lora=0, learning_rate=1e-5, dtype=None)),  # a T4
        (80e9, True, dict(fp16=False, bf16=True, gradient_checkpointing=False, lora=0, learning_rate=1e-5, dtype=None)),
        (8e9, True, dict(fp16=False, bf16=True, gradient_checkpointing=True, lora=16, learning_rate=1e-4, dtype="bfloat16")),
    ],
)
def test_settings_follow_the_card(card, bf16, expected, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: type("Card", (), {"total_memory": card}))
    profile = course._gpu()
    found = {name: profile.hardware[name] for name in ("fp16", "bf16", "gradient_checkpointing")}
    found |= dict(lora=profile.lora, learning_rate=pytest.approx(profile.learning_rate), dtype=profile.hardware.get("model_init_kwargs", {}).get("dtype"))
    assert found == expected and profile.device == "cuda" and (profile.peft_config is not None) == bool(expected["lora"])
    assert profile.with_lora(0).with_lora(profile.lora) == profile
    assert profile.with_lora(4).hardware["model_init_kwargs"] == {"dtype": "bfloat16" if bf16 else "float16"}


def test_fit_keeps_the_batch_and_cuts_it_into_pieces():
    from dataclasses import replace

    settings = dict(per_device_train_batch_size=12, max_steps=3)
    profile = course.profile()
    assert profile.fit(settings) == settings | profile.hardware  # it fits
    assert profile.peft_config is None
    for at_once, batch, pieces in ((12, 12, 1), (5, 4, 3), (1, 1, 12)):
        fitted = replace(profile, at_once=at_once).fit(settings | dict(gradient_accumulation_steps=2))
        assert (fitted["per_device_train_batch_size"], fitted["gradient_accumulation_steps"]) == (batch, 2 * pieces)
    assert replace(profile, at_once=4).fit({})["gradient_accumulation_steps"] == 2  # TRL's 8


def test_a_statement_that_does_not_hold_is_reported_in_the_gpu_profile_only():
    cell = "assert 1 + 1 == 3, 'never shown'\nassert 2 == 2\nprint('went on')"
    code = f"""
from IPython.core.interactiveshell import InteractiveShell
from helpers import course
shell = InteractiveShell.instance()
if {{gpu}}:
    course._report_verdicts(); course._report_verdicts()
shell.run_cell({cell!r})
"""
    out = run(code.format(gpu=True))
    assert out.count("[otherwise in this profile: 1 + 1 == 3]") == 1 and "went on" in out and "2 == 2]" not in out
    out = run(code.format(gpu=False))
    assert "AssertionError" in out and "went on\n" not in out and "otherwise" not in out


def test_start_seeds_every_generator():
    import numpy
    import torch

    def draw():
        course.start(seed=3)
        return random.random(), numpy.random.rand(), torch.rand(1).item()

    assert draw() == draw()


@pytest.mark.parametrize(
    "code",
    [
        "import urllib.request; urllib.request.urlopen('https://huggingface.co')",
        "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)",
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))",
        "import socket; socket.gethostbyname('example.org')",
        "import asyncio; asyncio.run(asyncio.open_connection('192.0.2.1', 80))",
    ],
)
def test_any_way_out_is_closed_with_a_clear_message(code):
    out = run(f"from helpers import course; course.start(); {code}")
    assert "NetworkForbidden" in out and "set COURSE_PROFILE=gpu" in out


def test_loopback_stays_open():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()), socket.create_connection(("localhost", server.getsockname()[1])):
        pass


def test_a_training_opens_no_socket(tmp_path):
    """Load data and model and train a step with TRL, counting every connection and look-up that Python makes."""
    out = run(
        f"""
import sys
events = []
sys.addaudithook(lambda event, args: events.append(event) if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto") else None)
from helpers import course
profile = course.start()
from trl import GRPOConfig, GRPOTrainer
from helpers.rewards import reward_len
from helpers.tldr import load_tldr, summarize
config = GRPOConfig({str(tmp_path)!r}, max_steps=1, max_completion_length=4, disable_tqdm=True, report_to=[], **profile.hardware)
GRPOTrainer(profile.models["sft"], reward_len, config, train_dataset=load_tldr("train[:2]").map(summarize)).train()
print("EVENTS", events)
""",
        HF_HUB_OFFLINE="0",
    )
    assert "EVENTS []" in out, out
