"""The gpu profile without a GPU and without the Hub: every notebook, cell for cell as it is, on the stand-ins of tests/standins.py.

That a model of 0.5 billion weights learns is not shown here, nor how fast: these runs prove that every cell works on another
model, tokeniser, data set and classifier. Trainings take shorter completions, and fewer steps where no checkpoints are kept.
With PRETEND_GPU=1 set, the models are in another place than what a cell makes on the CPU, as on a GPU (tests/elsewhere.py); that takes several times as long.
"""

import os
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient

from helpers.course import ACTS, ROOT
from tests import standins

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
STARTUP = """
def _cheaper():
    from dataclasses import replace
    import transformers
    import trl
    from helpers import ppo

    train, train_ppo = transformers.Trainer.train, ppo.train_ppo

    def cheaper(self, *args, **kwargs):
        if isinstance(self, trl.GRPOTrainer):
            self.generation_config.max_new_tokens = self.args.max_completion_length = 12
        if self.args.save_strategy == "no" and not kwargs:  # nothing is resumed
            self.args.max_steps = min(self.args.max_steps, 10 if isinstance(self, trl.GRPOTrainer) else 60)
        return train(self, *args, **kwargs)

    transformers.Trainer.train = cheaper
    ppo.train_ppo = lambda *args: train_ppo(*args[:-1], replace(args[-1], response_length=12))

_cheaper()
"""


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """The variables of a process that finds the stand-ins, three acts among them that were trained for one step."""
    folder = tmp_path_factory.mktemp("hub")
    variables = os.environ | standins.environment(standins.fill(folder)) | {"IPYTHONDIR": str(folder / "ipython"), "PYTHONPATH": str(ROOT)}
    startup = folder / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    pretended = "from tests import elsewhere; elsewhere.pretend()" if os.environ.get("PRETEND_GPU") else ""
    (startup / "00-cheaper.py").write_text(STARTUP + pretended)
    out = run(f"from helpers import course, models; course.start(); [models.train_act(name, steps=1) for name in {ACTS}]", variables)
    assert out.count("is trained now") == 3 and "Traceback" not in out, out
    return variables


