"""A Hugging Face cache with small stand-ins under the real names, so that the gpu profile runs here: offline, on a CPU, in minutes.

python -m tests.standins FOLDER     fills FOLDER, and prints the variables that make it the cache

What is real: the names, the files' places in the caches, the data's columns, Qwen2's architecture with grouped queries, a
vocabulary with more rows than the tokeniser has, its chat template with a system prompt, bfloat16 weights, and the sampling
settings that its generation_config.json carries. What is not: the models know little more than when to stop.
"""

import itertools
import json
import shutil
import sys
from pathlib import Path

import torch

from helpers import course, models, tldr, toxicity
from helpers.evaluate import padded

INSTRUCT, BASE, TLDR = "Qwen/Qwen2-0.5B-Instruct", "Qwen/Qwen2-0.5B", "trl-lib/tldr"
TEMPLATE = (  # Qwen2's: a system prompt that nobody wrote stands before the first turn
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SAMPLING = dict(do_sample=True, temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.1)  # of Qwen2-0.5B-Instruct's generation_config.json


def environment(folder):
    """The variables with which a process takes `folder` for all its caches, and has no network."""
    folder = Path(folder)
    caches = dict(HF_HOME=folder, HF_HUB_CACHE=folder / "hub", HF_DATASETS_CACHE=folder / "datasets", TORCH_HOME=folder / "torch", COURSE_RUNS=folder / "runs")
    return {name: str(path) for name, path in caches.items()} | dict(COURSE_PROFILE="gpu", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", COURSE_UNATTENDED="1")


def _snapshot(folder, repository):
    """The folder of a model in the Hub's cache, ready to be written into."""
    top = Path(folder) / "hub" / f"models--{repository.replace('/', '--')}"
    (top / "refs").mkdir(parents=True)
    (top / "refs" / "main").write_text("0" * 40)
    return top / "snapshots" / ("0" * 40)


def _row(rng, theme, facts):
    return tldr.summarize({"prompt": tldr.write_post(rng, theme, facts)}) | {"completion": tldr.write_summary(rng, facts) + models.END_OF_TURN + models.END_OF_TEXT}


def make_model(tokenizer, rows, steps=60):
    """A Qwen2 of two layers that has seen a few `rows`, prompts with answers: it writes words, and it stops."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    size = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096)
    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=len(tokenizer) + 64, initializer_range=0.1, tie_word_embeddings=True, **size)
    model = Qwen2ForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        batch = list(itertools.islice(rows, 8))
        ids = [[tokenizer(row[part])["input_ids"] for part in ("prompt", "completion")] for row in batch]
        inputs = padded([prompt + answer for prompt, answer in ids], tokenizer.pad_token_id, "right", "cpu")
        labels = padded([[-100] * len(prompt) + answer for prompt, answer in ids], -100, "right", "cpu")
        optimizer.zero_grad()
        model(input_ids=inputs, labels=labels).loss.backward()
        optimizer.step()
    return model.bfloat16()


def fill(folder):
    """Write the stand-ins into `folder`: two Qwen2, `trl-lib/tldr`, Detoxify's checkpoint and the tokeniser that it needs."""
    from transformers import AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(course.MODELS / "tiny-sft")
    model = make_model(tokenizer, tldr.stream(6, _row))
    for repository, end, sampling in ((INSTRUCT, models.END_OF_TURN, SAMPLING), (BASE, models.END_OF_TEXT, {})):
        place = _snapshot(folder, repository)
        tokenizer.eos_token, tokenizer.chat_template = end, TEMPLATE
        ends = tokenizer.convert_tokens_to_ids([models.END_OF_TURN, models.END_OF_TEXT])
        model.config.bos_token_id, model.config.eos_token_id = ends[1], tokenizer.eos_token_id
        model.generation_config = GenerationConfig(bos_token_id=ends[1], pad_token_id=ends[1], eos_token_id=ends if sampling else ends[1], **sampling)
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
    _write_tldr(Path(folder) / "datasets")
    bert = _snapshot(folder, "bert-base-uncased")
    shutil.copytree(toxicity.FOLDER, bert, ignore=shutil.ignore_patterns("*.ckpt", "README.md"))
    checkpoint = torch.load(toxicity.FOLDER / "toxicity.ckpt", weights_only=False)
    checkpoint["config"]["arch"]["args"]["model_type"] = "bert-base-uncased"
    (Path(folder) / "torch" / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(checkpoint, Path(folder) / "torch" / "hub" / "checkpoints" / "toxic_original-c1212f89.ckpt")
    return Path(folder)


def _write_tldr(cache, hash_="0" * 40):
    """The three splits with their two columns, where `load_dataset` looks when it is offline."""
    from datasets import Dataset, DatasetInfo
    from datasets.arrow_writer import ArrowWriter
    from datasets.splits import SplitDict, SplitInfo

    place = cache / "trl-lib___tldr" / "default" / "0.0.0" / hash_
    place.mkdir(parents=True)
    splits = SplitDict(dataset_name="tldr")
    for split in tldr.SPLITS:
        rows = [json.loads(line) for line in (tldr.DATA / f"tldr_{split}.jsonl").read_text().splitlines()]
        table = Dataset.from_list([{"prompt": row["prompt"], "completion": row["completion"]} for row in rows])
        with ArrowWriter(path=str(place / f"tldr-{split}.arrow"), features=table.features) as writer:
            writer.write_table(table.data.table)
            examples, size = writer.finalize()
        splits.add(SplitInfo(split, num_bytes=size, num_examples=examples, dataset_name="tldr"))
    DatasetInfo(features=table.features, splits=splits, dataset_name="tldr", config_name="default", builder_name="parquet", version="0.0.0").write_to_directory(str(place))


if __name__ == "__main__":
    course.start()
    fill(sys.argv[1])
    print("\n".join(f"export {name}={value}" for name, value in environment(sys.argv[1]).items()))
