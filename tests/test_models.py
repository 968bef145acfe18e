"""The shipped models are what their cards say, broken ones are refused, and the command that makes them can be killed."""

import hashlib
import itertools
import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import save_file

from helpers import course, models, tldr
from helpers.models import FRONTIER, STAGES, build, check_checkpoint, drift_and_quality, evaluate_folder, load_model, misses


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", STAGES)
def test_a_shipped_model_is_what_its_card_says(name):
    folder = course.MODELS / name
    assert hashlib.sha256(weights(folder)).hexdigest() in (folder / "README.md").read_text()
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 8e6
    metrics = json.loads((folder / "metrics.json").read_text())
    assert misses(STAGES[name], metrics) == []


def test_the_model_that_grpo_starts_from_meets_its_targets():
    rows = list(tldr.load_tldr("test"))
    measured = evaluate_folder(course.MODELS / "tiny-sft", rows)
    assert misses(STAGES["tiny-sft"], measured) == []
    shipped = json.loads((course.MODELS / "tiny-sft" / "metrics.json").read_text())
    assert measured["length"] == pytest.approx(shipped["length"], rel=0.02)


def test_a_missed_target_is_told():
    assert misses(STAGES["tiny-grpo-length"], {"distance": 15.5}) == ["distance 15.5 is not in [0, 15]"]


def test_the_tokenizer_packs_four_characters_and_loses_none(sft):
    _, tokenizer = sft
    turns = [row["prompt"] + row["completion"] for row in itertools.islice(tldr.stream(9, models.sft_row), 300)]
    threads = list(itertools.islice(tldr.stream(8, tldr.write_thread), 300))
    ids = tokenizer(turns + threads)["input_ids"]
    assert sum(map(len, turns + threads)) / sum(map(len, ids)) >= 4
    for text in (*turns[:5], "Ünïcödé 😀 \t text\r\n\n  12345"):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=False) == text
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert chat == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lacks config.json, tokenizer.json, model.safetensors.*helpers\.models"):
        load_model(tmp_path / "nothing")


def test_truncated_weights_are_named(tmp_path):
    folder = shutil.copytree(course.MODELS / "tiny-sft", tmp_path / "cut")
    (folder / "model.safetensors").write_bytes(weights(folder)[:100_000])
    with pytest.raises(ValueError, match=r"cut cannot be read.*git checkout data/models"):
        load_model(folder)


def test_weights_of_another_shape_are_named(tmp_path):
    folder = shutil.copytree(course.MODELS / "tiny-sft", tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    if "layer_types" in config:
        (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5, "layer_types": ["full_attention"] * 5}))
    with pytest.raises(ValueError, match="do not fit"):
        load_model(folder)


