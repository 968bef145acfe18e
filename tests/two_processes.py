"""Run by test_train.py, alone or under `torch.distributed.run`: three steps of GRPO on canned completions, so that one process and two see the same data.

python -m tests.two_processes OUTPUT_DIR COMPLETIONS_PER_PROCESS LOSS_TYPE [--die-at STEP] [--resume]
"""

import argparse
import json
import os
import signal
from pathlib import Path

from helpers import course

G = 4


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("batch", type=int)
    parser.add_argument("loss_type")
    parser.add_argument("--die-at", type=int)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    profile = course.start(seed=0)

    from trl import GRPOConfig, GRPOTrainer

    from helpers.rewards import reward_len
    from helpers.tldr import load_tldr, summarize
    from helpers.train import find_checkpoint

    rows = load_tldr("train[:12]").map(summarize)
    answers, place = dict(zip(rows["prompt"], rows["completion"], strict=True)), {prompt: number for number, prompt in enumerate(rows["prompt"])}

    def canned(prompts, trainer):
        """For each prompt its human summary, cut at another length for each completion of the group, and for each prompt."""
        prompt_ids, _, _ = trainer._tokenize_prompts(prompts)
        whole = [trainer.processing_class(answers[prompt])["input_ids"] for prompt in prompts]
        completion_ids = [ids[: 2 + place[prompt] + 4 * (number % G)] for number, (ids, prompt) in enumerate(zip(whole, prompts, strict=True))]
        return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None}

    def reward(completions, trainer_state, **kwargs):
        if trainer_state.global_step == options.die_at and os.environ.get("RANK") == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return reward_len(completions)

    settings = dict(per_device_train_batch_size=options.batch, num_generations=G, max_completion_length=30, learning_rate=1e-4, loss_type=options.loss_type, beta=0.1)
    settings |= dict(max_steps=3, logging_steps=1, save_steps=1, report_to=[], disable_tqdm=True, ddp_timeout=60)
    config = GRPOConfig(str(options.folder), **settings, **profile.hardware)
    trainer = GRPOTrainer(profile.models["sft"], reward, config, train_dataset=rows, rollout_func=canned)
    trainer.train(resume_from_checkpoint=find_checkpoint(options.folder, "last", trainer.model) if options.resume else None)
    trainer.save_model(str(options.folder / "final"))
    if trainer.is_world_process_zero():
        keep = ("step", "loss", "grad_norm", "reward", "kl", "entropy", "completions/mean_length")
        log = [{name: entry[name] for name in keep} for entry in trainer.state.log_history if "loss" in entry]
        (options.folder / "log.json").write_text(json.dumps(log))


if __name__ == "__main__":
    main()
