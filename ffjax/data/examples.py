"""Example k of the procedural set as a pure function of (seed, domain, split, k): no files, no JAX.

Worker processes import this module and nothing heavier.
"""

from typing import NamedTuple

import numpy as np

from ffjax.data.camera import PHONE, WEBCAM, Camera, sample_shot, send, take
from ffjax.data.faces import SIZE, Identity, sample_identity, sample_scene
from ffjax.data.forgeries import FAMILIES, Source
from ffjax.data.painting import STREET, STUDIO, Style, paint


class Domain(NamedTuple):
    """A data set's world: how it renders and how it films. number: its place in every seed."""

    number: int
    style: Style
    camera: Camera


class Split(NamedTuple):
    """Size of a split. first: number of its first identity. people: how many. reals: pictures of each, and as many
    forgeries again."""

    first: int
    people: int
    reals: int

    @property
    def size(self) -> int:
        return 2 * self.people * self.reals


DOMAINS = {"a": Domain(0, STUDIO, PHONE), "b": Domain(1, STREET, WEBCAM)}
SPLITS = {"train": Split(0, 500, 4), "validation": Split(500, 50, 3), "test": Split(600, 50, 3)}
PEOPLE = 650
"""Identities of a domain; domain b counts on where a ends. 550 to 599 are nobody's: they were the test split while the
set was being designed, and what is reported should not have been looked at."""


class Example(NamedTuple):
    """image: (SIZE, SIZE, 3) uint8. mask: (SIZE, SIZE) uint8 in {0, 255}. label: 1 = fake. identity: who is in the
    picture (the target, for a swap). name: '<domain>/<split>/<k>-<family or "real">'."""

    image: np.ndarray
    mask: np.ndarray
    label: int
    identity: int
    name: str


def person(seed: int, identity: int) -> Identity:
    """The person with this number."""
    return sample_identity(np.random.default_rng((seed, 0, identity)))


def role(split: str, k: int) -> tuple[int, str | None]:
    """Who of the split is in picture k, and the family it is forged by: even numbers are real, odd ones forged, each
    family in its turn and nobody twice by the same one."""
    turn, who = divmod(k // 2, SPLITS[split].people)
    return who, None if k % 2 == 0 else list(FAMILIES)[(who + turn) % len(FAMILIES)]


def example(seed: int, domain: str, split: str, k: int) -> Example:
    """Picture k of a split (see role).

    A forgery is of a scene of its own, drawn like any real one, so no real picture is its twin. Donors come from the
    same split: no face is shared between splits.
    """
    who, family = role(split, k)
    people = SPLITS[split]
    offset = DOMAINS[domain].number * PEOPLE + people.first
    rng = np.random.default_rng((seed, 1, DOMAINS[domain].number, people.first, k))
    source, last = captured(seed, domain, offset + who, offset + _other(who, people.people, rng), rng)
    frame, mask = source.frame, np.zeros((SIZE, SIZE), bool)
    if family is not None:
        frame, mask = FAMILIES[family](source, rng)
    image, mask = send(frame, mask, DOMAINS[domain].camera, last)
    return Example(image, mask, int(family is not None), offset + who, f"{domain}/{split}/{k:06d}-{family or 'real'}")


def _other(who: int, people: int, rng: np.random.Generator) -> int:
    """Somebody else of the same split."""
    return int((who + rng.integers(1, people)) % people)


def captured(
    seed: int, domain: str, who: int, donor: int, rng: np.random.Generator
) -> tuple[Source, np.random.Generator]:
    """A frame as the camera stored it, before any forgery, and the generator of its last re-encoding."""
    world = DOMAINS[domain]
    scene, shot, last = sample_scene(rng), sample_shot(world.camera, rng), rng.spawn(1)[0]
    identity = person(seed, who)
    painting = paint(identity, scene, world.style)
    frame = take(painting.image, painting.person, shot, world.camera)
    return Source(frame, painting, identity, person(seed, donor), scene, shot, world.style), last
