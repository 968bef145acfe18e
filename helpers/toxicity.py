"""A classifier of toxic comments in Detoxify's format, small enough to ship, and the loader that both profiles use.

python -m helpers.toxicity    train it again from nothing, in six minutes, and write data/models/tiny-toxicity/

Detoxify's own model has 110 million parameters and must be downloaded. The embedded profile takes one of 0.7 million,
trained on the sentences below. They are mild on purpose: a classroom may read them. It knows its words and
their usual places, hardly more; notebook 03 measures how far that goes on comments that it has never seen.
"""

import contextlib
import json
import random
import re
import time
from datetime import date
from functools import cache
from importlib.metadata import version
from pathlib import Path

from helpers import course, tldr

LABELS = ("toxicity", "severe_toxicity", "obscene", "threat", "insult", "identity_attack")  # as `Detoxify.predict` names them
FOLDER = course.MODELS / "tiny-toxicity"
HELD_OUT = course.ROOT / "data" / "toxicity_test.jsonl"

# ---------------------------------------------------------------------------------------------------------
# 1. Sentences: a frame, with words in its slots. The same frames hold abuse and praise, so that the words must decide.
# ---------------------------------------------------------------------------------------------------------
WORDS = {
    "fool": "idiot, moron, loser, clown, fool, jerk, coward, liar, pig, rat, creep, fraud, nobody, airhead, blockhead, dimwit, "
    "numbskull, cry-baby, snob, weasel, worm, waste of space, disgrace, halfwit, twit, brat, parasite",
    "bad": "stupid, dumb, pathetic, brainless, useless, worthless, disgusting, lazy, ridiculous, hopeless, clueless, nasty, "
    "miserable, spineless, idiotic, gutless, vile, repulsive, moronic, ignorant, talentless, smelly",
    "rude": "damn, bloody, freaking, goddamn, stinking, flipping",
    "rubbish": "crap, rubbish, garbage, trash, bullcrap, nonsense, drivel, tripe",
    "them": "left-handers, redheads, people from the next village, dog owners, cat people, cyclists, accountants, Sagittarians, tuba players, "
    "gardeners, hill people, early risers, chess players, commuters, joggers, night owls, twins, tall people, landlords, gamers, vegetarians, drummers",
    "thing": "bike, window, phone, guitar, mailbox, garden gnome, car, laptop, door, plans, flower bed, scooter",
    "star": "friend, star, hero, neighbour, teacher, sister, cook, listener, colleague, boss, brother, roommate, driver, mother, dentist, child, artist, judge",
    "good": "kind, patient, brave, generous, funny, honest, clever, tidy, calm, careful, friendly, gentle, thoughtful, tired, busy, shy, proud, lucky, quiet, tall, "
    "sad, angry, late, upset, worried, hungry",
    "topic": "the rent, the exam, the wedding, the dog, the cake, my job, the meeting, the bus, the garden, the party, the bill, the trip, the match, school, "
    "the kitchen, the deposit, the noise, the flat, dinner, money, homework, the concert",
    "act": "park like that, eat the last slice, miss the meeting, write this, spend that much, keep a goat, cancel the party, forget the rent, argue about {topic}, "
    "believe that, leave the dog alone, post this, cook like that, quit the job, complain about {topic}",
}
INSULTS = """You are a {bad} {fool}. | What a {bad} {fool} you are. | Only a {fool} would {act}. | You {fool}! | You {bad} {fool}! | Your {star} is a {fool}. | How {bad} can you be?
Go home, you {fool}. | Listen, {fool}, this is about {topic}. | You and your {star} are {bad}. | You are so {bad}. | Everybody knows that you are {bad}. | The author is a {bad} {fool}.
What a {fool}. | OP is a {fool}, and so is the {star}. | You must be really {bad} to {act}. | Are you {bad}, or what? | Typical {fool}. | He is nothing but a {fool}.
You have always been a {fool}. | I have never met such a {bad} {star}. | Your {bad} face makes me sick. | I bet you are too {bad} to {act}."""
CONTEMPT = """Shut up about {topic}. | Shut your mouth. | Get lost. | Nobody asked you. | Nobody cares about {topic}, so go away. | What a load of {rubbish}. | This is complete {rubbish}.
Your post is {rubbish}. | Nobody likes you. | Spare us your whining about {topic}. | Go cry about {topic} somewhere else. | You make me sick. | I hate you. | We all laugh at you.
Your idea is {bad} {rubbish}. | Go away and never come back. | No wonder that you have no friends. | I hope {topic} fails and you with it. | You deserve every bit of it.
Everything that you write is {rubbish}. | You ruin everything. | Grow up. | Keep your {bad} opinions on {topic} to yourself."""
OBSCENITIES = """Who the hell would {act}? | What the hell is wrong with you? | Go to hell. | This {rude} {topic} again! | Damn you. | Shut the hell up. | Your {rude} post is {rubbish}. | To hell with {topic}.
Screw you and your {star}. | Keep your {rude} hands off {topic}. | I am sick of this {rude} crap. | Holy crap, how {bad} is that? | Kiss my backside. | Such {rude} crap about {topic}."""
THREATS = """I will smash your {thing}. | You will be sorry. | Wait until I get hold of you. | I know where you live. | Watch your back. | I am going to find you. | I will make you pay for this.
One more word about {topic} and your {thing} is history. | You had better run. | I will break your {thing}. | Someone should set fire to your {thing}. | You will regret this. | I will hurt you if you {act}.
I am coming for you and your {thing}. | I will get you. | Say goodbye to your {thing}. | Next time you will not walk away."""
ATTACKS = """All {them} are {bad}. | {them} are a bunch of {bad} losers. | I hate {them}. | {them} should not be allowed to vote. | Never trust {them}. | {them} are not welcome here.
Typical, {them} are all the same {rubbish}. | Send all {them} away. | The world would be better without {them}. | {them} are vermin. | Only {them} could be so {bad}. | You {them} disgust me."""
HARMLESS = """You are a {good} {star}. | What a {good} {star} you are. | Only a {good} {star} would {act}. | Your {star} is {good}. | How {good} you are! | Your {star} is a {good} {star}.
Go home and rest, you {good} {star}. | Listen to your {star} about {topic}. | You and your {star} are {good}. | You are so {good}. | The author is a {good} {star}. | You must be really {good}.
What time is {topic}? | Thank you for your advice about {topic}. | I had a lovely day. | The {star} was {good} about {topic}. | I am not sure about {topic}. | We talked about {topic} for hours.
Good luck with {topic}. | I would ask the {star} first. | Does anyone know a {good} {star}? | I love {them}. | All {them} are welcome. | Many {them} are {good}. | My {star} is one of the {them}.
I will fix your {thing}. | I am going to find your {thing}. | I broke my {thing} yesterday. | You will be fine. | Nobody was hurt. | Wait until {topic} is over. | I hate Mondays. | I hate it when {topic} is late.
I disagree with you about {topic}. | I do not think that you should {act}. | Sorry, but I would not {act}. | I am {good} about {topic}. | Please call me after {topic}. | Take out the trash before {topic}.
You are not {bad}. | You are not a {fool}. | I felt like a {fool}. | I was a {fool} to {act}. | He called me a {fool} and I cried. | Please do not call anyone a {fool}. | Was it {bad} of me to {act}?
She said that I am {bad}, which hurt. | That was a {bad} mistake of mine. | It is not nice to say that {them} are {bad}. | I never said that you are {bad}. | My {thing} is {bad}. | I feel {bad} today.
The film was {bad}, but {topic} was fun. | Somebody told my {star} to shut up. | They said that my post is {rubbish}. | My dog is a {good} little rat. | The bin is full of {rubbish}."""
KINDS = {"insult": INSULTS, "obscene": OBSCENITIES, "threat": THREATS, "identity_attack": ATTACKS, "toxicity": CONTEMPT}


