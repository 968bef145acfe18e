"""TinyTLDR: invented Reddit-like posts with known facts, in the format of `trl-lib/tldr`.

A seeded grammar writes a post, a short human-like summary and a verbose assistant's answer about the same
seven facts (who, what, when, where, why, feeling, ask). Because the grammar is ours, two questions about any
text have exact answers: which facts does it keep, and which of its sentences could the grammar have written?

Make the data again, byte for byte:  python -m helpers.tldr
"""

import hashlib
import json
import random
import re
from functools import cache
from pathlib import Path

DATA = Path(__file__).resolve().parent.parent / "data"
FACTS = ("who", "what", "when", "where", "why", "feeling", "ask")  # in the order of the `facts` column
SPLITS = {"train": 2000, "validation": 200, "test": 200}  # rows
SEED = 20


def _values(text):
    """'a; b;\n c' -> ('a', 'b', 'c')."""
    return tuple(" ".join(value.split()) for value in text.split(";"))


# ---------------------------------------------------------------------------------------------------------
# 1. What can happen: one entry a theme. Within a theme every person, event, place and reason go together.
#    who: after "my". what: past tense. where, when: adverbials. why: a clause. ask: after "I want to know".
#    background, after: further sentences of a post; they are no facts, and no summary needs them.
# ---------------------------------------------------------------------------------------------------------
THEMES = {
    "home": dict(
        subreddits="r/roommates; r/badroommates; r/CasualConversation",
        who="roommate; floor mate; upstairs neighbor; cousin from Ohio; subletter; former flatshare buddy; landlady's nephew; housemate",
        what="""threw out the good frying pan; ate the whole birthday cake; turned off the freezer; sold the couch online;
            used up all the hot water; invited nine people over; painted the door bright green; broke the washing machine;
            gave the spare key to a stranger; moved a drum kit in; hid the router; flooded the bathroom""",
        where="in the kitchen; in our tiny apartment; in the laundry room; on the third floor; in the shared hallway; on the balcony",
        why="""a bet got out of hand; the rent was due; nobody had cleaned for weeks; an inspection was coming up;
            a video online made it look easy; the old rules seemed silly; there was a date to impress; a chore list went missing""",
        ask="how to split the bill; whether to move out; who should pay for it; how to set house rules; whether to warn the owner",
        background="""We have shared a place for {n} months.; The lease runs for another {n} months.; Rent here is about {d} hundred a month.;
            We found each other through an ad.; The walls are thin and nobody sleeps much.; Until then we got along fine.""",
        after="""The others pretend not to notice.; I now keep my food in my room.; There is a note on the fridge about it.;
            The whole building heard us.; We have a house meeting soon.""",
    ),
    "family": dict(
        subreddits="r/family; r/relationships; r/AskReddit",
        who="sister; older brother; mom; father-in-law; aunt; grandmother; stepdad; twin brother",
        what="""gave away the family piano; read an old diary out loud; sold the camper van; announced a secret engagement;
            burned the holiday dinner; adopted three kittens; posted the baby photos online; forgot to pick up the kids;
            returned every single gift; cut down the apple tree; skipped the reunion; gave a very long toast""",
        where="at the lake house; at the family reunion; in the backyard; at the dinner table; in the old barn; in front of everyone",
        why="""money has been tight; an old argument came up again; somebody had to decide; it was meant as a joke;
            the doctor said to slow down; a promise was broken long ago; the house is far too full; nobody asked first""",
        ask="how to keep the peace; whether to apologize first; how to say no kindly; whether to skip the next visit; how to talk about it",
        background="""We are {n} people at every holiday.; I moved out {n} years ago.; There are {n} of us kids and I am the quiet one.;
            In our family nobody talks about things.; We live two hours apart.; Everybody has picked a side by now.""",
        after="""My dad just shook his head.; The family chat has gone quiet.; Somebody started crying.;
            Dinner was very quiet after that.; I was told not to make a scene.""",
    ),
    "work": dict(
        subreddits="r/jobs; r/work; r/careerguidance",
        who="boss; coworker; team lead; office manager; new intern; supervisor; assistant; business partner",
        what="""canceled the whole project; took credit for the report; deleted the client list; sent a rude email to everyone;
            promised a raise to the wrong person; hired an old friend; lost the only contract; changed every password;
            left a meeting in tears; quit without notice; double booked the big demo; gave the bonus away""",
        where="at the office; in the break room; during a video call; in the parking garage; at the trade fair; in the warehouse",
        why="""the budget was cut in half; a deadline was moved up; the numbers looked bad; a competitor made an offer;
            someone spread a rumor; the training was skipped; the client kept complaining; the contract had a gap""",
        ask="whether to talk to HR; how to ask for a transfer; whether to start job hunting; how to get it in writing; how to stay professional",
        background="""I have been there for {n} years.; Our team has {n} people.; The pay is fine but the hours are not.;
            It is a small company and word travels fast.; I like the work itself.; My contract ends in {n} months.""",
        after="""HR asked me for a statement.; My inbox is a mess now.; The whole floor went silent.;
            I updated my resume that night.; There was a meeting about the meeting.""",
    ),
    "love": dict(
        subreddits="r/relationship_advice; r/dating_advice; r/dating",
        who="girlfriend; boyfriend; husband; wife; fiancee; ex; crush; date from last month",
        what="""canceled the anniversary trip; kept a second phone; proposed over text; wrote a poem about a stranger;
            moved to another city; burst into tears; met a stranger for coffee; blocked everyone online;
            asked for a short break; lost the engagement ring; told a huge lie; planned a surprise party""",
        where="at a rooftop bar; on the beach; at a mutual friend's party; in the car; outside the movie theater; at the train station",
        why="""trust has been an issue for years; the distance got too hard; an old flame wrote back; a friend gave bad advice;
            the future felt too certain; small fights kept piling up; a therapist suggested it; the timing was never right""",
        ask="whether to give it another chance; how to bring it up calmly; whether this is a red flag; how to move on; if couples therapy is worth it",
        background="""We have been together for {n} years.; We met through friends {n} years ago.; We do not live together yet.;
            Long talks are not our strong side.; Everyone says we look good together.; This is my first serious relationship.""",
        after="""My best friend never liked this.; I sat in the shower and cried.; We agreed to talk again soon.;
            I gave back the key.; The photos are still on my phone.""",
    ),
    "pets": dict(
        subreddits="r/dogs; r/Pets; r/cats",
        who="dog walker; neighbor with the poodle; vet; pet sitter; groomer; dog trainer; downstairs neighbor; kid brother",
        what="""let the puppy off the leash; fed the cat a whole pizza; shaved the wrong dog; lost the parrot;
            taught the dog to open doors; left the gate wide open; brought home a goat; called the shelter;
            returned the rabbit; took the hamster on a bus ride; mixed up two cats; bathed the dog in dish soap""",
        where="at the dog park; on the front porch; at the clinic; near the duck pond; in the stairwell; by the mailbox",
        why="""the instructions were hard to read; the barking went on all night; treats had run out; the leash was broken;
            a child begged for it; two dogs looked the same; the fence needs repair; a label had fallen off""",
        ask="how to retrain a stubborn dog; whether to find a new sitter; how to calm a scared animal; whether to ask for a refund; what a fair price is",
        background="""My dog is {n} years old.; We took her in from a shelter {n} months ago.; The cat is shy around strangers.;
            I work long shifts and need the help.; Vet bills are no joke here.; There have been little incidents before.""",
        after="""There was fur everywhere.; The poor thing hid under the bed.; I had to run after it for an hour.;
            My shoes are chewed to bits.; The vet said it could be worse.""",
    ),
    "school": dict(
        subreddits="r/college; r/school; r/teenagers",
        who="lab partner; professor; suitemate; study buddy; guidance counselor; classmate; tutor; debate coach",
        what="""copied the whole essay; lost the final exams; slept through the presentation; dropped the class;
            erased the shared notes; failed half the group; locked the lab overnight; quit the robotics club;
            cheated on the midterm; gave away the answers; spilled coffee on the model; swapped the name tags""",
        where="in the library; in the lecture hall; at the dorm; in the chemistry lab; at the cafeteria; on the school bus",
        why="""the syllabus was confusing; sleep had become optional; a scholarship was at stake; the group chat went silent;
            the grading felt unfair; two exams fell on one day; somebody lost a flash drive; parents were pushing hard""",
        ask="whether to report it; how to save my grade; whether to switch majors; how to ask for an extension; if I should drop the course",
        background="""I am in my {d}th semester.; The class has about {d}0 students.; This course counts for a third of my grade.;
            I commute an hour each way.; We were assigned to each other at random.; I am the first in my family to study.""",
        after="""The dean sent me a short email.; I pulled two all nighters.; My parents do not know yet.;
            Half the class was laughing.; The deadline has not moved.""",
    ),
    "money": dict(
        subreddits="r/personalfinance; r/legaladvice; r/povertyfinance",
        who="landlord; accountant; childhood friend; uncle; bank advisor; business-minded cousin; stepbrother; neighbor across the street",
        what="""kept the whole deposit; borrowed two thousand dollars; raised the rent again; crashed the rental car;
            bought a boat on credit; forgot to file the taxes; signed the wrong papers; closed the joint account;
            sold the old truck for nothing; refused to pay the invoice; tore down the fence; lost the receipts""",
        where="at the bank; in the driveway; on the property line; in small claims court; at the car dealership; over the phone",
        why="""the paperwork was a mess; an old debt came due; the roof had to be fixed; a business idea fell through;
            the insurance would not cover it; interest kept going up; a verbal deal meant nothing; the lawyer said it was legal""",
        ask="whether to hire a lawyer; how to get the money back; whether to call the insurance; how to fix my credit; if a payment plan is fair",
        background="""I earn about {d} thousand a month.; I have {d} hundred in savings.; We never put anything in writing.;
            I am not good with numbers.; The first letter came {n} weeks ago.; I pay every bill on time.""",
        after="""I keep every letter in a box.; The bank put me on hold for an hour.; I had to sell my guitar.;
            Nobody answers my calls.; The numbers just do not add up.""",
    ),
    "travel": dict(
        subreddits="r/travel; r/solotravel; r/backpacking",
        who="travel buddy; tour guide; seatmate; bunkmate; taxi driver; airbnb host; camping partner; colleague from Spain",
        what="""missed the last ferry; booked the wrong island; lost both passports; forgot the tent poles;
            gave away the window seat; left the group behind; ate something off a dare; packed nothing but books;
            dropped the camera in a river; canceled the hotel; drove to the wrong country; spent the whole budget""",
        where="at the airport; on a night train; at a hostel in Lisbon; near the border; on a mountain trail; at the harbor",
        why="""the map was upside down; a storm closed the road; the alarm never rang; the dates got mixed up;
            a local gave odd directions; the deal looked too good; nobody spoke the language; the bags were too heavy""",
        ask="whether to travel alone next time; how to get a refund; how to pick better company; whether to fly home early; what to pack instead",
        background="""We saved up for {n} months.; It was day {n} of the trip.; We had planned every stop.;
            I had never been abroad before.; The weather was perfect until then.; We travel with one small bag each.""",
        after="""I slept on my backpack.; The next bus was a day away.; I have the blisters to prove it.;
            We ended up sharing one sandwich.; At least the view was nice.""",
    ),
    "fitness": dict(
        subreddits="r/running; r/fitness; r/loseit",
        who="personal trainer; running partner; gym buddy; yoga teacher; swim coach; physio; teammate; climbing partner",
        what="""skipped the whole marathon; dropped a dumbbell; ate all the protein bars; doubled the training plan;
            fell asleep in class; tore a calf muscle; broke the rowing machine; gave up on day two;
            canceled the membership; shouted at a beginner; ran the wrong course; forgot the team shirts""",
        where="at the gym; on the track; at the pool; at mile ten; in the locker room; at the climbing hall",
        why="""the warm up was too short; a bad diet took its toll; the race was sold out; an old injury flared up;
            the new shoes were too small; nobody checked the schedule; the heat was brutal; pride got in the way""",
        ask="how to stay motivated; whether to find a new gym; how to train around it; whether to rest a week; if I should sign up again",
        background="""I have lost {n} pounds so far.; I started running {n} months ago.; We train {n} times a week.;
            I used to hate all sports.; My knees are not what they were.; The season starts soon.""",
        after="""I could not walk for two days.; My watch counted it as cardio.; The whole class clapped.;
            I iced my knee all evening.; The coach pretended not to see it.""",
    ),
    "food": dict(
        subreddits="r/Cooking; r/tifu; r/TalesFromYourServer",
        who="line cook; head chef; waiter; mother-in-law; neighbor from Texas; baking partner; barista; food truck owner",
        what="""put salt in the wedding cake; set off the fire alarm; served raw chicken; dropped forty plates;
            swapped sugar for flour; burned the caramel twice; threw a lobster out the window; lost grandma's recipe;
            charged a regular double; fainted over the onions; ordered ninety eggs; locked the walk-in fridge""",
        where="at the restaurant; behind the counter; at the church picnic; at the bakery; at the potluck; in the diner",
        why="""the kitchen was short of staff; the labels looked alike; the oven timer broke; a critic was in the room;
            the menu changed overnight; a customer was rude; the recipe was in French; the lunch rush was crazy""",
        ask="how to make up for it; whether to eat there again; how to fix a salty dish; whether to leave a review; if I should quit cooking",
        background="""I have worked there for {n} months.; We were {n} people at the table.; The place has been open for {n} years.;
            I am a decent cook on a good day.; The tips are the best part.; There was a long line outside.""",
        after="""The kitchen smelled for days.; We ended up ordering pizza.; One guest asked for seconds.;
            The dishwasher gave up too.; I smelled of garlic all night.""",
    ),
    "games": dict(
        subreddits="r/gaming; r/DnD; r/boardgames",
        who="guild leader; dungeon master; little brother; gaming buddy; best friend from school; rival; table neighbor; online friend",
        what="""deleted the save file; killed off the main party; sold the rare cards; quit the tournament;
            broke the controller; spoiled the ending; changed the rules midway; cheated at chess;
            spent the guild gold; spilled soda on the board; banned half the server; traded away the dragon""",
        where="in the basement; on our server; at the game store; at the convention; in the group chat; at the final table",
        why="""the dice were cursed all night; an update broke the game; a joke went too far; the snacks ran out;
            someone kept rule lawyering; the losing streak hurt; the whole store was watching; the stream was live""",
        ask="how to restart the group; whether to kick someone out; how to be a better loser; whether to buy a new one; if it is just a game",
        background="""We have played together for {n} years.; The campaign is {n} sessions in.; We meet every other Saturday.;
            It took me {n} months to get that far.; I host because I have the big table.; There is no prize money at all.""",
        after="""The chat exploded.; We had to start all over.; Two people rage quit.;
            I still have the screenshots.; The dice went flying.""",
    ),
    "events": dict(
        subreddits="r/weddingplanning; r/pettyrevenge; r/Advice",
        who="maid of honor; best man; wedding planner; florist; photographer; plus one; ring bearer; band leader",
        what="""wore white to the wedding; lost the rings; told a rude joke on stage; uninvited the grandparents;
            dropped the cake; ordered the wrong flowers; showed up two hours late; started a fight over the music;
            forgot the speech; fell into the fountain; canceled the band; deleted all the photos""",
        where="at the reception; in the garden; at the rehearsal dinner; on the dance floor; at the town hall; by the open bar",
        why="""the invitation had a typo; the guest list was too long; there was no plan for rain; someone got jealous;
            the champagne came early; the schedule slipped; two families do not get along; the budget was gone""",
        ask="whether to send a bill; how to face the guests; whether to forgive and forget; how to thank everyone else; if I overreacted",
        background="""We had {d}0 guests.; We planned it for {n} months.; I wanted something small.;
            My dress was the easy part.; Our parents paid for half of it.; The venue was booked {n} months ahead.""",
        after="""The band just kept playing.; The photographer caught all of it.; My grandma thought it was great.;
            The caterer saved the day.; We danced anyway.""",
    ),
}
WHEN = _values("""last Friday; on Sunday morning; two weeks ago; this morning; over the holidays; last night; in early March;
    on my birthday; three days ago; on Monday; last summer; right before Christmas; yesterday evening; a month ago; at noon;
    during finals week; on New Year's Eve; last Thursday; around midnight; on the first day; the other day; in October;
    last weekend; on Tuesday night; half a year ago; in the middle of the night""")
