"""The pretended GPU of tests/elsewhere.py refuses what a GPU refuses, and lets the rest through. Each test in a process of its own: there is no way back."""

import os
import subprocess
import sys

import pytest

from helpers import course
from tests import standins

START = """
import torch
from tests import elsewhere

elsewhere.pretend()
layer = torch.nn.Linear(3, 1).to(elsewhere.NAME)
there, here = torch.tensor([[1.0, 2.0, 3.0]], device=elsewhere.NAME), torch.ones(1, 3)
"""


def run(code, **env):
    done = subprocess.run([sys.executable, "-c", START + code], cwd=course.ROOT, env=os.environ | env, capture_output=True, text=True, timeout=300)
    return done.stdout + done.stderr


REFUSED = {
    "layer(here)": "RuntimeError: Expected all tensors to be on the same device",
    "there + here": "RuntimeError: Expected all tensors to be on the same device",
    "here[:, torch.zeros_like(there).long()]": "RuntimeError: Expected all tensors to be on the same device",
    "torch.zeros(()).add_(there.sum())": "RuntimeError: Expected all tensors to be on the same device",
    "torch.nn.functional.mse_loss(torch.nn.Linear(3, 1)(here), layer(there))": "RuntimeError: Expected all tensors to be on the same device",
    "there.numpy()": "TypeError: can't convert elsewhere:0 device type tensor to numpy",
    "import numpy; numpy.asarray([number for number in there[0]])": "TypeError: can't convert elsewhere:0 device type tensor to numpy",
    "import matplotlib.pyplot as plt; plt.imshow(there)": "TypeError: can't convert elsewhere:0 device type tensor to numpy",
    "import pandas; pandas.DataFrame({'x': there[0]}).mean()": "TypeError: can't convert elsewhere:0 device type tensor to numpy",
    "torch.multinomial(there, 1, generator=torch.Generator())": "RuntimeError: Expected a 'elsewhere' device type for generator",
}


def test_what_a_gpu_refuses_is_refused():
    code = "".join(f"\ntry:\n    {line}\n    print('let through')\nexcept Exception as error:\n    print(f'{{type(error).__name__}}: {{error}}')\n" for line in REFUSED)
    for (line, error), said in zip(REFUSED.items(), run(code, COURSE_PROFILE="gpu").splitlines(), strict=True):
        assert said.startswith(error), (line, said)


def test_what_a_gpu_does_works():
    code = """
import copy

twins = torch.nn.ModuleList([layer, torch.nn.Linear(3, 1)])
twins[1].weight = layer.weight
assert twins.to(elsewhere.NAME)[1].weight is layer.weight and copy.deepcopy(twins)[1].weight.device == layer.weight.device
optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
before = layer(there).item()
layer(there).sum().backward()
assert layer.weight.grad.device == there.device
optimizer.step()
optimizer.zero_grad()
assert layer(there).item() < before
there[0, 1] = here[0, 1] * 7  # a number; so is 0.5
assert (there * torch.tensor(0.5)).tolist() == [[0.5, 3.5, 1.5]] and there[:, torch.tensor([1])].item() == 7 and f"{there[0, 1]:.1f}" == "7.0"
assert torch.equal(there.cpu(), torch.tensor([[1.0, 7.0, 3.0]])) and torch.equal(here.to(there), there.clamp(max=1))
layer.weight.data = torch.zeros_like(layer.weight)
layer.load_state_dict(torch.nn.Linear(3, 1).state_dict())
assert layer.weight.abs().sum() > 0 and (layer.cpu()(here).device.type == "cpu")
print("well")
"""
    assert run(code, COURSE_PROFILE="gpu") == "well\n"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return standins.environment(standins.fill(tmp_path_factory.mktemp("hub")))


def test_a_training_runs_there(cache, tmp_path):
    """A model from the Hub's cache is moved, trained by TRL, saved as a checkpoint, and loaded again."""
    code = f"""
profile = elsewhere.course.start()
from trl import GRPOConfig, GRPOTrainer
from helpers.evaluate import generate
from helpers.models import load_model
from helpers.rewards import reward_len
from helpers.tldr import load_tldr, summarize

config = GRPOConfig({str(tmp_path)!r}, max_steps=1, save_steps=1, beta=0.1, max_completion_length=8, disable_tqdm=True, report_to=[], **profile.hardware)
trainer = GRPOTrainer(profile.models["sft"], reward_len, config, train_dataset=load_tldr("train[:2]").map(summarize))
trainer.train()
model, tokenizer = load_model({str(tmp_path / "checkpoint-1")!r})
same = torch.equal(model.lm_head.weight, trainer.model.lm_head.weight)
print(trainer.model.device, same, model.lm_head.weight is model.model.embed_tokens.weight, len(generate(model, tokenizer, ["A"], 4)))
"""
    assert "elsewhere:0 True True 1" in run(code, **cache)