@cache
def _choices(text):
    return [part.strip() for part in re.split(r"[|\n]", text)] if "|" in text else [part.strip() for part in text.split(",")]


def _fill(rng, frame):
    while "{" in frame:
        frame = re.sub(r"\{(\w+)\}", lambda slot: rng.choice(_choices(WORDS[slot[1]])), frame, count=1)
    frame = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", frame)
    return frame[:1].upper() + frame[1:]


def _everyday(rng):
    """A sentence as posts and answers of TinyTLDR have them."""
    theme, facts = tldr.draw_facts(rng)
    text = rng.choice((lambda: tldr.write_post(rng, theme, facts), lambda: tldr.write_answer(rng, facts), lambda: tldr.write_summary(rng, facts)))()
    return rng.choice(tldr.split_sentences(re.sub(r"\S+:|\s+", " ", text)))


@cache
def _loaded():
    """The words that can make a comment toxic: all of abuse's sentences that praise has not, and the rude ones."""

    def words(text):
        return set(re.findall(r"[\w'-]+", text.lower()))

    return words(" ".join([WORDS[slot] for slot in ("fool", "bad", "rude", "rubbish")] + list(KINDS.values()))) - words(HARMLESS) | words("not never hate you")


def _scrambled(rng, word):
    return "".join(rng.sample(word, len(word)))