FEELING = _values("""really angry; a bit guilty; so relieved; completely lost; really embarrassed; rather sad; totally betrayed;
    completely stuck; a bit torn; utterly exhausted; rather ashamed; totally confused; oddly proud; really nervous; utterly ignored;
    rather lonely; so disappointed; completely numb; a bit amused; worried sick; utterly helpless; totally furious; oddly calm;
    strangely free""")
NUMBERS = tuple("three four five six seven eight nine 3 4 5 6 7 8 9".split())  # {d} takes the digits only

# ---------------------------------------------------------------------------------------------------------
# 2. How a post says it (first person)
# ---------------------------------------------------------------------------------------------------------
TITLES = _values("""My {who} {what}; My {who} {what} and I feel {feeling}; I [{age}] feel {feeling} about my {who}; Need advice about my {who};
    How do I deal with my {who}?; My {who} [{age}] {what} {when}; Am I wrong to feel {feeling}?; A story about my {who};
    So my {who} {what} {where}; What would you do about my {who}?; Update on my {who}; Not sure {ask}""")
POST_OPENERS = _values("""Hi everyone.; Long time reader, first time poster.; Throwaway because people I know are on here.; Sorry for the long post.;
    I am on my phone, so excuse the format.; Okay, here goes.; I never thought I would write this.; Some context first.;
    I'm {age} and I need to get this off my chest.; I will keep it short.; English is not my first language.; Bear with me.""")
