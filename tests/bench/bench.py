"""`make bench`: the tutorial's script at TRL's defaults against the course's settings, same model, data and machine, one after the other.

Prints a table with ratios and writes data/runs/bench.json. Options: --limit, the seconds after which an arm is stopped.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODEL, DATA = ROOT / "data" / "models" / "tiny-sft", ROOT / "data" / "tldr_train.jsonl"
GOAL = -20  # the reward to reach: 20 characters beside the target


def article(folder):
    """The tutorial's settings, TRL's defaults, and the one change without which no CPU starts: bf16=False."""
    from datasets import load_dataset
    from trl import GRPOConfig

    rows = load_dataset("json", data_files=str(DATA), split="train[:75]").map(lambda row: {"prompt": f"Summarize: {row['prompt']}\n\n"})
    args = GRPOConfig(output_dir=folder, learning_rate=1e-5, logging_steps=10, temperature=0.8, epsilon=0.2, save_steps=25, bf16=False, disable_tqdm=True)
    return rows, args


def course(folder):
    """Notebook 04's settings."""
    from helpers import course
    from helpers.tldr import load_tldr, summarize

    profile = course.start(seed=0)
    from trl import GRPOConfig

    settings = dict(learning_rate=profile.learning_rate, logging_steps=10, temperature=0.8, epsilon=0.2, save_steps=25, max_completion_length=300)
    return load_tldr("train[:75]").map(summarize), GRPOConfig(output_dir=folder, disable_tqdm=True, report_to=[], **settings, **profile.hardware)


def measure(arm, limit):
    """Train one arm in this process for at most `limit` seconds and return its figures."""
    with tempfile.TemporaryDirectory() as folder:
        rows, args = arm(folder)
        from transformers import TrainerCallback
        from trl import GRPOTrainer

        tokens, reached, begin = 0, None, time.time()

        def reward_len(completions, completion_ids, **kwargs):
            nonlocal tokens
            tokens += sum(map(len, completion_ids))
            return [float(-abs(200 - len(completion))) for completion in completions]

        class Watch(TrainerCallback):
            def on_log(self, args, state, control, logs, **kwargs):
                nonlocal reached
                if reached is None and logs.get("reward", GOAL) > GOAL:
                    reached = time.time() - begin

            def on_step_end(self, args, state, control, **kwargs):
                control.should_training_stop |= time.time() - begin > limit

        trainer = GRPOTrainer(str(MODEL), reward_len, args, train_dataset=rows, callbacks=[Watch()])
        begin = time.time()
        trainer.train()
        seconds = time.time() - begin
    reward = next(entry["reward"] for entry in reversed(trainer.state.log_history) if "reward" in entry)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10 / (2**10 if sys.platform == "darwin" else 1)
    return dict(steps=trainer.state.global_step, seconds=seconds, tokens_per_second=tokens / seconds, seconds_to_goal=reached, last_reward=reward, peak_mib=memory)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=float, default=300)
    parser.add_argument("--arm", choices=["article", "course"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        print("RESULT", json.dumps(measure(globals()[options.arm], options.limit)))
        return
    figures = {}
    for arm in ("article", "course"):  # a process each: threads and memory are the process's
        env = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "MKL_"))} | {"HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "tests.bench.bench", "--arm", arm, "--limit", str(options.limit)]
        out = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout
        figures[arm] = json.loads(out.rsplit("RESULT", 1)[1])
    a, b = figures["article"], figures["course"]
    slower = (a["seconds_to_goal"] or a["seconds"]) / b["seconds_to_goal"] if b["seconds_to_goal"] else None
    ratios = dict(seconds_per_step=a["seconds"] / a["steps"] / (b["seconds"] / b["steps"]), tokens_per_second=b["tokens_per_second"] / a["tokens_per_second"])
    ratios |= dict(seconds_to_goal=slower, goal_reached_by_article=a["seconds_to_goal"] is not None, peak_mib=a["peak_mib"] / b["peak_mib"])
    print(f"{'':20}{'(a) defaults':>14}{'(b) course':>14}")
    for name in a:
        print(f"{name:20}" + "".join(f"{'not reached' if arm[name] is None else format(arm[name], '.1f'):>14}" for arm in (a, b)))
    at_least = "" if ratios["goal_reached_by_article"] else "at least "
    goal = "(b) did not reach the goal" if slower is None else f"(b) reaches reward {GOAL} {at_least}{slower:.1f} times faster"
    print(f"{goal}; per step {ratios['seconds_per_step']:.1f} times; {ratios['tokens_per_second']:.1f} times the tokens a second")
    runs = ROOT / "data" / "runs"
    runs.mkdir(exist_ok=True)
    (runs / "bench.json").write_text(json.dumps(figures | {"ratios": ratios}, indent=1) + "\n")


if __name__ == "__main__":
    main()
