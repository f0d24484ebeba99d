"""Grammar in minimal pairs: a beginning, and two ways to go on of which one is English. Scored by likelihood."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from evaluation.task import Example, Split, normalise, split_of

_PEOPLE = (
    "author", "baker", "captain", "dancer", "doctor", "driver", "farmer", "guard", "hunter", "lawyer", "manager", "nurse",
    "painter", "pilot", "player", "poet", "sailor", "senator", "singer", "student", "surgeon", "teacher", "tourist", "writer",
    "actor", "banker", "barber", "builder", "butcher", "clerk", "cook", "dentist", "editor", "engineer", "gardener", "judge",
    "minister", "officer", "plumber", "priest", "professor", "reporter", "scientist", "soldier", "tailor", "trader", "visitor",
)  # fmt: skip
_MEN = (
    "king", "boy", "father", "uncle", "waiter", "actor", "prince", "son", "brother", "monk", "duke", "grandfather", "nephew",
    "wizard", "husband", "gentleman", "groom", "bachelor", "emperor", "steward", "landlord", "widower", "stepfather", "lad",
    "grandson", "godfather", "stepson", "schoolboy", "cowboy", "sultan", "baron", "butler", "grandpa", "wrestler", "sheikh",
)  # fmt: skip
_THINGS = (
    "lamp", "chair", "book", "apple", "bottle", "hat", "car", "map", "cup", "shirt", "clock", "ticket", "bag", "pen", "ring",
    "letter", "table", "song", "photo", "flower", "coat", "knife", "basket", "button", "cake", "window", "bell", "garden",
    "plate", "spoon", "mirror", "pillow", "blanket", "carpet", "candle", "painting", "violin", "guitar", "bicycle", "boat",
    "jacket", "sweater", "necklace", "pencil", "notebook", "camera", "radio", "kettle", "orange", "melon", "carrot",
)  # fmt: skip
_PLURALS = {"gentleman": "gentlemen", "knife": "knives"}
_IRREGULAR_PLURALS = {
    "child": "children", "man": "men", "woman": "women", "foot": "feet", "tooth": "teeth", "mouse": "mice", "goose": "geese",
    "wolf": "wolves", "leaf": "leaves", "knife": "knives", "wife": "wives", "thief": "thieves", "loaf": "loaves",
    "sheep": "sheep", "calf": "calves", "shelf": "shelves", "ox": "oxen", "half": "halves", "elf": "elves",
    "policeman": "policemen", "fireman": "firemen", "snowman": "snowmen", "fisherman": "fishermen", "salesman": "salesmen",
    "grandchild": "grandchildren", "housewife": "housewives", "werewolf": "werewolves", "bookshelf": "bookshelves",
    "policewoman": "policewomen", "deer": "deer", "salmon": "salmon", "stepchild": "stepchildren", "life": "lives",
}  # fmt: skip
# Base: past, past participle, an object.
_VERBS = {
    "write": ("wrote", "written", "the report"),
    "drive": ("drove", "driven", "the truck"),
    "eat": ("ate", "eaten", "the soup"),
    "take": ("took", "taken", "the bus"),
    "give": ("gave", "given", "a talk"),
    "speak": ("spoke", "spoken", "the language"),
    "break": ("broke", "broken", "the rules"),
    "choose": ("chose", "chosen", "the menu"),
    "steal": ("stole", "stolen", "the jewels"),
    "wear": ("wore", "worn", "the uniform"),
    "draw": ("drew", "drawn", "a tree"),
    "grow": ("grew", "grown", "the roses"),
    "know": ("knew", "known", "the truth"),
    "throw": ("threw", "thrown", "the ball"),
    "sing": ("sang", "sung", "the hymn"),
    "drink": ("drank", "drunk", "the milk"),
    "begin": ("began", "begun", "the work"),
    "forget": ("forgot", "forgotten", "the keys"),
    "hide": ("hid", "hidden", "the money"),
    "ride": ("rode", "ridden", "the horse"),
    "see": ("saw", "seen", "the river"),
    "fall": ("fell", "fallen", "down the stairs"),
    "wake": ("woke", "woken", "the baby"),
    "bite": ("bit", "bitten", "the apple"),
    "blow": ("blew", "blown", "the whistle"),
    "forgive": ("forgave", "forgiven", "the thief"),
    "shake": ("shook", "shaken", "the bottle"),
    "swim": ("swam", "swum", "across the lake"),
    "tear": ("tore", "torn", "the letter"),
    "ring": ("rang", "rung", "the bell"),
    "shrink": ("shrank", "shrunk", "the shirt"),
    "sink": ("sank", "sunk", "the ship"),
    "rise": ("rose", "risen", "before dawn"),
    "swear": ("swore", "sworn", "an oath"),
    "weave": ("wove", "woven", "the basket"),
    "do": ("did", "done", "the shopping"),
    "go": ("went", "gone", "to the party"),
    "freeze": ("froze", "frozen", "the meat"),
}
_NAMES = ("Anna", "Peter", "Maria", "David", "Laura", "Simon", "Emma", "Daniel", "Julia", "Robert", "Helen", "Martin")
_NEAR = ("near", "behind", "beside", "with", "in front of", "next to")
_LIKES = ("like", "know", "trust", "admire", "remember", "watch")
_PLACES = ("in the kitchen", "at the market", "in the old house", "on the second floor", "at home", "in the small shop")
_STATES = ("is", "are"), ("was", "were"), ("has been", "have been")
_ENDS = ("very happy.", "late again.", "at home now.", "from a small town.", "ready to leave.", "quite famous.")


@dataclass(frozen=True)
class Pair:
    """The beginning (which names the key word), the right continuation and the wrong one."""

    beginning: str
    good: str
    bad: str


def _plural(noun: str) -> str:
    return _PLURALS.get(noun, f"{noun}s")


def _agreement_across_a_phrase(rng: random.Random, noun: str) -> Pair:
    many, (one_verb, many_verb) = rng.random() < 0.5, rng.choice(_STATES)
    other = rng.choice([person for person in _PEOPLE if person != noun])
    subject, attractor = (_plural(noun), other) if many else (noun, _plural(other))
    good, bad = (many_verb, one_verb) if many else (one_verb, many_verb)
    end = rng.choice(_ENDS)
    return Pair(f"The {subject} {rng.choice(_NEAR)} the {attractor}", f"{good} {end}", f"{bad} {end}")


def _agreement_across_a_clause(rng: random.Random, noun: str) -> Pair:
    many, (one_verb, many_verb) = rng.random() < 0.5, rng.choice(_STATES)
    other, verb, end = rng.choice([person for person in _PEOPLE if person != noun]), rng.choice(_LIKES), rng.choice(_ENDS)
    if many:
        return Pair(f"The {_plural(noun)} that the {other} {verb}{_third(verb)}", f"{many_verb} {end}", f"{one_verb} {end}")
    return Pair(f"The {noun} that the {_plural(other)} {verb}", f"{one_verb} {end}", f"{many_verb} {end}")


def _third(verb: str) -> str:
    return "es" if verb.endswith("ch") else "s"


def _reflexive(rng: random.Random, noun: str) -> Pair:
    other = rng.choice([man for man in _MEN if man != noun])
    verb = rng.choice(("hurt", "blamed", "saw", "helped", "defended", "praised", "prepared", "introduced"))
    link = rng.choice(("who met", "who stood beside", "who worked for", "behind"))
    if rng.random() < 0.5:
        return Pair(f"The {_plural(noun)} {link} the {other} {verb}", "themselves.", "himself.")
    return Pair(f"The {noun} {link} the {_plural(other)} {verb}", "himself.", "themselves.")


def _determiner(rng: random.Random, noun: str) -> Pair:
    name, place, verb = rng.choice(_NAMES), rng.choice(_PLACES), rng.choice(("wanted", "chose", "liked", "took"))
    if rng.random() < 0.5:
        word = rng.choice(("this", "that", "one"))
        return Pair(f"There were many {_plural(noun)} {place}, but {name} {verb} only {word}", f"{noun}.", f"{_plural(noun)}.")
    word = rng.choice(("these", "those", "two", "several"))
    return Pair(f"Not every {noun} {place} was old, and {name} {verb} {word}", f"{_plural(noun)}.", f"{noun}.")


def _irregular_plural(rng: random.Random, noun: str) -> Pair:
    article = "an" if noun[0] in "aeiou" else "a"
    number, name = rng.choice(("two", "three", "four", "five", "six", "ten")), rng.choice(_NAMES)
    verb = rng.choice(("drew", "saw", "counted", "painted", "described", "imagined", "showed us"))
    wrong = f"{noun}es" if noun.endswith("x") else f"{noun}s"
    return Pair(f"First {name} {verb} {article} {noun}, and then {number}", f"{_IRREGULAR_PLURALS[noun]}.", f"{wrong}.")


def _irregular_past(rng: random.Random, verb: str) -> Pair:
    past, _, target = _VERBS[verb]
    when, name = rng.choice(("Yesterday", "Last night", "A week ago", "In the end", "This morning")), rng.choice(_NAMES)
    regular = f"{verb}d" if verb.endswith("e") else f"{verb}ed"
    return Pair(f"{name} did not want to {verb} {target}. {when} {name} still", f"{past} {target}.", f"{regular} {target}.")


def _participle(rng: random.Random, verb: str) -> Pair:
    past, participle, target = _VERBS[verb]
    name, when = rng.choice(_NAMES), rng.choice(("By Friday", "By noon", "By the evening", "By then", "At last"))
    return Pair(f"{name} planned to {verb} {target}. {when} {name} had", f"{participle} {target}.", f"{past} {target}.")


PARADIGMS: Mapping[str, tuple[tuple[str, ...], Callable[[random.Random, str], Pair]]] = {
    "agreement-phrase": (_PEOPLE, _agreement_across_a_phrase),
    "agreement-clause": (_PEOPLE, _agreement_across_a_clause),
    "reflexive": (_MEN, _reflexive),
    "determiner": (_THINGS, _determiner),
    "irregular-plural": (tuple(_IRREGULAR_PLURALS), _irregular_plural),
    "irregular-past": (tuple(_VERBS), _irregular_past),
    "participle": (tuple(_VERBS), _participle),
}


@dataclass(frozen=True)
class GrammarTask:
    """Minimal pairs, the paradigms in turns. `question` is the beginning of a sentence, each choice a way to end it.

    Both choices follow the same beginning, so comparing their likelihoods compares the whole sentences. The group is a
    paradigm with its key word, so that a paradigm asks about other words in every split; the right choice stands first or
    second at random.
    """

    name: str = "grammar"

    def examples(self, split: Split, count: int, seed: int = 0) -> list[Example]:
        keys = {
            paradigm: [word for word in words if split_of(f"{self.name}/{paradigm}/{word}") == split]
            for paradigm, (words, _) in PARADIGMS.items()
        }
        found: dict[str, Example] = {}
        for index in range(20 * (count + 10)):
            paradigm = list(PARADIGMS)[index % len(PARADIGMS)]
            rng = random.Random(f"{self.name}/{split}/{seed}/{index}")
            word = rng.choice(keys[paradigm])
            pair = PARADIGMS[paradigm][1](rng, word)
            choices = [pair.good, pair.bad]
            rng.shuffle(choices)
            example = Example(
                id=f"{self.name}/{paradigm}/{split}/{seed}/{index}",
                question=pair.beginning,
                answer=pair.good,
                choices=tuple(choices),
                group=f"{self.name}/{paradigm}/{word}",
            )
            found.setdefault(normalise(pair.beginning), example)
            if len(found) >= count:
                break
        return list(found.values())[:count]


GRAMMAR = GrammarTask()