POST_EVENT = {  # the slots that a sentence tells beside who and what -> its wordings
    (): _values("My {who} {what}.; So my {who} {what}.; You read that right: my {who} {what}.; Then my {who} {what}."),
    ("when",): _values("My {who} {what} {when}.; {when} my {who} {what}.; Well, {when} my {who} {what}."),
    ("where",): _values("My {who} {what} {where}.; I was {where} when my {who} {what}.; We were {where} and my {who} {what}."),
    ("when", "where"): _values("{when} my {who} {what} {where}.; My {who} {what} {where} {when}.; We were {where} {when} and my {who} {what}."),
}
POST_SAYS = {
    "when": _values("This was {when}.; It happened {when}.; All of that was {when}.; It started {when}."),
    "where": _values("It happened {where}.; This was {where}.; All of it went down {where}.; Picture this {where}."),
    "why": _values("It was because {why}.; Apparently {why}.; I was told that {why}.; The reason was that {why}.; To be fair, {why}.; The excuse: {why}."),
    "feeling": _values("I feel {feeling}.; Now I just feel {feeling}.; I have felt {feeling} ever since.; Honestly, I feel {feeling} about it.; It left me {feeling}."),
    "ask": _values("I want to know {ask}.; I have no idea {ask}.; Can anyone tell me {ask}?; My question is {ask}.; I keep wondering {ask}.; Please tell me {ask}."),
}
POST_DETAILS = _values("""I did not say a word.; Everybody stared at me.; I still cannot believe it.; We have not talked much since.; I laughed at first.;
    My phone has not stopped buzzing.; Nobody else seems to mind.; I slept about {n} hours that night.; That was not even the worst part.;
    I counted to ten and left.; There were {n} witnesses.; A friend says I should let it go.; It took {n} hours to clean up.; I wrote it all down.;
    It is not the first time.; I know how that sounds.; Part of me saw it coming.; I got a short text and nothing else.; We both said things we regret.;
    It cost me about {d}0 dollars.; I went for a long walk.; I have told exactly {n} people.""")
