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
    code = "from helpers import course; p = course.start(); print(p.name, p.models['sft'], p.dataset, p.hardware['use_cpu'])"
    assert "gpu Qwen/Qwen2-0.5B-Instruct trl-lib/tldr" in run(code, COURSE_PROFILE="gpu")


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
