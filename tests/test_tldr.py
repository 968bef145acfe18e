"""The data: as the blueprint of `trl-lib/tldr` wants it, the same at every making, and what its measures promise."""

import hashlib
import json
import random
import re

import pytest

from helpers import tldr
from helpers.tldr import SPLITS, fact_coverage, fluency, kept_facts, load_tldr, make_rows, to_jsonl, whole_sentences


def test_data_is_made_again_byte_for_byte():
    readme = (tldr.DATA / "README.md").read_text()
    for split, rows in make_rows().items():
        shipped = (tldr.DATA / f"tldr_{split}.jsonl").read_bytes()
        assert to_jsonl(rows) == shipped
        assert hashlib.sha256(shipped).hexdigest() in readme


def test_splits_have_their_sizes_and_columns():
    for split, count in SPLITS.items():
        rows = load_tldr(split)
        assert len(rows) == count and rows.column_names == ["prompt", "completion", "facts"]
        assert list(rows[0]["facts"]) == list(tldr.FACTS)


def test_slices_mean_what_they_mean_in_datasets():
    train = load_tldr("train")
    assert load_tldr("train[:75]")["prompt"] == train["prompt"][:75]
    assert load_tldr("train[1000:1010]")["prompt"] == train["prompt"][1000:1010]
    assert len(load_tldr("test[-10%:]")) == 20


def test_prompts_and_summaries_have_the_real_format():
    for row in load_tldr("train"):
        assert re.fullmatch(r"SUBREDDIT: r/\w+\n\nTITLE: [^\n]+\n\nPOST: .+\n\nTL;DR:", row["prompt"], re.DOTALL)
        assert 350 <= len(row["prompt"]) <= 900
        assert row["completion"].startswith(" ") and 100 <= len(row["completion"].strip()) <= 200
        assert fact_coverage(row["prompt"], row["facts"]) == 1


def test_no_event_of_validation_or_test_is_in_training():
    events = {split: {tldr.combination(row["facts"]) for row in rows} for split, rows in make_rows().items()}
    assert not events["train"] & (events["validation"] | events["test"])
    assert not events["validation"] & events["test"]


def test_training_streams_leave_out_held_out_events(monkeypatch):
    held_out = make_rows()["test"][0]["facts"]
    draws = iter([("home", held_out), ("home", held_out), ("home", dict(held_out, who="nobody"))])
    monkeypatch.setattr(tldr, "draw_facts", lambda rng: next(draws))
    assert next(tldr.stream(0, lambda rng, theme, facts: facts["who"])) == "nobody"


def test_rows_differ():
    rows = make_rows()["train"]
    assert len({row["prompt"] for row in rows}) == len(rows)
    for slot in tldr.FACTS:
        values = [row["facts"][slot] for row in rows]
        assert len(set(values)) >= 20 and max(map(values.count, set(values))) < 0.1 * len(rows)


def test_no_fact_hides_in_another_or_in_a_fixed_text():
    values = [(slot, value) for slot, pool in tldr._pools().items() for value in pool]
    _, skeletons = tldr._skeletons()
    for slot, value in values:
        word = tldr._words(value)
        assert not [other for other in values if other != (slot, value) and word in tldr._words(other[1])], value
        assert not [text for text in skeletons if word in tldr._words(text.replace("{", "<").replace("}", ">"))], value


@pytest.mark.parametrize("write", [tldr.write_answer, tldr.write_summary])
def test_every_sentence_that_the_grammar_writes_is_whole(write):
    rng = random.Random(1)
    for _ in range(500):
        text = write(rng, tldr.draw_facts(rng)[1])
        assert fluency(text) == 1, [sentence for sentence, whole in whole_sentences(text) if not whole]


def test_posts_are_whole_too():
    for row in make_rows()["test"]:
        body = row["prompt"].split("POST: ")[1].removesuffix("\n\nTL;DR:")
        assert fluency(body) == 1


@pytest.mark.parametrize("broken", ["OP feels oddly proud the.", "OP OP feels oddly proud.", "It happened last.", "feels oddly proud.", "reasoniven"])
def test_a_broken_sentence_is_not_whole(broken):
    assert fluency(broken) == 0
    assert fluency(f"OP feels oddly proud. {broken}") == 0.5


def test_nothing_is_not_fluent():
    assert fluency("") == fluency("  \n ") == 0


def test_every_answer_keeps_all_facts():
    rng = random.Random(2)
    for _ in range(200):
        _, facts = tldr.draw_facts(rng)
        assert fact_coverage(tldr.write_answer(rng, facts), facts) == 1


def test_coverage_counts_whole_words_only():
    facts = {"who": "dog walker", "feeling": "sad"}
    assert kept_facts("The DOG\nwalker, sadly.", facts) == {"who": True, "feeling": False}
    assert fact_coverage("the dog walker is sad", ["dog", "cat"]) == 0.5
    with pytest.raises(ValueError, match="at least one fact"):
        fact_coverage("text", {})


@pytest.mark.parametrize("split", ["dev", "", "train[:75", "train:75", "test[::2]"])
def test_an_unknown_split_is_refused_by_name(split):
    with pytest.raises(ValueError, match="train, validation, test"):
        load_tldr(split)


def test_own_rows_without_facts_get_content_words(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"prompt": "POST: …\n\nTL;DR:", "completion": " The dog ate my long-term plans, and it doesn't care."}) + "\n")
    (row,) = load_tldr("train", path=path)
    assert row["facts"] == ["ate", "care", "doesn't", "dog", "long-term", "plans"]
    assert fact_coverage(row["completion"], row["facts"]) == 1
    with pytest.raises(ValueError, match="known are train,"):
        load_tldr("test", path=path)


def test_a_file_cut_in_the_middle_names_its_line(tmp_path):
    whole = (tldr.DATA / "tldr_test.jsonl").read_bytes()
    path = tmp_path / "cut.jsonl"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.jsonl, line \d+ of \d+"):
        load_tldr("train", path=path)
    path.write_text('{"prompt": "p"}\n')
    with pytest.raises(ValueError, match="line 1 of 1.*completion"):
        load_tldr("train", path=path)
    path.write_text("")
    with pytest.raises(ValueError, match="no rows"):
        load_tldr("train", path=path)
    with pytest.raises(FileNotFoundError, match=r"helpers\.tldr"):
        load_tldr("train", path=tmp_path / "absent.jsonl")
