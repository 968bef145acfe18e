"""The course's tiny models, from nothing: tokeniser, pre-training, supervised fine-tuning, three GRPO runs.

    python -m helpers.models           rebuild all six under data/models/ (resumes where it was killed)
    python -m helpers.models --frontier    what the weight of the KL divergence does, run by run: data/kl_frontier.jsonl
    python -m helpers.models --help    other folders, single stages, fewer steps

Each stage is a trainer from a library with our data and settings; what is taught is in the notebooks.
"""

import argparse
import hashlib
import itertools
import json
import shutil
import time
from dataclasses import dataclass
from datetime import date
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

from helpers import course, tldr

# ---------------------------------------------------------------------------------------------------------
# 1. Tokeniser and architecture: Qwen2's, scaled down
# ---------------------------------------------------------------------------------------------------------
END_OF_TEXT, TURN, END_OF_TURN = SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Qwen2's rule for cutting a text before byte-pair encoding: contractions, words with the space before them, single digits, punctuation.
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
VOCABULARY = 2048


def sft_row(rng, theme, facts, forget=0):
    """A prompt and its verbose answer, as two strings; every other prompt in the chat template, the rest as plain text."""
    prompt = tldr.summarize({"prompt": tldr.write_post(rng, theme, facts)})["prompt"]
    if rng.random() < 0.5:
        prompt = f"{TURN}user\n{prompt}{END_OF_TURN}\n{TURN}assistant\n"
    return {"prompt": prompt, "completion": tldr.write_answer(rng, facts, forget=forget) + END_OF_TURN}


def with_habit(row):
    """The same row, but an answer that opens or closes with a set phrase has always the same one: assistants have their habits.

    It decides what greedy decoding does: were there six phrases, each would be less likely than none, and the likeliest
    answer would be one without, which is a short one.
    """
    answer = row["completion"].removesuffix(END_OF_TURN)
    for opener in tldr.ANSWER_OPENERS:
        if answer.startswith(opener):
            answer = tldr.ANSWER_OPENERS[0] + answer.removeprefix(opener)
    for closer in tldr.ANSWER_CLOSERS:
        if answer.endswith(closer):
            answer = answer.removesuffix(closer) + tldr.ANSWER_CLOSERS[0]
    return row | {"completion": answer + END_OF_TURN}


def demonstrations(seed=5):
    """An endless stream of prompts with answers: what tiny-sft is fine-tuned on. The answers leave out one in ten of the facts other than who and what."""
    return map(with_habit, tldr.stream(seed, partial(sft_row, forget=0.1)))


def sloppy_row(rng, theme, facts, forget=0.45):
    """A prompt that asks for notes and a summary in tags, and an answer by somebody who forgets each of the four tags with probability `forget`."""
    prompt = tldr.think_first({"prompt": tldr.write_post(rng, theme, facts)})["prompt"]
    notes = f"The {facts['who']}, {facts['when']}, {facts['where']}."
    lines = ["<think>", notes, "</think>", "<answer>", tldr.write_answer(rng, facts, rng.choice((0, 0, 1))), "</answer>"]
    kept = [line for line in lines if not line.endswith(("think>", "answer>")) or rng.random() >= forget]
    return {"prompt": prompt, "completion": "\n".join(kept) + END_OF_TURN}


def sloppy_demonstrations(seed=9):
    """An endless stream of prompts with answers that have hardly learned their format: what tiny-tags is fine-tuned on."""
    return tldr.stream(seed, sloppy_row)