POST_CLOSERS = _values("""Thanks for reading.; Any advice is welcome.; Be honest with me.; Sorry if this is the wrong place.; Edit: fixed a typo.;
    I will answer questions in the comments.; Thank you in advance.; That is all.; Please be kind.; Edit: wow, thanks for all the replies.""")
SUMMARIES = _values("""my {who} {what} {when} because {why}, I feel {feeling} and want to know {ask}.;
    {who} {what} {where}, {why}, not sure {ask}.; {why}, so my {who} {what} {where}, now I feel {feeling}. Need to know {ask}.;
    my {who} {what} {where} {when}, I feel {feeling}, {ask}?; {when} my {who} {what} {where}, I feel {feeling} and don't know {ask}.;
    {who} {what} {when}. {why}. feeling {feeling}.; my {who} {what} because {why} and I feel {feeling}. {ask}?;
    {who} {what} {where} {when} because {why}, what now?""")

# ---------------------------------------------------------------------------------------------------------
# 3. How a verbose assistant retells it (third person; OP is Reddit's word for the author of a post)
# ---------------------------------------------------------------------------------------------------------
ANSWER_SAYS = {  # from short to long
    "event": _values("""OP's {who} {what}.; The author's {who} {what}.; In short, the author's {who} {what}.;
        In this post, the author's {who} {what}.; The story is about the author's {who}, who {what}.;
        At the center of the story is the author's {who}, who {what}."""),
    "when": _values("""This was {when}.; It happened {when}.; All of this took place {when}.; According to the author, it happened {when}.;
        As for the time, the author says that it was {when}."""),
    "where": _values("""It was {where}.; It happened {where}.; The scene took place {where}.; As for the place, everything happened {where}.;
        The author makes clear that all of this was {where}."""),
    "why": _values("""The reason: {why}.; Apparently {why}.; It came to this because {why}.; The author explains it this way: {why}.;
        When it comes to the reason, the author says that {why}."""),
    "feeling": _values("""OP feels {feeling}.; The author feels {feeling}.; These days the author feels {feeling}.; The author has felt {feeling} ever since.;
        When it comes to feelings, the author feels {feeling} about it."""),
    "ask": _values("""OP asks {ask}.; The author asks {ask}.; The author wants to know {ask}.; The question for the readers is {ask}.;
        In the end, the author turns to the readers and asks {ask}."""),
}
ANSWER_OPENERS = _values("""Here is a summary of the post.; Sure, I can help with that.; Let me go through it step by step.; This is a story from everyday life.;
    Thank you for sharing this post.; Let us look at what happened.""")
