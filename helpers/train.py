"""`python -m helpers.train`: the run of notebook 04 outside of a notebook, so that a terminal, a queue or `accelerate launch` can start it.

python -m helpers.train                                        100 steps, rewarded for 200 characters
python -m helpers.train --reward len coverage --beta 0.1       two rewards, a leash, and any other field of TRL's GRPOConfig
python -m helpers.train --resume                               goes on from the last checkpoint
COURSE_PROFILE=gpu python -m helpers.train --lora 16           Qwen2-0.5B-Instruct and trl-lib/tldr, with LoRA
accelerate launch --config_file helpers/accelerate/ddp.yaml -m helpers.train   two processes; beside it ZeRO-2, ZeRO-3 and FSDP
"""

import argparse
from pathlib import Path

from helpers import course

# The settings of notebook 04, which explains each; `learning_rate`, `output_dir` and the hardware's are added in `main`.
SETTINGS = dict(
    temperature=0.8,
    epsilon=0.2,
    logging_steps=10,
    save_steps=25,
    num_generations=8,
    per_device_train_batch_size=8,
    num_train_epochs=3,
    max_steps=100,
    max_completion_length=300,
    save_total_limit=9,
    disable_tqdm=True,
    report_to=[],
    seed=0,
)
REWARDS = ("len", "coverage", "format", "toxicity", "rouge", "fluency")  # `reward_…` of helpers/rewards.py


def make_trainer(model, reward, rows, config, lora=0, fast=False):
    """A `GRPOTrainer`. model: a folder or Hub id; reward: names out of `REWARDS`; lora: the rank of LoRA's matrices, 0 to train all weights.

    fast: sample with `helpers.rollout`. Raises ValueError for fast with lora: it reads the weights without LoRA's.
    """
    if lora and fast:
        raise ValueError("--fast reads a model's weights as they are and would sample without LoRA's matrices; leave out --fast or --lora.")
    from trl import GRPOTrainer

    from helpers import rewards
    from helpers.rollout import fast_rollout

    if "rouge" in reward:  # TRL does not pass the column `completion` on to rewards
        rows = rows.rename_column("completion", "reference")
    peft_config = course.lora_config(lora) if lora else None
    functions = [getattr(rewards, f"reward_{name}") for name in reward]
    return GRPOTrainer(model, functions, config, train_dataset=rows, peft_config=peft_config, rollout_func=fast_rollout if fast else None)


def find_checkpoint(output_dir, resume, model):
    """The checkpoint that `--resume` means: "last", the newest of `output_dir`, or a folder. Raises FileNotFoundError without one, ValueError for another model's."""
    from transformers.trainer_utils import get_last_checkpoint

    from helpers.models import check_checkpoint

    folder = resume if resume != "last" else Path(output_dir).is_dir() and get_last_checkpoint(str(output_dir))
    if not folder:
        raise FileNotFoundError(f"there is no checkpoint in {output_dir} to resume from; leave --resume out to start anew, or name the folder: --resume path/to/checkpoint-50.")
    return str(check_checkpoint(folder, model))


def parse(arguments=None):
    """Our options, and a function that makes a `GRPOConfig` from all others. A wrong one ends the program with a message."""
    models = course.profile().models
    parser = argparse.ArgumentParser(prog="python -m helpers.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    ours = " ".join(f"--{name} {value}" for name, value in SETTINGS.items() if value != [])
    parser.epilog = f"Every field of TRL's GRPOConfig is an option, too. Ours, where not TRL's default: {ours} --output_dir {course.RUNS / 'train'}"
    parser.add_argument(
        "--reward", nargs="+", default=["len"], choices=REWARDS, metavar="NAME", help=f"one or more of {', '.join(REWARDS)}; their weights: --reward_weights (default: len)"
    )
    parser.add_argument("--model", default="sft", help=f"{', '.join(models)}, a folder or a Hub id (default: sft)")
    parser.add_argument("--data", default="train[:75]", help="a split or a slice of one (default: train[:75])")
    parser.add_argument("--data_path", metavar="FILE", help="JSON Lines with prompt and completion, in place of the profile's data")
    parser.add_argument(
        "--lora", type=int, default=course.profile().lora, metavar="RANK", help="train LoRA matrices of this rank, with ten times the learning rate, not all weights"
    )
    parser.add_argument("--fast", action="store_true", help="sample with helpers/rollout.py: only the speed changes, on a CPU")
    parser.add_argument("--resume", nargs="?", const="last", metavar="FOLDER", help="go on from this checkpoint, or from the last one in --output_dir")
    options, others = parser.parse_known_args(arguments)

    def make_config():
        from transformers import HfArgumentParser
        from trl import GRPOConfig

        profile = course.profile().with_lora(options.lora)
        configs = HfArgumentParser(GRPOConfig, prog=parser.prog, allow_abbrev=False)
        configs.set_defaults(**profile.fit(SETTINGS | dict(learning_rate=profile.learning_rate, output_dir=str(course.RUNS / "train")), announce=False))
        try:
            return configs.parse_args_into_dataclasses(others)[0]
        except ValueError as error:  # an unknown option, or values that do not go together
            parser.error(str(error))

    return options, make_config


def main(arguments=None):
    options, make_config = parse(arguments)
    profile = course.start(seed=0)
    config = make_config()
    model = profile.models.get(options.model, options.model)
    profile.with_lora(options.lora).announce(vars(config), model)
    from helpers.tldr import load_tldr, summarize

    rows = load_tldr(options.data, path=options.data_path).map(summarize)
    trainer = make_trainer(model, options.reward, rows, config, options.lora, options.fast)
    checkpoint = find_checkpoint(config.output_dir, options.resume, trainer.model) if options.resume else None
    trainer.train(resume_from_checkpoint=checkpoint)
    final = Path(config.output_dir) / "final"
    trainer.save_model(str(final))
    if trainer.is_world_process_zero():
        print(f"{trainer.state.global_step} steps, processes: {trainer.accelerator.num_processes}. The model is in {final}.")


if __name__ == "__main__":
    main()