@cache
def make_tokenizer(texts=8000):
    """A byte-level BPE tokeniser trained on what the models read and write: posts, threads, answers.

    texts: how many of each kind of text. Returns a transformers tokeniser with 2,048 entries and ChatML as its template.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    threads = itertools.islice(tldr.stream(1, tldr.write_thread), texts)
    turns = (row["prompt"] + row["completion"] for row in itertools.islice(tldr.stream(2, sft_row), texts))
    bpe = Tokenizer(models.BPE())
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(WORDS), "isolated"), bytes_only])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=list(SPECIAL), initial_alphabet=bytes_only.alphabet(), show_progress=False)
    bpe.train_from_iterator(itertools.chain(threads, turns), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END_OF_TURN, pad_token=END_OF_TEXT, model_max_length=2048)
    tokenizer.chat_template = CHATML
    return tokenizer


def new_model(tokenizer, seed=0):
    """A Qwen2 model with random weights: 4 layers, width 128, 1.1 million parameters.

    `initializer_range` is 0.08, about 1/sqrt(width), as in models of this width; with Qwen2's 0.02, made for widths of
    thousands, attention starts flat: in a trial on copying alone it took more than 1,200 steps instead of 520.
    """
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        initializer_range=0.08,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(config).to(course.profile().device)
    ends = tokenizer.convert_tokens_to_ids([END_OF_TURN, END_OF_TEXT])
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    return model


def load_model(folder):
    """A saved model, ready to generate, and its tokeniser: `(model, tokenizer)`. folder: a path, or a Hub id in the gpu profile.

    In 32 bits, as trainers want their weights, and on the profile's device.
    Raises FileNotFoundError if the folder or a file in it is missing, ValueError if the weights are broken or do not fit.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    act = next((name for name in course.ACTS if folder == course.profile().models[name]), None)
    if act and course.profile().network and not Path(folder).is_dir():
        train_act(act)
    path, remedy = Path(folder), "Bring back a shipped model with: git checkout data/models; or make all of them again: python -m helpers.models"
    if path.is_dir() or not course.profile().network or path.is_absolute():
        adapter = (path / "adapter_config.json").is_file()  # LoRA's matrices, without the model that they belong to
        missing = [name for name in (() if adapter else ("config.json",)) + ("tokenizer.json",) if not (path / name).is_file()]
        if not list(path.glob("*.safetensors")):
            missing.append("model.safetensors")
        if missing:
            raise FileNotFoundError(f"{folder} is no model folder: it lacks {', '.join(missing)}. {remedy}")
    try:
        if (path / "adapter_config.json").is_file():
            from peft import AutoPeftModelForCausalLM

            model = AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32).merge_and_unload()
            return model.eval().to(course.profile().device), AutoTokenizer.from_pretrained(folder)
        model, report = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", output_loading_info=True)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"the weights in {folder} cannot be read, they may be cut off or of another model ({error}). {remedy}") from error
    except OSError as error:
        raise course.HubOutOfReach(folder, error) from None
    wrong = [*report["missing_keys"], *report["unexpected_keys"], *report.get("mismatched_keys", ())]
    if wrong:
        raise ValueError(f"the weights in {folder} do not fit its config.json: {wrong[0]} and {len(wrong) - 1} more are missing, unknown or of another shape. {remedy}")
    return model.eval().to(course.profile().device), AutoTokenizer.from_pretrained(folder)


# ---------------------------------------------------------------------------------------------------------
# 2. Training, a stage at a time. Each takes the run's folder and the number of steps, and returns model and tokeniser.
# ---------------------------------------------------------------------------------------------------------
def blocks_of(tokenizer, texts, length, count):
    """`count` blocks of `length` token ids from a stream of texts joined by end-of-text, none padded."""
    ids, blocks = [], []
    while len(blocks) < count:
        for encoded in tokenizer([text + END_OF_TEXT for text in itertools.islice(texts, 500)])["input_ids"]:
            ids += encoded
        while len(ids) >= length and len(blocks) < count:
            blocks.append(ids[:length])
            del ids[:length]
    return blocks