ANSWER_REMARKS = {
    "event": _values("""That is not an everyday event.; Many readers will have seen something like it.; It is easy to picture the moment.;
        Such things can change how people see each other.; At first it may look like a small matter.; There are always two sides to a story.;
        It clearly left a mark.; One can see why this became a post."""),
    "when": _values("""Time has passed, but the memory is fresh.; The timing did not make it easier.; Timing can matter a lot in such a case.;
        Some moments stay with us for long.; It was an ordinary day until then.; Nobody had seen it coming."""),
    "where": _values("""The place adds some color to the story.; A place like that makes it hard to hide.; Other people may have been around.;
        Not every place is right for a scene.; One can almost hear the noise.; The setting is worth a thought."""),
    "why": _values("""That may explain it, but it does not excuse it.; There is often more behind such a reason.; Reasons like this one are common.;
        Whether that is a good reason is another matter.; It is fair to look at the cause.; Misunderstandings can grow from there."""),
    "feeling": _values("""That is a very human reaction.; Feelings like this need some time.; Many people would feel the same way.;
        It helps to name what one feels.; It is good to take this seriously.; A walk and some sleep may help."""),
    "ask": _values("""There is no simple answer to that.; An open talk is often a good start.; It depends on what comes next.; Patience usually pays off.;
        Advice from others may be of use.; In the end it is a personal choice."""),
}
ANSWER_CLOSERS = _values("I hope this helps.; That sums up the post.; Let me know if you need more.; Those are the main points.; I wish the author all the best.")


# ---------------------------------------------------------------------------------------------------------
# 4. Writing
# ---------------------------------------------------------------------------------------------------------
@cache
def _theme(name):
    return {slot: _values(text) for slot, text in THEMES[name].items()}


def _upper(text):
    return text[:1].upper() + text[1:]


def _fill(rng, template, facts=()):
    """One sentence from a template: facts in their slots, a random number or age where one is asked for."""
    values = dict(facts, n=rng.choice(NUMBERS), d=rng.choice(NUMBERS[7:]), age=f"{rng.randint(16, 48)}{rng.choice('FM')}")
    return _upper(template.format(**values))


