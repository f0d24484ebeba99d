"""Alchemy: an element of atoms goes through a chain of operations; every step writes the element so far.

After DataAlchemy (Zhao et al. 2025, arXiv 2508.01191), without its algebra: there ROT 13 undoes itself and commutes with the
other operation, so that another order has the same answer. Here no rotation is its own inverse, `reverse` does not commute with
`shift` nor `mirror` with a rotation, and no chain comes back to an element that it left.

What the task itself never shows, and its variants always: HELD_OUT_ATOMS at any place of a chain (new_atoms), neighbours in the
element that are neighbours in the alphabet (new_combination), a pair of HELD_OUT_PAIRS in a row (new_composition), and elements
of fewer than 3 or more than 5 atoms.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from string import ascii_uppercase as ATOMS

from evaluation.tasks.generated import Consequence, GeneratedTask, Problem, different

SIZES, LENGTHS = (3, 4, 5), (1, 2, 3)
HELD_OUT_ATOMS = frozenset("JQ")
HELD_OUT_PAIRS = frozenset({("shift", "reverse"), ("rot 5", "mirror")})

_WORDINGS = (
    ("Element: {element}.", "Apply {chain}.", "What comes out?", ", then "),
    ("Start from {element}.", "In turn do {chain}.", "What is left?", "; "),
    ("Take {element}.", "Use {chain}.", "Name the result.", " and "),
    ("Given is {element}.", "Carry out {chain}.", "What does this give?", " before "),
)


def _rotated(element: str, number: int) -> str:
    return "".join(ATOMS[(ATOMS.index(atom) + number) % len(ATOMS)] for atom in element)


OPERATIONS: dict[str, Callable[[str], str]] = {
    "rot 3": partial(_rotated, number=3),
    "rot 5": partial(_rotated, number=5),
    "rot 7": partial(_rotated, number=7),
    "mirror": lambda element: "".join(ATOMS[-1 - ATOMS.index(atom)] for atom in element),  # A is Z, B is Y
    "shift": lambda element: element[-1] + element[:-1],  # to the right, as the paper says (its code goes left)
    "reverse": lambda element: element[::-1],
}


def path(element: str, chain: Sequence[str]) -> list[str]:
    """The element before the chain and after each of its operations."""
    found = [element]
    for name in chain:
        found.append(OPERATIONS[name](found[-1]))
    return found


def make(
    rng: random.Random,
    num_steps: int,
    wording: int,
    sizes: Sequence[int] = SIZES,
    new_atoms: bool = False,
    new_combination: bool = False,
    new_composition: bool = False,
) -> Problem:
    """A new composition has two steps at least. The same `rng` draws the same size, whatever else is new."""
    size, num_steps = rng.choice(sizes), max(num_steps, 2) if new_composition else num_steps
    while True:
        chain = [rng.choice(list(OPERATIONS)) for _ in range(num_steps)]
        element = _element(rng, size, chain, new_atoms)
        states = path(element, chain)
        held_out = [place for place, pair in enumerate(zip(chain, chain[1:], strict=False)) if pair in HELD_OUT_PAIRS]
        if (
            len(set(states)) == len(states)
            and has_close_neighbours(element) == new_combination
            and bool(held_out) == new_composition
            and all(path(element, _exchanged(chain, place))[-1] != states[-1] for place in held_out)
        ):
            break
    opening, work, ask, joiner = _WORDINGS[wording]
    statements = (opening.format(element=_spaced(element)), work.format(chain=joiner.join(chain)))
    steps = _written(chain, states[1:])
    wrong = [_one_atom_changed(rng, state, _lasting(tuple(chain), step)) for step, state in enumerate(states[1:], start=1)]
    corrupted = _written(chain, wrong)
    orders = [path(element, _exchanged(chain, place))[-1] for place in range(num_steps - 1)]
    rivals = different(rng, [*states[:-1], *orders, wrong[-1]], states[-1])
    return Problem(
        " ".join((*statements, ask)),
        steps,
        corrupted,
        _spaced(states[-1]),
        tuple(_spaced(rival) for rival in rivals),
        movable=statements,
        consequences=tuple(_follow(state, chain[place + 1 :]) for place, state in enumerate(wrong)),
        concludes=r":\s*(\w+(?: \w+)*)\W*$",
    )


def _follow(element: str, chain: Sequence[str]) -> Consequence:
    states = path(element, chain)
    return Consequence(_written(chain, states[1:]), _spaced(states[-1]))


def _written(chain: Sequence[str], states: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{name}: {_spaced(state)}" for name, state in zip(chain, states, strict=True))


def has_close_neighbours(element: str) -> bool:
    """Whether two neighbours are neighbours in the alphabet, A beside Z, the last atom beside the first.

    Every operation keeps the answer, so that what holds for an element holds for all that a chain makes of it.
    """
    places = [ATOMS.index(atom) for atom in element]
    return any((one - two) % len(ATOMS) in (1, len(ATOMS) - 1) for one, two in zip(places, [*places[1:], places[0]], strict=True))


def _element(rng: random.Random, size: int, chain: Sequence[str], new_atoms: bool) -> str:
    """Of atoms that the chain makes no held-out one of; with `new_atoms` one or more of them are held out."""
    known = _lasting(tuple(chain))
    atoms = [rng.choice(known) for _ in range(size)]
    if new_atoms:
        for place in rng.sample(range(size), rng.randint(1, 2)):
            atoms[place] = rng.choice(sorted(HELD_OUT_ATOMS))
    return "".join(atoms)


@lru_cache(4096)
def _lasting(chain: tuple[str, ...], step: int = 0) -> tuple[str, ...]:
    """The atoms that may stand in an element after so many steps, when no held-out one is to come up in the whole chain."""
    paths = [path(atom, chain) for atom in ATOMS]
    return tuple(states[step] for states in paths if HELD_OUT_ATOMS.isdisjoint(states))


def _exchanged(chain: Sequence[str], place: int) -> list[str]:
    return [*chain[:place], chain[place + 1], chain[place], *chain[place + 2 :]]


def _one_atom_changed(rng: random.Random, element: str, atoms: Sequence[str]) -> str:
    place = rng.randrange(len(element))
    atom = rng.choice([atom for atom in atoms if atom != element[place]])
    return f"{element[:place]}{atom}{element[place + 1 :]}"


def _spaced(element: str) -> str:
    return " ".join(element)


ALCHEMY = GeneratedTask(
    "alchemy",
    make,
    lengths=LENGTHS,
    variants=(
        ("new_composition", partial(make, new_composition=True)),
        ("new_combination", partial(make, new_combination=True)),
        ("new_atoms", partial(make, new_atoms=True)),
        ("atoms_minus_1", partial(make, sizes=(min(SIZES) - 1,))),
        ("atoms_plus_1", partial(make, sizes=(max(SIZES) + 1,))),
        ("atoms_plus_2", partial(make, sizes=(max(SIZES) + 2,))),
    ),
)