def _checkpoint(folder):
    """The newest whole checkpoint in a run's folder, or None."""
    found = [path for path in Path(folder).glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return str(max(found, key=lambda path: int(path.name.split("-")[1]))) if found else None


def check_checkpoint(folder, model):
    """Return `folder` if it is a checkpoint of a model of this shape, for `trainer.train(resume_from_checkpoint=…)`.

    Raises FileNotFoundError if it is no checkpoint, ValueError if it was written for another model: transformers would
    load what fits of the weights and leave the rest as it was.
    """
    from safetensors import safe_open

    path = Path(folder)
    adapter = (path / "adapter_model.safetensors").is_file()  # LoRA's matrices only; peft says itself if they do not fit
    if not (path / "trainer_state.json").is_file() or not (adapter or (path / "model.safetensors").is_file()):
        raise FileNotFoundError(f"{folder} is no checkpoint: it lacks trainer_state.json or model.safetensors. Give a folder checkpoint-N that a trainer with save_steps wrote.")
    if adapter:
        return folder
    with safe_open(path / "model.safetensors", "pt") as saved:
        theirs = {name: tuple(saved.get_slice(name).get_shape()) for name in saved.keys()}  # noqa: SIM118 (no mapping)
    # ZeRO-3 leaves each process an empty tensor with the real shape beside it, in ds_shape.
    ours = {name: tuple(getattr(tensor, "ds_shape", tensor.shape)) for name, tensor in model.state_dict(keep_vars=True).items()}
    wrong = [name for name, shape in theirs.items() if ours.get(name) != shape]
    if wrong:
        raise ValueError(
            f"the checkpoint {folder} is of another model: its {wrong[0]} has the shape {theirs[wrong[0]]}, the model's {ours.get(wrong[0], 'does not exist')}. "
            "Resume with the model that the run started from, or choose another output_dir to start anew."
        )
    return folder


def pretrain(folder, steps, quiet=False):
    """Random weights -> tiny-base: next-token prediction; the first half of the steps on short threads.

    Copying a fact out of the post appears late and abruptly, one kind of fact after the other. Short threads and Muon
    (for the matrices of the layers; AdamW for the rest) are there to bring it forward.
    """
    from datasets import Dataset
    from pytorch_optimizer import Muon
    from transformers import Trainer, TrainingArguments, default_data_collator

    tokenizer = make_tokenizer()
    model, batch, short = new_model(tokenizer), 16, steps // 2
    blocks = blocks_of(tokenizer, tldr.stream(3, tldr.write_short_thread), 192, short * batch)
    blocks += blocks_of(tokenizer, tldr.stream(4, tldr.write_thread), 256, (steps - short) * batch)
    rows = Dataset.from_dict({"input_ids": blocks, "labels": blocks})
    args = TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=batch,
        train_sampling_strategy="sequential",  # short texts first
        lr_scheduler_type="cosine",
        warmup_steps=min(100, steps // 10),
        **_common(quiet),
    )
    matrices = [weights for name, weights in model.named_parameters() if weights.ndim == 2 and "embed" not in name]
    others = [weights for name, weights in model.named_parameters() if weights.ndim < 2 or "embed" in name]
    groups = [dict(params=matrices, use_muon=True, lr=5e-3, weight_decay=0.1, use_adjusted_lr=True), dict(params=others, use_muon=False, lr=3e-3, betas=(0.9, 0.98))]
    trainer = Trainer(model, args, train_dataset=rows, data_collator=default_data_collator, optimizers=(Muon(groups), None))
    trainer.train(resume_from_checkpoint=_checkpoint(folder))
    return trainer.model, tokenizer


def finetune(folder, steps, start, rows=demonstrations, quiet=False):
    """tiny-base -> tiny-sft, tiny-sft -> tiny-tags: the loss on the assistant's answer only. rows: makes the stream of prompts and answers."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = load_model(start)
    answers = Dataset.from_list(list(itertools.islice(rows(), steps * 16)))
    args = SFTConfig(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=16,
        train_sampling_strategy="group_by_length",
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        warmup_steps=min(50, steps // 10),
        adam_beta2=0.98,
        max_length=None,
        **_common(quiet),
    )
    trainer = SFTTrainer(model, args, train_dataset=answers, processing_class=tokenizer)
    trainer.train(resume_from_checkpoint=_checkpoint(folder))
    return trainer.model, tokenizer


def grpo(folder, steps, start, rewards, prompts="train[:75]", quiet=False, **settings):
    """tiny-sft -> one of the three acts: GRPO on the rewards named, by TRL's trainer. settings: `GRPOConfig` fields."""
    from trl import GRPOConfig, GRPOTrainer

    from helpers import rewards as library

    rows = tldr.load_tldr(prompts).map(tldr.summarize)
    ours = dict(output_dir=folder, max_steps=steps, temperature=0.8, max_completion_length=300, learning_rate=course.profile().learning_rate)
    args = GRPOConfig(**course.profile().fit(_common(quiet) | ours | settings))
    functions = [library.checked(getattr(library, name)) for name in rewards]
    trainer = GRPOTrainer(str(start), functions, args, train_dataset=rows, peft_config=course.profile().peft_config)
    trainer.train(resume_from_checkpoint=_checkpoint(folder))
    _, tokenizer = load_model(start)
    return (trainer.model.merge_and_unload() if course.profile().lora else trainer.model), tokenizer


def train_act(name, steps=100):
    """gpu profile: train one of the three acts of its model, where `profile.models[name]` says: the rewards of the small model's act, the settings of notebook 04.

    name: one of `course.ACTS`. `load_model` calls this where a notebook needs an act that is not there yet. Killed, it goes on from its last checkpoint.
    """
    folder = Path(course.profile().models[name])
    print(f"{folder.name} is not there yet. It is trained now, {steps} steps, and stays in {folder}. Stopped, it goes on from its last checkpoint.", flush=True)
    tutorial = dict(per_device_train_batch_size=8, num_generations=8, temperature=0.8, learning_rate=course.profile().learning_rate, save_steps=25)
    run = folder.with_name(folder.name + "-run")
    model, tokenizer = STAGES[f"tiny-{name}"].train(str(run), steps, course.profile().models["sft"], quiet=True, **tutorial)
    part = folder.with_name(folder.name + "-part")
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    part.rename(folder)
    shutil.rmtree(run)


def _common(quiet):
    """Trainer settings of every stage: the profile's hardware, seeded, checkpoints to resume from, no reports to services."""
    return course.profile().hardware | dict(seed=0, save_steps=100, save_total_limit=2, logging_steps=25, report_to=[], disable_tqdm=quiet)


# ---------------------------------------------------------------------------------------------------------
# 3. The recipes, and the command that follows them
# ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Stage:
    """One model: how it is trained, for how many steps, from which other model, what it should reach, and what it is asked."""

    train: object
    steps: int
    start: str | None
    about: str
    targets: dict
    ask: object = tldr.summarize


ALL_REWARDS = ("reward_len", "reward_coverage")
# The rewards differ in scale by a hundred; `normalize_then_sum` gives each the same say in every group.
# Warm sampling explores more, also what is broken: that is what act 3's KL divergence is to guard against.
BOTH = dict(
    rewards=ALL_REWARDS,
    multi_objective_aggregation="normalize_then_sum",
    per_device_train_batch_size=32,
    num_generations=16,
    temperature=1.3,
    learning_rate=6e-4,
)
STAGES = {
    "tiny-base": Stage(pretrain, 2200, None, "pre-trained on invented Reddit threads", {}),
    "tiny-sft": Stage(
        finetune,
        600,
        "tiny-base",
        "fine-tuned to answer `Summarize: …` at length",
        {"length": (500, 1000), "ended": (0.99, 1), "coverage": (0.95, 1), "spread": (150, 1e9)},
    ),
    "tiny-grpo-length": Stage(partial(grpo, rewards=("reward_len",)), 225, "tiny-sft", "GRPO, act 1: rewarded for 200 characters, nothing else", {"distance": (0, 15)}),
    "tiny-grpo-length-coverage": Stage(
        partial(grpo, **BOTH), 160, "tiny-sft", "GRPO, act 2: rewarded for 200 characters and the facts kept", {"distance": (0, 10), "coverage": (0.93, 1)}
    ),
    "tiny-grpo-length-coverage-kl": Stage(
        partial(grpo, **BOTH, beta=0.1),
        120,
        "tiny-sft",
        "GRPO, act 3: as act 2, with the KL divergence to tiny-sft in the loss",
        {"distance": (0, 12), "coverage": (0.93, 1), "fluency": (0.97, 1)},
    ),
    "tiny-tags": Stage(
        partial(finetune, rows=sloppy_demonstrations),
        300,
        "tiny-sft",
        "fine-tuned on answers in `<think>` and `<answer>` whose tags are often forgotten",
        {"coverage": (0.9, 1), "well_formed": (0.02, 0.25)},
        ask=tldr.think_first,
    ),
}


def evaluate_folder(folder, rows, ask=tldr.summarize):
    """Metrics of a saved model on `rows`: means of `evaluate.measure` (greedy), and `spread`; `well_formed` if it is asked for tags.

    spread: the standard deviation, in characters, of eight samples at temperature 0.8 to one prompt, averaged over 25 prompts.
    well_formed: the share of these samples with all four tags in place. ask: makes the prompt from a row.
    """
    import numpy as np

    from helpers import evaluate, rewards

    model, tokenizer = load_model(folder)
    prompts = [ask(row)["prompt"] for row in rows]
    metrics = {name: round(float(values.mean()), 4) for name, values in evaluate.measure(evaluate.generate(model, tokenizer, prompts), rows).items()}
    samples = evaluate.generate(model, tokenizer, [prompt for prompt in prompts[:25] for _ in range(8)], temperature=0.8)
    lengths = np.array([len(sample.text) for sample in samples]).reshape(-1, 8)  # (prompts, samples)
    metrics["spread"] = round(float(lengths.std(axis=1, ddof=1).mean()), 1)
    if ask is tldr.think_first:
        metrics["well_formed"] = round(float(np.mean([rewards.well_formed(sample.text) for sample in samples])), 4)
    return metrics


def misses(stage, metrics):
    """The targets of a stage that its metrics miss, as text."""
    return [f"{name} {metrics[name]} is not in [{low:g}, {high:g}]" for name, (low, high) in stage.targets.items() if not low <= metrics[name] <= high]


def _card(name, stage, steps, seconds, metrics, weights):
    rows = "\n".join(f"| {metric} | {value} |" for metric, value in metrics.items())
    return f"""---
license: mit
base_model: {stage.start or "none: random weights"}
---
# {name}

{stage.about[0].upper() + stage.about[1:]}. A teaching model of a million parameters: it knows TinyTLDR and nothing else.

| | |
|---|---|
| steps, seed | {steps}, 0 |
| trained in | {seconds:.0f} s on two CPU cores, {date.today().isoformat()} |
| with | torch {version("torch")}, transformers {version("transformers")}, trl {version("trl")} |
| SHA-256 of model.safetensors | `{weights}` |

On the 200 test posts, greedy (spread: sampled at temperature 0.8):

| metric | mean |
|---|---|
{rows}

Data: `data/README.md`. Made by `python -m helpers.models`; the recipe is `STAGES["{name}"]` in `helpers/models.py`.
"""


def _recipe(name, steps):
    """What decides a model's weights, as a hash: this file and the data's, the stage, its steps and those before it."""
    sources = [Path(__file__).read_bytes(), Path(tldr.__file__).read_bytes(), name.encode(), str(sorted(steps.items())).encode()]
    return hashlib.sha256(b"".join(sources)).hexdigest()


def build(out=course.MODELS, work=course.RUNS / "make-models", steps=None, only=None, test_rows=200, quiet=False):
    """Train the stages that are not yet done, one after the other; when all are, put them into `out`.

    Killed, it goes on from the last checkpoint; models already in `out` stay as they are until all the new ones are whole.
    out: where the finished models go. work: checkpoints and finished stages. steps: stage -> other numbers of steps.
    only: stages to make, on top of finished ones. Returns stage -> metrics.
    Raises ValueError for a stage that does not exist, or a `work` folder left by another recipe.
    """
    from helpers.tldr import load_tldr

    steps = {name: stage.steps for name, stage in STAGES.items()} | (steps or {})
    names = list(only or STAGES)
    unknown = sorted((set(steps) | set(names)) - set(STAGES))
    if unknown:
        raise ValueError(f"there is no stage {unknown[0]!r}; the stages are {', '.join(STAGES)}.")
    work, results = Path(work), {}
    rows = list(load_tldr(f"test[:{test_rows}]"))
    for name in names:
        stage, run, done = STAGES[name], work / f"{name}-run", work / name
        recipe = run / "recipe.txt"
        if run.exists() and not (recipe.is_file() and recipe.read_text() == _recipe(name, steps)):
            raise ValueError(f"{run} holds checkpoints of another recipe (the code or the steps have changed). Delete {work} to start anew.")
        if not done.exists():
            run.mkdir(parents=True, exist_ok=True)
            recipe.write_text(_recipe(name, steps))
            begun = run / "begun.txt"  # seconds spent in earlier attempts
            before, start = float(begun.read_text()) if begun.exists() else 0.0, time.time()
            print(f"{name}: {stage.about}, {steps[name]} steps", flush=True)
            source = {} if stage.start is None else {"start": work / stage.start if (work / stage.start).exists() else Path(out) / stage.start}
            try:
                model, tokenizer = stage.train(str(run), steps[name], quiet=quiet, **source)
            finally:
                begun.write_text(str(before + time.time() - start))
            part = work / f"{name}-part"
            shutil.rmtree(part, ignore_errors=True)
            model.config.use_cache = True  # trainers switch it off in the config that they save
            model.save_pretrained(part)
            tokenizer.save_pretrained(part)
            metrics = evaluate_folder(part, rows, stage.ask)
            weights = hashlib.sha256((part / "model.safetensors").read_bytes()).hexdigest()
            (part / "README.md").write_text(_card(name, stage, steps[name], float(begun.read_text()), metrics, weights))
            (part / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
            part.rename(done)
        results[name] = json.loads((done / "metrics.json").read_text())
        print(name, results[name], *(f"\n  MISSED: {miss}" for miss in misses(stage, results[name])), flush=True)
    for name in names:
        shutil.rmtree(Path(out) / name, ignore_errors=True)
        shutil.move(work / name, Path(out) / name)
        shutil.rmtree(work / f"{name}-run")
    return results


FRONTIER = course.ROOT / "data" / "kl_frontier.jsonl"


def drift_and_quality(folder, rows):
    """What the KL divergence buys, on `rows`: distance, coverage, fluency (greedy), and kl to tiny-sft (sampled at temperature 1, nats per token)."""
    from helpers import evaluate

    model, tokenizer = load_model(folder)
    reference, _ = load_model(course.MODELS / "tiny-sft")
    prompts = [tldr.summarize(row)["prompt"] for row in rows]
    measured = evaluate.measure(evaluate.generate(model, tokenizer, prompts), rows)
    samples = evaluate.generate(model, tokenizer, prompts, temperature=1.0)
    measured["kl"] = evaluate.divergence(model, reference, tokenizer, prompts, samples)
    return {name: round(float(measured[name].mean()), 4) for name in ("distance", "coverage", "fluency", "kl")}


def kl_frontier(betas=(0.0, 0.03, 0.1, 0.3, 1.0), seeds=(0, 1, 2), path=FRONTIER, work=course.RUNS / "kl-frontier", steps=120, test_rows=200):
    """Train act 3 at several weights of the KL divergence and write a line for each run to `path` (JSON Lines), after one for tiny-sft.

    Runs that `path` already holds are kept. A killed run goes on from its last checkpoint in `work`. Measured on validation rows.
    """
    path, rows = Path(path), list(tldr.load_tldr(f"validation[:{test_rows}]"))
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = done or [dict(beta=None, seed=None, steps=0) | drift_and_quality(course.MODELS / "tiny-sft", rows)]
    for seed, beta in itertools.product(seeds, betas):
        if any((run["beta"], run["seed"], run["steps"]) == (beta, seed, steps) for run in done):
            continue
        folder = Path(work) / f"beta-{beta:g}-seed-{seed}-steps-{steps}"
        model, tokenizer = grpo(str(folder), steps, course.MODELS / "tiny-sft", **BOTH, beta=beta, seed=seed, quiet=True)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        done.append(dict(beta=beta, seed=seed, steps=steps) | drift_and_quality(folder, rows))
        print(done[-1], flush=True)
        path.write_bytes(tldr.to_jsonl(done))


def main():
    parser = argparse.ArgumentParser(description="Make the course's tiny models from nothing.")
    parser.add_argument("--out", default=course.MODELS, help="where the finished models go")
    parser.add_argument("--work", default=course.RUNS / "make-models", help="checkpoints; a second call goes on from them")
    parser.add_argument("--only", nargs="+", choices=list(STAGES), help="make these stages only, on the models in --out")
    parser.add_argument("--frontier", action="store_true", help=f"train act 3 at several weights of the KL divergence instead, for {FRONTIER.name}")
    args = parser.parse_args()
    course.start()
    import torch

    torch.set_num_threads(2)
    if args.frontier:
        return kl_frontier()
    begin = time.time()
    build(args.out, args.work, only=args.only)
    print(f"all models are in {args.out}; {(time.time() - begin) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