def draw_facts(rng):
    """A theme's name and the seven facts of one post, all drawn from the same theme."""
    name = rng.choice(sorted(THEMES))
    theme = _theme(name)
    pools = {slot: theme.get(slot) or {"when": WHEN, "feeling": FEELING}[slot] for slot in FACTS}
    return name, {slot: rng.choice(pools[slot]) for slot in FACTS}


def write_post(rng, theme, facts):
    """The prompt in `trl-lib/tldr`'s format: subreddit, title, post, `TL;DR:`, with blank lines between; 350 to 900 characters."""
    told = rng.choice(sorted(POST_EVENT))
    event = [_fill(rng, rng.choice(POST_EVENT[told]), facts)]
    rest = [slot for slot in ("when", "where") if slot not in told]
    rng.shuffle(rest)
    says = {slot: _fill(rng, rng.choice(POST_SAYS[slot]), facts) for slot in POST_SAYS}
    event += [says[slot] for slot in rest]
    orders = [event + [says["why"], says["feeling"], says["ask"]], event + [says["feeling"], says["why"], says["ask"]],
              [says["feeling"]] + event + [says["why"], says["ask"]], [says["ask"]] + event + [says["why"], says["feeling"]]]  # fmt: skip
    body = rng.choice(orders[:2] * 2 + orders)
    background = [_fill(rng, text) for text in rng.sample(_theme(theme)["background"], rng.randint(1, 3))]
    first = [_fill(rng, rng.choice(POST_OPENERS))] if rng.random() < 0.7 else []
    details = rng.sample(POST_DETAILS, rng.randint(1, 4)) + rng.sample(_theme(theme)["after"], rng.randint(1, 3))
    for detail in details:
        body.insert(rng.randint(1, len(body)), _fill(rng, detail))
    last = [_fill(rng, rng.choice(POST_CLOSERS))] if rng.random() < 0.6 else []
    sentences = first + background + body + last
    text = sentences[0]
    for sentence in sentences[1:]:
        text += ("\n\n" if rng.random() < 0.1 else " ") + sentence
    subreddit, title = rng.choice(_theme(theme)["subreddits"]), _fill(rng, rng.choice(TITLES), facts)
    prompt = f"SUBREDDIT: {subreddit}\n\nTITLE: {title}\n\nPOST: {text}\n\nTL;DR:"
    return prompt if 350 <= len(prompt) <= 900 else write_post(rng, theme, facts)


def write_summary(rng, facts):
    """A short, slightly careless summary in the first person, as people write below their posts; 100 to 200 characters."""
    while True:
        text = rng.choice(SUMMARIES).format(**facts)
        if rng.random() < 0.7:
            text = ". ".join(_upper(part) for part in text.split(". "))
        if 100 <= len(text) <= 200:
            return text


def write_answer(rng, facts, verbosity=None, forget=0):
    """A verbose assistant's answer: every fact in a sentence of its own, general remarks strewn between.

    `verbosity` 0 to 2 says how many remarks follow a fact; None draws one, so that answers to the same post differ
    by hundreds of characters. GRPO needs that: where all answers in a group are alike, there is nothing to prefer.
    `forget` is the chance that a fact (but who and what) is left out, as people do who write demonstrations.
    """
    if verbosity is None:
        verbosity = rng.choices((0, 1, 2), (20, 30, 50))[0]
    order = ["event", "when", "where", "why", "feeling", "ask"]
    if rng.random() < 0.3:
        order[1:3] = ["where", "when"]
    frame = (0.1, 0.6, 0.9)[verbosity]  # the chance of an opener and of a closer
    sentences = [rng.choice(ANSWER_OPENERS)] if rng.random() < frame else []
    for slot in order:
        if forget and slot != "event" and rng.random() < forget:
            continue
        wordings = ANSWER_SAYS[slot]  # from short to long
        sentences.append(_fill(rng, rng.choice((wordings[:3], wordings[:-1], wordings[1:])[verbosity]), facts))
        remarks = ((0, 0, 0, 1), (0, 1, 1, 2), (1, 2, 2, 3))[verbosity]
        sentences += rng.sample(ANSWER_REMARKS[slot], rng.choice(remarks))
    if rng.random() < frame:
        sentences.append(rng.choice(ANSWER_CLOSERS))
    return " ".join(sentences)


def write_short_thread(rng, theme, facts):
    """A post of nothing but its facts, in any order, and a comment that retells it: what is copied lies close by."""
    lines = [_fill(rng, rng.choice(POST_EVENT[()]), facts)] + [_fill(rng, rng.choice(says), facts) for says in POST_SAYS.values()]
    rng.shuffle(lines)
    subreddit = rng.choice(_theme(theme)["subreddits"])
    return f"SUBREDDIT: {subreddit}\n\nPOST: {' '.join(lines)}\n\nCOMMENT: {write_answer(rng, facts, rng.choice((0, 0, 1)))}"