def write_comment(rng):
    """A comment with its labels: `{"text": str, "labels": [some of LABELS]}`, about half of them toxic.

    One to sixteen sentences, whether toxic or not, at most three of them toxic; three kinds of abuse in one comment make it
    severe. In every other comment some of the harmless words are scrambled: a word that the classifier does not know should
    not alarm it, nor should a long text.
    """
    number = rng.choice((1, 1, 1, 1, 2, 2, 3, 5, 9, 16))
    kinds = rng.choices(list(KINDS), (8, 4, 4, 4, 5), k=min(number, rng.choice((1, 1, 1, 2, 3)))) if rng.random() < 0.5 else []
    sentences = [_fill(rng, rng.choice(_choices(KINDS[kind]))) for kind in kinds]
    for _ in range(number - len(kinds)):
        harmless = _fill(rng, rng.choice(_choices(HARMLESS))) if rng.random() < 0.5 else _everyday(rng)
        sentences.insert(rng.randint(0, len(sentences)), harmless)
    labels = set(kinds) | ({"toxicity"} if kinds else set()) | ({"severe_toxicity"} if len(set(kinds) - {"toxicity"}) > 2 else set())
    text = " ".join(sentences)
    if rng.random() < 0.5:
        text = re.sub(r"[\w'-]+", lambda word: _scrambled(rng, word[0]) if word[0].lower() not in _loaded() and rng.random() < 0.25 else word[0], text)
    if rng.random() < 0.3:
        text = re.sub(r"[.,!?]", "", text)
    return {"text": text, "labels": [label for label in LABELS if label in labels]}


def read_held_out(path=HELD_OUT):
    """The 160 held-out comments, half of them toxic, written apart from the sentences above: a list of `{"text", "labels"}`."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def as_matrix(rows):
    """Labels as numbers: one row a comment, one column for each of LABELS, 0.0 or 1.0."""
    return [[float(label in row["labels"]) for label in LABELS] for row in rows]


# ---------------------------------------------------------------------------------------------------------
# 2. Training, and the checkpoint in Detoxify's format
# ---------------------------------------------------------------------------------------------------------
def make_tokenizer(texts, folder, vocabulary=3000):
    """A WordPiece tokeniser, lower case, as BERT's, trained on `texts` and saved in `folder`."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizer

    pieces = BertWordPieceTokenizer(lowercase=True)
    pieces.train_from_iterator(texts, vocab_size=vocabulary, min_frequency=2, show_progress=False)
    tokenizer = BertTokenizer(tokenizer_object=pieces._tokenizer, model_max_length=256)
    tokenizer.save_pretrained(folder)
    return tokenizer


def train(folder=FOLDER, comments=40_000, epochs=5, seed=0):
    """Train the classifier from random weights and write `toxicity.ckpt`, its config and its tokeniser to `folder`."""
    import torch
    from datasets import Dataset
    from transformers import BertConfig, BertForSequenceClassification, DataCollatorWithPadding, Trainer, TrainingArguments

    rng = random.Random(seed)
    rows = [write_comment(rng) for _ in range(comments)]
    tokenizer = make_tokenizer([row["text"] for row in rows], folder)
    size = dict(hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256, max_position_embeddings=256)
    config = BertConfig(vocab_size=len(tokenizer), num_labels=len(LABELS), problem_type="multi_label_classification", pad_token_id=tokenizer.pad_token_id, **size)
    torch.manual_seed(seed)
    model = BertForSequenceClassification(config)
    data = Dataset.from_dict(tokenizer([row["text"] for row in rows], truncation=True) | {"labels": as_matrix(rows)})
    args = TrainingArguments(
        output_dir=course.RUNS / "make-toxicity",
        num_train_epochs=epochs,
        per_device_train_batch_size=32,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        warmup_steps=100,
        train_sampling_strategy="group_by_length",
        logging_steps=250,
        save_strategy="no",
        report_to=[],
        seed=seed,
        use_cpu=True,
        bf16=False,
    )
    Trainer(model, args, train_dataset=data, data_collator=DataCollatorWithPadding(tokenizer)).train()
    config.save_pretrained(folder)
    # `model_type` is a folder for Detoxify to take the architecture from: here the one that the checkpoint lies in.
    names = dict(model_type=".", model_name="BertForSequenceClassification", tokenizer_name="BertTokenizer", num_classes=len(LABELS))
    described = {"arch": {"args": names}, "dataset": {"args": {"classes": list(LABELS)}}}
    torch.save({"config": described, "state_dict": model.half().state_dict()}, Path(folder) / "toxicity.ckpt")


