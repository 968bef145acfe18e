"""The toxicity classifier: its checkpoint, its loader in both profiles, its sentences."""

import random
import shutil
import urllib.error

import pytest
import torch
from sklearn.metrics import roc_auc_score

from helpers import course, toxicity
from helpers.toxicity import FOLDER, KINDS, LABELS, as_matrix, load_detoxify, read_held_out, write_comment


def test_the_shipped_classifier_is_detoxify_and_small():
    from detoxify import Detoxify

    model = load_detoxify()
    assert isinstance(model, Detoxify) and tuple(model.class_names) == LABELS
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 5e6
    scores = model.predict(["You are a stupid fool, and I will smash your bike.", "We had a lovely day."])
    assert set(scores) == set(LABELS)
    assert scores["threat"][0] > 0.5 and scores["insult"][0] > 0.5 and max(score[1] for score in scores.values()) < 0.5


def test_it_is_better_than_chance_on_held_out_comments():
    rows = read_held_out()
    assert len(rows) == 160 and sum(not row["labels"] for row in rows) == 80
    scores = load_detoxify().predict([row["text"] for row in rows])
    for label, truth in zip(LABELS, zip(*as_matrix(rows), strict=True), strict=True):
        assert roc_auc_score(truth, scores[label]) > 0.6, label


def test_a_long_text_is_cut_not_refused():
    assert 0 <= load_detoxify().predict("It was a lovely day. " * 5000)["toxicity"] < 0.5


def test_comments_have_the_labels_of_their_parts():
    rng = random.Random(3)
    rows = [write_comment(rng) for _ in range(2000)]
    assert 0.4 < sum(not row["labels"] for row in rows) / len(rows) < 0.6
    for row in rows:
        kinds = set(row["labels"]) & set(KINDS) - {"toxicity"}
        assert ("toxicity" in row["labels"]) == bool(row["labels"])
        assert ("severe_toxicity" in row["labels"]) == (len(kinds) > 2)
        assert "{" not in row["text"]
    assert {label for row in rows for label in row["labels"]} == set(LABELS)
    assert write_comment(random.Random(5)) == write_comment(random.Random(5))


def test_no_held_out_comment_can_be_written_by_the_grammar():
    rng = random.Random(4)
    written = {row["text"].lower() for row in (write_comment(rng) for _ in range(5000))}
    assert not written & {row["text"].lower() for row in read_held_out()}


def copy(tmp_path):
    return shutil.copytree(FOLDER, tmp_path / "tiny-toxicity")


def test_a_missing_checkpoint_is_named(tmp_path):
    folder = copy(tmp_path)
    (folder / "toxicity.ckpt").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks toxicity.ckpt.*git checkout data/models.*helpers\.toxicity"):
        load_detoxify(str(folder))


def test_weights_under_other_names_are_noticed(tmp_path):
    """transformers fills in random ones and only logs it."""
    folder = copy(tmp_path)
    saved = torch.load(folder / "toxicity.ckpt", weights_only=False)
    saved["state_dict"] = {f"model.{name}": weights for name, weights in saved["state_dict"].items()}
    torch.save(saved, folder / "toxicity.ckpt")
    with pytest.raises(ValueError, match="is wrong about .*weights were probably not loaded"):
        load_detoxify(str(folder))


def test_detoxify_own_model_out_of_reach_is_explained(monkeypatch):
    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    with pytest.raises(FileNotFoundError, match=r"Detoxify\('original'\) cannot be had.*no route.*github.com.*COURSE_PROFILE=embedded"):
        load_detoxify("original")


def test_the_gpu_profile_takes_detoxify_own_model():
    assert course.PROFILES["gpu"]().toxicity == "original"


def test_training_makes_a_checkpoint_that_loads(tmp_path, monkeypatch):
    """A few steps: the weights that were trained are the ones that are loaded, and the card is written."""
    monkeypatch.setattr(course, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(toxicity, "KNOWN", {})  # so short a training has not learned them
    folder = tmp_path / "made"
    toxicity.train(folder, comments=200, epochs=1)
    saved = torch.load(folder / "toxicity.ckpt", weights_only=False)["state_dict"]
    loaded = load_detoxify(str(folder)).model.state_dict()
    assert set(saved) == set(loaded) and all(torch.equal(saved[name].float(), loaded[name]) for name in saved)
    assert 0 <= load_detoxify(str(folder)).predict("It was a lovely day. " * 500)["toxicity"] <= 1  # longer than its window
    toxicity.write_card(folder, seconds=1)
    assert "| threat | 15 |" in (folder / "README.md").read_text()
