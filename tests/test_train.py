"""The command line: the settings of notebook 04, clear errors, resuming, LoRA, two processes."""

import ast
import json
import os
import subprocess
import sys

import nbformat
import pytest
import torch
from safetensors.torch import load_file

from helpers import course, train
from helpers.models import load_model

SHORT = ["--max_steps", "4", "--save_steps", "2", "--max_completion_length", "8", "--per_device_train_batch_size", "4", "--num_generations", "4"]


def test_the_settings_are_those_of_notebook_04():
    book = nbformat.read(course.ROOT / "notebooks" / "04_train_with_grpo.ipynb", 4)
    (source,) = (cell.source for cell in book.cells if cell.cell_type == "code" and "settings = dict(" in cell.source)
    (call,) = (node.value for node in ast.parse(source).body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "settings")
    theirs = {item.arg: ast.literal_eval(item.value) for item in call.keywords if item.arg not in ("output_dir", "learning_rate")}
    assert theirs == train.SETTINGS
    config = train.parse([])[1]()
    assert config.learning_rate == course.profile().learning_rate
    assert all(getattr(config, name) == value for name, value in theirs.items())


def test_every_field_of_grpo_config_is_an_option():
    options, make_config = train.parse(["--reward", "len", "coverage", "--reward_weights", "1", "100", "--loss_type", "grpo", "--beta", "0.1"])
    config = make_config()
    assert options.reward == ["len", "coverage"]
    assert (config.reward_weights, config.loss_type, config.beta) == ([1, 100], "grpo", 0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rewards", "len"], "--rewards"),
        (["--reward", "length"], "choose from"),
        (["--learning_rate", "fast"], "invalid float value: 'fast'"),
        (["--num_generations", "3"], "num_generations"),
    ],
)
def test_a_wrong_option_is_named(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        train.parse(arguments)[1]()
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_it_trains_resumes_and_saves(tmp_path, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train.main([*SHORT, "--output_dir", str(whole), "--reward", "len", "rouge", "coverage"])
    assert "4 steps, processes: 1. The model is in" in capsys.readouterr().out
    train.main([*SHORT, "--output_dir", str(parts), "--reward", "len", "rouge", "coverage", "--resume", str(whole / "checkpoint-2")])
    assert [folder.name for folder in parts.glob("checkpoint-*")] == ["checkpoint-4"]  # steps 1 and 2 were not done again
    a, b = (load_file(folder / "final" / "model.safetensors") for folder in (whole, parts))
    before = load_file(f"{course.profile().models['sft']}/model.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], before[name]) for name in a)


def test_nothing_to_resume_from_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint in .*nowhere.*--resume out"):
        train.main(["--output_dir", str(tmp_path / "nowhere"), "--resume"])


def test_lora_trains_little_and_resumes(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    train.main([*SHORT, "--output_dir", str(first), "--lora", "4"])
    adapter = load_file(first / "final" / "adapter_model.safetensors")
    assert adapter and all("lora" in name for name in adapter)
    assert sum(weights.numel() for weights in adapter.values()) < 100_000  # of 1,116,800
    assert not (first / "final" / "model.safetensors").exists()
    train.main([*SHORT, "--output_dir", str(second), "--lora", "4", "--max_steps", "6", "--resume", str(first / "checkpoint-4")])
    assert [folder.name for folder in second.glob("checkpoint-*")] == ["checkpoint-6"]


def test_the_fast_sampler_is_used_where_asked_for(tmp_path, monkeypatch):
    from helpers import rollout

    seen = []
    generate = rollout.Sampler.generate
    monkeypatch.setattr(rollout.Sampler, "generate", lambda self, *arguments: seen.append(1) or generate(self, *arguments))
    train.main([*SHORT, "--output_dir", str(tmp_path), "--max_steps", "1", "--save_strategy", "no", "--fast"])
    assert len(seen) == 1
    with pytest.raises(ValueError, match="leave out --fast or --lora"):
        train.main([*SHORT, "--output_dir", str(tmp_path), "--fast", "--lora", "2"])


def test_resume_without_a_folder_takes_the_newest(tmp_path):
    train.main([*SHORT, "--output_dir", str(tmp_path)])
    model = load_model(course.profile().models["sft"])[0]
    assert train.find_checkpoint(tmp_path, "last", model) == str(tmp_path / "checkpoint-4")
    with pytest.raises(ValueError, match="of another model"):
        train.find_checkpoint(tmp_path, "last", torch.nn.Linear(2, 2))


def run(processes, *arguments):
    """`tests.two_processes` in so many processes: (exit code, what it said)."""
    launch = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--master_port=0", "--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"] if processes > 1 else []
    command = [sys.executable, *launch, "-m", "tests.two_processes", *map(str, arguments)]
    done = subprocess.run(command, cwd=course.ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same three steps by one process and by two; dapo, and with two also bnpo."""
    folder = tmp_path_factory.mktemp("runs")
    for processes, batch, loss_type in ((1, 8, "dapo"), (2, 4, "dapo"), (2, 4, "bnpo")):
        code, said = run(processes, folder / f"{loss_type}-{processes}", batch, loss_type)
        assert code == 0, said
    return folder


def test_the_documented_command_starts_two_processes(tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "helpers/accelerate/ddp.yaml", "--main_process_port", "0", "-m", "helpers.train"]
    arguments = [*SHORT, "--max_steps", "1", "--save_strategy", "no", "--output_dir", str(tmp_path)]
    done = subprocess.run([*launch, *arguments], cwd=course.ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "1 steps, processes: 2." in done.stdout, done.stdout + done.stderr


def weights(folder):
    return load_file(folder / "final" / "model.safetensors")


def test_two_processes_equal_one_with_twice_the_batch(runs):
    """And bnpo, which divides by the tokens of each process, does not."""
    one, two, other = (json.loads((runs / name / "log.json").read_text()) for name in ("dapo-1", "dapo-2", "bnpo-2"))
    assert len(one) == 3 and one[0]["grad_norm"] > 0.1 and one[-1]["kl"] > 1e-4
    assert [pytest.approx(entry, rel=1e-4, abs=1e-4) for entry in one] == two
    assert abs(other[0]["loss"] / one[0]["loss"] - 1) > 1e-3
    start = load_file(f"{course.profile().models['sft']}/model.safetensors")
    end, same, differs = (weights(runs / name) for name in ("dapo-1", "dapo-2", "bnpo-2"))
    moved, apart, bnpo = (sum((end[name] - model[name]).square().sum() for name in end).sqrt().item() for model in (start, same, differs))
    assert apart < 0.01 * moved and bnpo > 10 * apart


def test_a_killed_worker_ends_the_run_which_then_resumes(runs, tmp_path):
    code, said = run(2, tmp_path, 4, "dapo", "--die-at", 2)
    assert code != 0 and "SIGKILL" in said
    assert (tmp_path / "checkpoint-2").is_dir() and not (tmp_path / "final").exists()
    code, said = run(2, tmp_path, 4, "dapo", "--resume")
    assert code == 0, said
    a, b = weights(runs / "dapo-2"), weights(tmp_path)
    assert all(torch.equal(a[name], b[name]) for name in a)