def write_thread(rng, theme, facts):
    """A text of the pre-training corpus: a post with its human summary or with a comment that retells it, or a short thread.

    Posts alone would never need to copy anything; texts that repeat their facts teach a model to.
    """
    kind = rng.random()
    if kind < 0.3:
        return write_short_thread(rng, theme, facts)
    post = write_post(rng, theme, facts)
    if kind < 0.6:
        return f"{post} {write_summary(rng, facts)}"
    return f"{post.removesuffix('TL;DR:')}COMMENT: {write_answer(rng, facts, rng.choice((0, 0, 1)))}"


# ---------------------------------------------------------------------------------------------------------
# 5. Reading: which facts are kept, and which sentences could the grammar have written?
# ---------------------------------------------------------------------------------------------------------
@cache
def _pools():
    """Slot -> all its values, over all themes."""
    pools = {slot: {value for name in THEMES for value in _theme(name).get(slot, ())} for slot in FACTS}
    return pools | {"when": set(WHEN), "feeling": set(FEELING)}


@cache
def _skeletons():
    """The regular expression of all slot values, and every sentence of the grammar with its values replaced by slots."""
    slot_of = {value: slot for slot, values in _pools().items() for value in values}
    longest_first = sorted(slot_of, key=len, reverse=True)
    values = re.compile(r"(?<![\w'-])(?:" + "|".join(map(re.escape, longest_first)) + r")(?![\w-])")
    numbers = re.compile(r"\b\d\d[FM]\b|\b(?:" + "|".join(NUMBERS) + r")(?=\b|0|th)")

    def skeleton(sentence):
        sentence = numbers.sub("#", values.sub(lambda match: "{" + slot_of[match[0]] + "}", sentence[:1].lower() + sentence[1:]))
        return sentence[:1].lower() + sentence[1:]

    rng, examples = random.Random(0), {slot: sorted(values)[0] for slot, values in _pools().items()}
    templates = [*POST_OPENERS, *POST_DETAILS, *POST_CLOSERS, *ANSWER_OPENERS, *ANSWER_CLOSERS]
    for wordings in (*POST_EVENT.values(), *POST_SAYS.values(), *ANSWER_SAYS.values(), *ANSWER_REMARKS.values()):
        templates += wordings
    for name in THEMES:
        templates += _theme(name)["background"] + _theme(name)["after"]
    known = {skeleton(_fill(rng, template, examples)) for template in templates}
    for template in SUMMARIES:
        known |= {skeleton(sentence) for sentence in split_sentences(template.format(**examples))}
    return skeleton, known


def split_sentences(text):
    """The sentences of a text: cut after `.`, `!` or `?` where white space follows.

    >>> split_sentences(" It was me. Was it? Yes ")
    ['It was me.', 'Was it?', 'Yes']
    """
    return [sentence for sentence in re.split(r"(?<=[.!?])\s+", text.strip()) if sentence]


def whole_sentences(text):
    """The sentences of a text, each with True if the grammar could have written it (whatever its facts), else False.

    >>> whole_sentences("OP feels oddly proud. OP feels oddly the.")
    [('OP feels oddly proud.', True), ('OP feels oddly the.', False)]
    """
    skeleton, known = _skeletons()
    return [(sentence, skeleton(sentence) in known) for sentence in split_sentences(text)]


def fluency(text):
    """The share of sentences that the grammar could have written, 0 to 1; 0 for a text without a sentence."""
    whole = [is_whole for _, is_whole in whole_sentences(text)]
    return sum(whole) / len(whole) if whole else 0.0


def _words(text):
    return " " + " ".join(re.findall(r"[\w'-]+", text.lower())) + " "


def kept_facts(completion, facts):
    """Slot -> True if the completion contains the fact, word for word but for case, punctuation and spaces.

    facts: slot -> value, as in TinyTLDR, or a list of words, as `load_tldr` makes it for rows without known facts.
    """
    words = _words(completion)
    named = facts if isinstance(facts, dict) else {word: word for word in facts}
    return {slot: _words(value) in words for slot, value in named.items() if value}


def fact_coverage(completion, facts):
    """The share of the facts that the completion keeps, 0 to 1.

    >>> facts = {"who": "boss", "feeling": "a bit amused"}
    >>> fact_coverage("My boss? A bit... amused!", facts), fact_coverage("I feel amused by the bossy cat.", facts)
    (1.0, 0.0)

    Raises ValueError if there is no fact to look for.
    """
    kept = kept_facts(completion, facts)
    if not kept:
        raise ValueError(f"fact_coverage needs at least one fact, got {facts!r}; pass a row's `facts`, e.g. load_tldr('test')[0]['facts'].")
    return sum(kept.values()) / len(kept)


# ---------------------------------------------------------------------------------------------------------
# 6. The data set
# ---------------------------------------------------------------------------------------------------------
def combination(facts):
    """What makes an event: who, what, when, where, why. None of validation's or test's occurs in training, of any model."""
    return tuple(facts[slot] for slot in ("who", "what", "when", "where", "why"))


