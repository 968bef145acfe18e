"""helpers/accelerate: accelerate takes each file, and the trainer is told what it says; and every command line in the README can be parsed."""

import os
import re
import shlex
import sys
from types import SimpleNamespace

import pytest
import torch.distributed.run
import yaml
from accelerate.commands import launch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import StateDictType
from trl import GRPOConfig
from trl.scripts.vllm_serve import make_parser

from helpers import course, train

FILES = [f"helpers/accelerate/{name}.yaml" for name in ("ddp", "zero2", "zero3", "fsdp")]


@pytest.fixture
def started(monkeypatch):
    """`accelerate launch` with these arguments, stopped before it starts a process: (torch's arguments, the environment of the processes)."""
    seen = []
    monkeypatch.chdir(course.ROOT)
    monkeypatch.setattr(torch.distributed.run, "run", lambda args: seen.append((args, dict(os.environ))))
    monkeypatch.setattr(launch, "is_deepspeed_available", lambda: True)  # the launcher itself does without
    monkeypatch.setitem(sys.modules, "deepspeed.launcher.runner", SimpleNamespace(DEEPSPEED_ENVIRONMENT_NAME=""))

    def start(*arguments):
        launch.launch_command(launch.launch_command_parser().parse_args([*arguments, "-m", "helpers.train"]))
        return seen.pop()

    return start


def test_there_is_no_other_file():
    assert sorted(FILES) == sorted(str(path.relative_to(course.ROOT)) for path in (course.ROOT / "helpers" / "accelerate").iterdir())


@pytest.mark.parametrize("file", FILES)
def test_accelerate_knows_every_key(file):
    """Of the file it says so itself; a misspelt key inside of deepspeed_config or fsdp_config it would pass over."""
    load_config_from_file(str(course.ROOT / file))
    known = vars(launch.launch_command_parser().parse_args(["-m", "helpers.train"]))
    inside = [name for value in yaml.safe_load((course.ROOT / file).read_text()).values() if isinstance(value, dict) for name in value]
    assert set(inside) <= set(known)


@pytest.mark.parametrize("file", FILES)
def test_each_file_starts_the_processes_it_names(file, started):
    args, env = started("--config_file", file, "--main_process_port", "0")
    assert (args.nproc_per_node, args.nnodes, args.module, args.training_script) == ("2", "1:1", True, "helpers.train")
    assert started("--config_file", file, "--main_process_port", "0", "--num_processes", "8")[0].nproc_per_node == "8"
    used = [name for name in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP") if env.get(name) == "true"]
    assert used == ([] if "ddp" in file else ["ACCELERATE_USE_FSDP"] if "fsdp" in file else ["ACCELERATE_USE_DEEPSPEED"])


@pytest.mark.parametrize("file", FILES)
def test_several_machines(file, started):
    args, _ = started("--config_file", file, "--num_machines", "2", "--machine_rank", "1", "--main_process_ip", "10.0.0.1", "--main_process_port", "29500", "--num_processes", "16")
    assert (args.nproc_per_node, args.nnodes, args.node_rank, args.rdzv_endpoint) == ("8", "2", 1, "10.0.0.1:29500")


@pytest.mark.parametrize("precision", [dict(bf16=True), dict(bf16=False)])
@pytest.mark.parametrize("file", FILES)
def test_the_precision_is_that_of_grpo_config(file, precision, started, monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", started("--config_file", file, "--main_process_port", "0")[1]["ACCELERATE_MIXED_PRECISION"])
    assert GRPOConfig(str(tmp_path), use_cpu=True, **precision).mixed_precision == ("bf16" if precision["bf16"] else "no")


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_is_told(stage, started, monkeypatch):
    monkeypatch.setattr(os, "environ", started("--config_file", f"helpers/accelerate/zero{stage}.yaml", "--main_process_port", "0")[1])
    plugin = DeepSpeedPlugin()
    assert (plugin.zero_stage, plugin.zero3_init_flag, plugin.zero3_save_16bit_model) == (stage, stage == 3, stage == 3)
    assert plugin.gradient_accumulation_steps == plugin.gradient_clipping == "auto"  # filled in from GRPOConfig


def test_fsdp_is_told(started, monkeypatch):
    monkeypatch.setattr(os, "environ", started("--config_file", "helpers/accelerate/fsdp.yaml", "--main_process_port", "0")[1])
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward, plugin.cpu_ram_efficient_loading, plugin.activation_checkpointing) == (2, True, True, False)
    assert plugin.state_dict_type == StateDictType.FULL_STATE_DICT and plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"


def commands():
    """The README's indented lines that start a training or serve a model, without the variables in front."""
    lines = re.findall(r"^    (.*(?:helpers\.train|accelerate launch|vllm-serve).*)$", (course.ROOT / "README.md").read_text(), re.MULTILINE)
    return [re.sub(r"^(\w+=\S+ )*", "", line).replace(".venv-vllm/", ".venv/") for line in lines]


@pytest.mark.parametrize("line", commands())
def test_every_command_in_the_readme_is_understood(line, monkeypatch, tmp_path):
    program, *arguments = shlex.split(line)
    if program == ".venv/bin/trl":
        script, rest = make_parser().parse_args_and_config(arguments[1:], return_remaining_strings=True)
        assert arguments[0] == "vllm-serve" and script.model == "Qwen/Qwen2-0.5B-Instruct" and rest == []
        return
    if program == ".venv/bin/accelerate":
        assert arguments[0] == "launch"
        args = launch.launch_command_parser().parse_args(arguments[1:])
        assert args.config_file in FILES and args.module and args.training_script == "helpers.train"
        arguments = args.training_script_args
    else:
        assert program == ".venv/bin/python" and arguments[:2] == ["-m", "helpers.train"]
        arguments = arguments[2:]
    options, make_config = train.parse([*arguments, "--output_dir", str(tmp_path)])
    config = make_config()
    assert options.model in course.profile().models
    assert config.use_vllm == ("--use_vllm" in arguments)


def test_the_readme_has_these_commands():
    said = "\n".join(commands())
    assert len(commands()) >= 5 and all(word in said for word in ("--lora", "ddp.yaml", "colocate", "--vllm_mode server", "vllm-serve"))
