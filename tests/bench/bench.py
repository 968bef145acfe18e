"""`make bench`: two tables with ratios, each measured in one go on one machine; also written to data/runs/bench.json.

settings: the tutorial's script at TRL's defaults against the course's settings, same model and data, one after the other.
rollouts: `generate` against helpers/rollout.py in the same GRPO step, taking turns.
Options: --only, one of the two; --limit, the seconds after which an arm of the first is stopped.
"""

import argparse
import json
import os
import resource
import statistics
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


def rollouts(model, batch):
    """Seconds of generation and of a whole GRPO step, and tokens generated, for `generate` and for fast_rollout: medians of several steps each.

    The two take turns on the same prompts from the same seeds, after a pair that does not count. The learning rate is 0, or the lengths would change.
    """
    from helpers import course

    profile = course.start(seed=0)
    import torch
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from helpers.rewards import reward_len
    from helpers.rollout import fast_rollout
    from helpers.tldr import load_tldr, summarize

    steps = {"generate": [], "fast_rollout": []}
    pairs = 5 + 32 // batch  # the first does not count; more of the short ones

    class Turns(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            self.arm = "fast_rollout" if state.global_step % 2 else "generate"
            trainer.rollout_func = fast_rollout if self.arm == "fast_rollout" else None
            torch.manual_seed(state.global_step // 2)
            self.begin = time.perf_counter()

        def on_step_end(self, args, state, control, **kwargs):
            steps[self.arm].append(dict(generation=self.generation, step=time.perf_counter() - self.begin, tokens=self.tokens))

    turns = Turns()
    with tempfile.TemporaryDirectory() as folder:
        settings = dict(per_device_train_batch_size=batch, num_generations=8, max_completion_length=300, temperature=0.8, max_steps=2 * pairs)
        settings |= dict(learning_rate=0.0, report_to=[], disable_tqdm=True, save_strategy="no", logging_strategy="no")
        rows = load_tldr(f"train[:{batch // 8}]").map(summarize)  # one batch: every step has the same prompts
        trainer = GRPOTrainer(profile.models[model], reward_len, GRPOConfig(folder, **settings, **profile.hardware), train_dataset=rows, callbacks=[turns])
        generate = trainer._generate

        def timed(prompts):
            begin = time.perf_counter()
            out = generate(prompts)
            turns.generation, turns.tokens = time.perf_counter() - begin, sum(map(len, out[1]))
            return out

        trainer._generate = timed
        trainer.train()
    return {arm: {name: statistics.median(step[name] for step in seen[1:]) for name in seen[0]} for arm, seen in steps.items()}


def run(*arguments):
    """The figures that this script prints with `arguments`, from a process of its own: threads and memory are the process's."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "MKL_"))} | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "tests.bench.bench", *map(str, arguments)]
    out = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(out.rsplit("RESULT", 1)[1])


def compare_settings(limit):
    """The first table; returns its figures."""
    figures = {arm: run("--arm", arm, "--limit", limit) for arm in ("article", "course")}
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
    return figures | {"ratios": ratios}


def compare_rollouts():
    """The second table; returns its figures. The arms sample different tokens, so the ratios are of seconds per token generated."""
    figures = []
    print(f"\n{'':26}{'generation, ms':>20}{'step, ms':>20}{'tokens':>16}{'ratio per token':>24}")
    print(f"{'':26}{'generate':>11}{'fast':>9}{'generate':>11}{'fast':>9}{'generate':>9}{'fast':>7}{'generation':>15}{'step':>9}")
    for model in ("sft", "grpo-length"):
        for batch in (8, 32):
            arms = run("--arm", "rollouts", "--model", model, "--batch", batch)
            a, b = arms["generate"], arms["fast_rollout"]
            ratios = {name: a[name] / a["tokens"] / (b[name] / b["tokens"]) for name in ("generation", "step")}
            figures.append(dict(model=model, completions=batch, ratios=ratios, **arms))
            line = "".join(f"{1000 * a[name]:11.0f}{1000 * b[name]:9.0f}" for name in ("generation", "step")) + f"{a['tokens']:9.0f}{b['tokens']:7.0f}"
            print(f"{f'tiny-{model}, {batch}':26}{line}{ratios['generation']:15.2f}{ratios['step']:9.2f}")
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["settings", "rollouts"])
    parser.add_argument("--limit", type=float, default=300)
    parser.add_argument("--arm", choices=["article", "course", "rollouts"], help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        print("RESULT", json.dumps(rollouts(options.model, options.batch) if options.arm == "rollouts" else measure(globals()[options.arm], options.limit)))
        return
    path = ROOT / "data" / "runs" / "bench.json"
    figures = json.loads(path.read_text()) if path.is_file() else {}
    if options.only != "rollouts":
        figures |= compare_settings(options.limit)
    if options.only != "settings":
        figures |= {"rollouts": compare_rollouts()}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