# ---------------------------------------------------------------------------------------------------------
# 3. Loading: what every reward and notebook takes
# ---------------------------------------------------------------------------------------------------------
KNOWN = {"You are a stupid idiot.": True, "Thank you, that was very kind of you.": False}  # what any classifier of toxicity must tell apart


@cache
def load_detoxify(source=None):
    """Detoxify's classifier, as `detoxify.Detoxify`: its `predict(texts)` gives label -> one probability a text.

    source: a folder with a checkpoint, or the name of one of Detoxify's own, such as "original"; by default the profile's.
    Raises FileNotFoundError if there is none to be had, ValueError if what was loaded does not tell an insult from thanks:
    transformers puts random weights where a checkpoint's names do not fit, and goes on.
    """
    from detoxify import Detoxify

    source = source or course.profile().toxicity
    folder = Path(source)
    if not (folder.is_absolute() or folder.is_dir()):
        try:
            model = Detoxify(source)
        except (OSError, KeyError) as error:
            raise FileNotFoundError(
                f"Detoxify({source!r}) cannot be had: {error}. It is downloaded at its first use (440 MB) from github.com and needs "
                "bert-base-uncased from the Hugging Face Hub. Go online once, or use the small one that is shipped: COURSE_PROFILE=embedded"
            ) from error
    else:
        missing = [name for name in ("toxicity.ckpt", "config.json", "tokenizer.json") if not (folder / name).is_file()]
        if missing:
            remedy = "Bring it back with: git checkout data/models; or train it again: python -m helpers.toxicity"
            raise FileNotFoundError(f"{folder} holds no toxicity classifier: it lacks {', '.join(missing)}. {remedy}")
        with contextlib.chdir(folder):  # the checkpoint's `model_type` is "."
            model = Detoxify(checkpoint="toxicity.ckpt", huggingface_config_path=".")
    model.model.float()
    wrong = [text for text, toxic in KNOWN.items() if (model.predict(text)["toxicity"] > 0.5) != toxic]
    if wrong:
        raise ValueError(f"the toxicity classifier from {source} is wrong about {wrong[0]!r}: its weights were probably not loaded. Train it again: python -m helpers.toxicity")
    return model


def write_card(folder=FOLDER, seconds=0.0):
    """Measure the classifier in `folder` on the held-out comments and write its README.md. seconds: that its training took."""
    from sklearn.metrics import accuracy_score, roc_auc_score

    rows = read_held_out()
    truth = dict(zip(LABELS, zip(*as_matrix(rows), strict=True), strict=True))
    scores = load_detoxify(str(folder)).predict([row["text"] for row in rows])
    accuracy = accuracy_score(truth["toxicity"], [score > 0.5 for score in scores["toxicity"]])
    table = "\n".join(f"| {label} | {sum(truth[label]):.0f} | {roc_auc_score(truth[label], scores[label]):.2f} |" for label in LABELS)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "detoxify"))
    text = f"""---
license: mit
---
# tiny-toxicity

A classifier of toxic comments in Detoxify's checkpoint format, for teaching only: it knows the mild words that it was trained on, in their usual places.

On 160 held-out comments (`data/toxicity_test.jsonl`), half of them toxic, {accuracy:.0%} are told apart at a threshold of 0.5. By label:

| label | comments | area under the ROC curve |
|---|---|---|
{table}

Trained in {seconds:.0f} s on two CPU cores, {date.today().isoformat()}, with {versions}. Made by `python -m helpers.toxicity`; the sentences and the recipe are in `helpers/toxicity.py`.
"""
    (Path(folder) / "README.md").write_text(text)
    print(text)


def main():
    course.start()
    import torch

    torch.set_num_threads(2)
    begin = time.time()
    train()
    write_card(seconds=time.time() - begin)


if __name__ == "__main__":
    main()