def run(code, variables):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300)
    return done.stdout + done.stderr


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs(path, environment):
    book = nbformat.read(path, as_version=4)
    NotebookClient(book, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute(env=environment)  # raises if a cell fails
    printed = "".join(output.get("text", "") for cell in book.cells if cell.cell_type == "code" for output in cell.outputs)
    if path.stem.startswith("04"):
        assert "Estimated memory of a step (Qwen2-0.5B, prompts of 600 tokens): " in printed and "[otherwise in this profile: distance_after" in printed
    if path.stem.startswith("05"):  # on any model, ours is TRL's
        assert "equal to five digits: True; so are the 7 metrics: True" in printed and "by hand equal TRL's: True" in printed
        assert "gradient: True, metrics: True" in printed


def test_the_names_are_the_real_ones(environment):
    """What a reader would call, and what the stand-ins must answer to."""
    out = run(
        """
from datasets import load_dataset
from detoxify import Detoxify
from transformers import AutoModelForCausalLM, AutoTokenizer
rows = load_dataset("trl-lib/tldr", split="train[:75]")
print(rows.column_names, len(rows), rows[0]["completion"][0] == " ")
model, tokenizer = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2-0.5B-Instruct"), AutoTokenizer.from_pretrained("Qwen/Qwen2-0.5B-Instruct")
print(model.dtype, model.config.num_key_value_heads < model.config.num_attention_heads, model.config.vocab_size > len(tokenizer), model.generation_config.repetition_penalty)
print(repr(tokenizer.apply_chat_template([dict(role="user", content="Hi")], tokenize=False)))
print(Detoxify("original").predict("You are a stupid idiot.")["toxicity"] > 0.5)
""",
        environment,
    )
    assert "['prompt', 'completion'] 75 True" in out and "torch.bfloat16 True True 1.1" in out, out
    assert "'<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n<|im_start|>user\\nHi<|im_end|>\\n'\nTrue" in out, out


def test_sampling_does_not_follow_the_models_own_wishes(environment):
    """generation_config.json punishes repetition; greedy decoding of ours must be the plain argmax."""
    out = run(
        """
from helpers import course; profile = course.start()
import torch
from helpers.evaluate import generate
from helpers.models import load_model
from helpers.tldr import load_tldr, summarize
model, tokenizer = load_model(profile.models["sft"])
model.generation_config.eos_token_id = None  # do not stop
prompt = summarize(load_tldr("validation[:1]")[0])["prompt"]
ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
for _ in range(30):
    ids = torch.cat([ids, model(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
print(model.dtype, generate(model, tokenizer, [prompt], max_new_tokens=30)[0].text == tokenizer.decode(ids[0, -30:], skip_special_tokens=True))
""",
        environment,
    )
    assert "torch.float32 True" in out, out


def test_quality_on_posts_without_facts(environment):
    out = run(
        """
from helpers import course; course.start()
import numpy as np
from helpers.evaluate import Completion, measure
from helpers.tldr import load_tldr
rows = list(load_tldr("test[:3]"))
result = measure([Completion(row["completion"], True, 9) for row in rows], rows)
print(type(rows[0]["facts"]).__name__, result["rouge"].tolist(), result["coverage"].tolist(), np.isnan(result["fluency"]).all())
""",
        environment,
    )
    assert "list [1.0, 1.0, 1.0] [1.0, 1.0, 1.0] True" in out, out


def test_a_small_card_trains_lora_in_pieces(environment, tmp_path):
    """What `_gpu` would plan for 8 GB, and a card too small for eight completions at once: notebook 04's way, through checkpoint, resume and reload."""
    out = run(
        f"""
from dataclasses import replace
from helpers import course
course.start()
course._active = profile = replace(course.profile(), lora=4, at_once=2, hardware=course.profile().hardware | dict(model_init_kwargs=dict(dtype="bfloat16")))
from trl import GRPOConfig, GRPOTrainer
from helpers.models import check_checkpoint, load_model
from helpers.rewards import reward_len
from helpers.tldr import load_tldr, summarize
settings = dict(output_dir={str(tmp_path)!r}, max_steps=2, save_steps=1, max_completion_length=8, learning_rate=1e-2, disable_tqdm=True, report_to=[])
config = GRPOConfig(**profile.fit(settings))
print(config.per_device_train_batch_size, config.gradient_accumulation_steps, config.generation_batch_size)
rows = load_tldr("train[:8]").map(summarize)
trainer = GRPOTrainer(profile.models["sft"], reward_len, config, train_dataset=rows, peft_config=profile.peft_config)
trainer.train()
resumed = GRPOTrainer(profile.models["sft"], reward_len, config, train_dataset=rows, peft_config=profile.peft_config)
resumed.train(resume_from_checkpoint=check_checkpoint({str(tmp_path / "checkpoint-1")!r}, resumed.model))
saved, _ = load_model({str(tmp_path / "checkpoint-2")!r})
start, _ = load_model(profile.models["sft"])
moved = [not (a == b).all() for a, b in zip(saved.parameters(), start.parameters(), strict=True)]
print(type(saved).__name__, sum(moved), "matrices moved")
""",
        environment,
    )
    assert "2 4 8" in out and "Qwen2ForCausalLM 14 matrices moved" in out, out
    assert "Estimated memory of a step (Qwen2-0.5B, prompts of 600 tokens, LoRA): " in out


def test_an_act_that_is_missing_is_trained_where_it_is_needed(environment, tmp_path):
    out = run(
        """
from helpers import course; profile = course.start()
from helpers import models
from functools import partial
models.train_act = partial(models.train_act, steps=1)
model, _ = models.load_model(profile.models["grpo-length"])
again, _ = models.load_model(profile.models["grpo-length"])
print("the same", all((a == b).all() for a, b in zip(model.parameters(), again.parameters())))
""",
        environment | {"COURSE_RUNS": str(tmp_path)},
    )
    assert out.count("qwen2-grpo-length is not there yet. It is trained now, 1 steps") == 1 and "the same True" in out, out
    assert [path.name for path in tmp_path.iterdir()] == ["qwen2-grpo-length"]


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("", "Qwen/Qwen2-0.5B-Instruct cannot be had"),
        ("from helpers.models import load_model; load_model(course.profile().models['base'])", "Qwen/Qwen2-0.5B cannot be had"),
        ("from helpers.tldr import load_tldr; load_tldr('train[:75]')", "the data set trl-lib/tldr cannot be had"),
    ],
)
def test_no_hub_and_an_empty_cache(tmp_path, code, what):
    """One clear error, that says what to download, how, and how to go on without."""
    variables = os.environ | standins.environment(tmp_path)
    skip = "course._reachable = print; " if code else ""  # the first call finds it out, or else the one that needs something
    out = run(f"from helpers import course; {skip}course.start(); {code}", variables)
    assert what in out and f"not in the cache ({tmp_path})" in out and "hf download Qwen/Qwen2-0.5B-Instruct" in out and "unset COURSE_PROFILE" in out, out