def test_models_are_made_from_nothing_and_a_killed_run_goes_on(tmp_path, monkeypatch):
    """In one go, or killed in every stage after its checkpoint: the same weights; and what was there stays until the end."""
    common = models._common
    monkeypatch.setattr(models, "_common", lambda quiet: {**common(quiet), "save_steps": 2})
    names = ["tiny-base", "tiny-sft", "tiny-grpo-length"]
    make = dict(only=names, steps=dict.fromkeys(STAGES, 4), test_rows=2, quiet=True)
    build(tmp_path / "whole", tmp_path / "work-1", **make)

    old = tmp_path / "parts" / "tiny-base" / "old"
    old.parent.mkdir(parents=True)
    old.touch()
    killed = set()

    class Killed(Exception):
        pass

    class KillOnce(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3 and args.output_dir not in killed:
                killed.add(args.output_dir)
                raise Killed

    monkeypatch.setattr(transformers.trainer, "DEFAULT_CALLBACKS", [*transformers.trainer.DEFAULT_CALLBACKS, KillOnce])
    for _ in names:
        with pytest.raises(Killed):
            build(tmp_path / "parts", tmp_path / "work-2", **make)
        assert old.exists()
    build(tmp_path / "parts", tmp_path / "work-2", **make)

    assert not old.exists() and not list((tmp_path / "work-2").iterdir())
    for name in names:
        assert weights(tmp_path / "parts" / name) == weights(tmp_path / "whole" / name), name
        load_model(tmp_path / "parts" / name)


def test_checkpoints_of_another_recipe_are_not_taken_up(tmp_path):
    run = tmp_path / "tiny-base-run"
    run.mkdir()
    (run / "recipe.txt").write_text("another")
    with pytest.raises(ValueError, match="another recipe.*Delete"):
        build(tmp_path / "out", tmp_path, only=["tiny-base"])
    assert (run / "recipe.txt").read_text() == "another"
    with pytest.raises(ValueError, match="no stage 'tiny-bass'; the stages are tiny-base"):
        build(tmp_path / "out", tmp_path, only=["tiny-bass"])


def test_a_checkpoint_of_another_model_is_refused(tmp_path, sft):
    model, tokenizer = sft
    folder = tmp_path / "checkpoint-1"
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        check_checkpoint(folder, model)
    model.save_pretrained(folder)
    (folder / "trainer_state.json").write_text("{}")
    assert check_checkpoint(folder, model) == folder
    before = weights(folder)
    from transformers import Qwen2Config, Qwen2ForCausalLM

    other = Qwen2ForCausalLM(Qwen2Config(vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2))
    with pytest.raises(ValueError, match=r"another model: its model.* has the shape"):
        check_checkpoint(folder, other)
    assert weights(folder) == before


def test_a_checkpoint_is_known_for_a_model_whose_weights_are_elsewhere(tmp_path):
    """As ZeRO-3 leaves them: empty, with the real shape in ds_shape."""
    model = torch.nn.Linear(3, 2)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "trainer_state.json").write_text("{}")
    for parameter in model.parameters():
        parameter.ds_shape, parameter.data = parameter.shape, torch.empty(0)
    assert check_checkpoint(tmp_path, model) == tmp_path
    model.weight.ds_shape = torch.Size([3, 3])
    with pytest.raises(ValueError, match=r"weight has the shape \(2, 3\), the model's \(3, 3\)"):
        check_checkpoint(tmp_path, model)


def test_new_models_differ_by_seed_only(sft):
    _, tokenizer = sft
    first, again, other = (models.new_model(tokenizer, seed).state_dict() for seed in (0, 0, 1))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name])


def test_the_recorded_frontier_holds_the_shipped_models():
    before, *runs = [json.loads(line) for line in FRONTIER.read_text().splitlines()]
    assert len({(run["beta"], run["seed"]) for run in runs}) == len(runs) and {run["steps"] for run in runs} == {STAGES["tiny-grpo-length-coverage-kl"].steps}
    (act3,) = [run for run in runs if (run["beta"], run["seed"]) == (0.1, 0)]
    for recorded, name in ((before, "tiny-sft"), (act3, "tiny-grpo-length-coverage-kl")):
        measured = drift_and_quality(course.MODELS / name, list(tldr.load_tldr("validation")))
        assert measured == pytest.approx({metric: recorded[metric] for metric in measured}, rel=0.1)


def test_the_frontier_goes_on_where_it_was(tmp_path, monkeypatch):
    made = []

    def grpo(folder, steps, start, seed, beta, **settings):
        made.append((seed, beta))
        if made == [(0, 0.5), (0, 1.0)]:
            raise KeyboardInterrupt
        return load_model(start)

    monkeypatch.setattr(models, "grpo", grpo)
    settings = dict(betas=(0.5, 1.0), seeds=(0, 1), path=tmp_path / "frontier.jsonl", work=tmp_path / "work", steps=2, test_rows=2)
    with pytest.raises(KeyboardInterrupt):
        models.kl_frontier(**settings)
    models.kl_frontier(**settings)
    assert made == [(0, 0.5), (0, 1.0), (0, 1.0), (1, 0.5), (1, 1.0)]
    lines = [json.loads(line) for line in settings["path"].read_text().splitlines()]
    assert [(line["beta"], line["seed"]) for line in lines] == [(None, None), (0.5, 0), (1.0, 0), (0.5, 1), (1.0, 1)]