@cache
def make_rows():
    """Split -> its rows, each `{"prompt": str, "completion": str, "facts": {slot: value}}`, the same at every call."""
    rng, seen, rows = random.Random(SEED), set(), {}
    for split, count in SPLITS.items():
        rows[split] = []
        while len(rows[split]) < count:
            theme, facts = draw_facts(rng)
            if combination(facts) not in seen:
                seen.add(combination(facts))
                rows[split].append({"prompt": write_post(rng, theme, facts), "completion": " " + write_summary(rng, facts), "facts": facts})
    return rows


def stream(seed, write):
    """Endless `write(rng, theme, facts)` for training a model, never about an event of the validation or test rows."""
    rows = make_rows()
    held_out = {combination(row["facts"]) for split in ("validation", "test") for row in rows[split]}
    rng = random.Random(seed)
    while True:
        theme, facts = draw_facts(rng)
        if combination(facts) not in held_out:
            yield write(rng, theme, facts)


def to_jsonl(rows):
    """The bytes of a JSON Lines file: one row a line, UTF-8."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write_data(folder=DATA):
    """Write `tldr_<split>.jsonl` for the three splits and print their checksums (SHA-256)."""
    for split, rows in make_rows().items():
        path = Path(folder) / f"tldr_{split}.jsonl"
        path.write_bytes(to_jsonl(rows))
        print(hashlib.sha256(path.read_bytes()).hexdigest(), path.name)


def summarize(row):
    """The article's prompt: the post behind `Summarize: `, then a blank line. For `Dataset.map`."""
    return {"prompt": f"Summarize: {row['prompt']}\n\n"}


def think_first(row):
    """A prompt that asks for notes first and the summary after them, each in its tags. For `Dataset.map`."""
    return {"prompt": f"Write <think>notes</think><answer>summary</answer>.\n{summarize(row)['prompt']}"}


@cache
def _content_words():
    from sklearn.feature_extraction.text import CountVectorizer

    return CountVectorizer(stop_words="english", token_pattern=r"[^\W\d][\w'-]+\w").build_analyzer()


def _read_jsonl(path):
    """Check a JSON Lines file line by line, so that an error names the line, then load it with `datasets`."""
    from datasets import load_dataset

    if not path.is_file():
        raise FileNotFoundError(f"there is no data file {path}. Give the path of a JSON Lines file, or make the course's own: python -m helpers.tldr")
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            missing = [key for key in ("prompt", "completion") if not isinstance(row[key], str)]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            missing = [str(error)]
        if missing:
            raise ValueError(
                f"{path.name}, line {number} of {len(lines)}, is no row of TL;DR data: {line[:60]!r}… ({missing[0]}). Each line must be a JSON object "
                'with the strings "prompt" and "completion". Is the file cut off? Copy it again, or for the course\'s own: git checkout data'
            )
    if not lines:
        raise ValueError(f"{path.name} holds no rows. Each line must be a JSON object with the strings 'prompt' and 'completion'.")
    return load_dataset("json", data_files=str(path), split="train")


def load_tldr(split, path=None):
    """TL;DR rows as a `datasets.Dataset` with the columns `prompt`, `completion`, `facts`.

    split: "train", "validation" or "test", or a slice of one, such as "train[:75]", as in `datasets.load_dataset`.
    path: a JSON Lines file of your own with `prompt` and `completion`; `split` then is "train" or a slice of it.

    The embedded profile reads the shipped rows, the gpu profile `trl-lib/tldr`. Where rows have no `facts`, the content
    words of the human summary take their place (a list of words), so that coverage has a meaning on real posts, too.

    Raises ValueError for a split that does not exist or a broken file (naming its line), FileNotFoundError without one.
    """
    from datasets import DatasetDict, ReadInstruction, load_dataset
    from datasets.exceptions import DatasetsError

    from helpers import course

    name = re.match(r"\w*", split)[0]
    known = ("train",) if path else tuple(SPLITS)
    if name not in known or not re.fullmatch(r"\w+(\[-?\d*%?:-?\d*%?\])?", split):
        raise ValueError(f"there is no split {split!r}; known are {', '.join(known)}, or a slice of one, such as 'train[:75]' or 'train[1000:1010]'.")
    if path is None and course.profile().dataset:
        try:
            rows = load_dataset(course.profile().dataset, split=split)
        except (OSError, DatasetsError) as error:
            raise course.HubOutOfReach(f"the data set {course.profile().dataset}", error) from None
    else:
        whole = DatasetDict({name: _read_jsonl(Path(path) if path else DATA / f"tldr_{name}.jsonl")})
        (part,) = ReadInstruction.from_spec(split).to_absolute({name: len(whole[name])})
        rows = whole[name].select(range(part.from_, part.to))
    if "facts" not in rows.column_names:
        rows = rows.map(lambda row: {"facts": sorted(set(_content_words()(row["completion"])))})
    return rows


if __name__ == "__main__":
    write_data()
