"""Prompt sets of the evaluation, and which seed each of their pictures is sampled from.

A prompt is written with `{token}` where the rare token stands and `{noun}` where the class word does. The sets of the
DreamBooth data are facts of their authors (google/dreambooth, CC BY 4.0; Ruiz et al., 2023), those called `paper` are
facts of the paper's Table 5. That table prints DreamBooth's list for live subjects under the heading of objects, while
the authors' code uses for each class the list that suits it: `paper-table5-object` is what is printed,
`dreambooth-object` what was used on objects.

It does not know models, pictures or the embedded world: its words for the world are checked against it by a test.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from fewbayes.errors import UserError

IMAGES_PER_PROMPT = 4
"""Pictures of each prompt in the paper's protocol: 25 prompts, 100 pictures a run."""
DREAMBOOTH_LIVE = frozenset({"cat", "dog"})
"""The class words of the DreamBooth data that are alive; every other of its 15 classes is an object."""
WORLD_LIVE = frozenset({"cat", "fish", "bird", "turtle"})


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split("; "))


_PLACES = _listed(
    "in the jungle; in the snow; on the beach; on a cobblestone street; on top of pink fabric; "
    "on top of a wooden floor; with a city in the background; with a mountain in the background; "
    "with a blue house in the background; on top of a purple rug in a forest"
)
_OBJECT_PLACES = _listed(
    "with a wheat field in the background; with a tree and autumn leaves in the background; "
    "with the Eiffel Tower in the background; floating on top of water; floating in an ocean of milk; "
    "on top of green grass with sunflowers around it; on top of a mirror; on top of the sidewalk in a crowded street; "
    "on top of a dirt road; on top of a white rug"
)
_CLOTHES = _listed(
    "wearing a red hat; wearing a santa hat; wearing a rainbow scarf; wearing a black top hat and a monocle; "
    "in a chef outfit; in a firefighter outfit; in a police outfit; wearing pink glasses; wearing a yellow shirt; "
    "in a purple wizard outfit"
)
_LOOKS = ("red", "purple", "shiny", "wet", "cube shaped")
_FACES = _listed(
    "wearing sunglasses; with snowflakes in their hair; with beachy hair waves; wearing a beret; "
    "with a neutral expression; with a contemplative look; laughing heartily; with an amused smile; "
    "with forest green eyeshadow; wearing a red hat; with a slight grin; with a thoughtful gaze; "
    "wearing a black top hat; in a chef hat; in a firefighter helmet; in a police cap; wearing pink glasses; "
    "wearing a yellow headband; in a purple wizard hat; smiling; frowning; looking surprised; winking; yawning; "
    "laughing"
)
_WORLD_PLACES = _listed(
    "in the jungle; in the snow; on the beach; in the desert; on top of pink fabric; on top of a wooden floor; "
    "with a city in the background; with a mountain in the background; in front of a brick wall; "
    "on top of a purple rug; with a wheat field in the background; with autumn leaves in the background; "
    "floating on top of water; in a green meadow; on top of blue tiles; under the night sky"
)
_WORLD_OBJECT_LOOKS = ("red", "purple", "green", "black", "shiny", "wooden", "striped", "dotted", "checkered")
_WORLD_LIVE_LOOKS = ("red", "purple", "green", "white", "shiny", "fluffy", "striped", "dotted", "checkered")


def _written(places: Iterable[str], looks: Iterable[str]) -> tuple[str, ...]:
    return (*(f"a {{token}} {{noun}} {place}" for place in places), *(f"a {look} {{token}} {{noun}}" for look in looks))


PROMPT_SETS: dict[str, tuple[str, ...]] = {
    "dreambooth-object": _written(_PLACES + _OBJECT_PLACES, _LOOKS),
    "dreambooth-live": _written(_PLACES + _CLOTHES, _LOOKS),
    "paper-table5-object": _written(_PLACES + _CLOTHES, _LOOKS),  # the live list, as printed there
    "paper-table5-person": tuple(f"a photo of a {{token}} {{noun}} {face}" for face in _FACES),
    "world-object": _written(_WORLD_PLACES, _WORLD_OBJECT_LOOKS),
    "world-live": _written(_WORLD_PLACES, _WORLD_LIVE_LOOKS),
}
_DRIFT = {
    "photographs": _listed(
        "a photo of a lighthouse; a photo of a bowl of fruit; a photo of a bicycle against a wall; "
        "a portrait of an old man; a wooden bridge over a river; a street market in the rain; "
        "a red tractor in a field; a harbour with sailing boats"
    ),
    "world": _listed(
        "a photo of a red mug in the snow; a photo of a blue car with a city in the background; "
        "a photo of a green chair on top of a wooden floor; a photo of a yellow umbrella on the beach; "
        "a photo of a white cat in a green meadow; a photo of a striped ball on top of blue tiles; "
        "a photo of a black bottle in front of a brick wall; a photo of a pink bird in the jungle; "
        "a photo of a shiny clock on top of a purple rug; a photo of a brown boot in the desert"
    ),
}


@dataclass(frozen=True)
class Sample:
    """One picture to be made. `prompt_id`: place of the prompt in its set; `sample`: number among its pictures."""

    prompt: str
    prompt_id: int
    sample: int
    seed: int


def prompts(name: str, token: str, noun: str) -> list[str]:
    """The prompts of a set with the rare token and the class word in them; an empty token leaves one word out."""
    if name not in PROMPT_SETS:
        raise UserError(f"{name!r} is not a set of prompts; there are {', '.join(PROMPT_SETS)}")
    return [" ".join(text.format(token=token, noun=noun).split()) for text in PROMPT_SETS[name]]


def set_for(noun: str, *, world: bool = False) -> str:
    """The set that suits a class word: live ones and persons are dressed, objects are not."""
    if world:
        return "world-live" if noun in WORLD_LIVE else "world-object"
    if noun == "person":
        return "paper-table5-person"
    return "dreambooth-live" if noun in DREAMBOOTH_LIVE else "dreambooth-object"


def sample_seed(prompt_id: int, sample: int, seed: int = 0) -> int:
    """A 32-bit seed that is a function of its place alone, so that all models of a study begin from the same noise.

    `seed` is that of the evaluation, not of a training: runs of all training seeds, methods and the base model are
    compared picture by picture.
    """
    return int.from_bytes(hashlib.sha256(f"fewbayes sample {seed} {prompt_id} {sample}".encode()).digest()[:4], "big")


def samples(texts: Iterable[str], images_per_prompt: int = IMAGES_PER_PROMPT, seed: int = 0) -> list[Sample]:
    """What to sample for a list of prompts, prompt by prompt."""
    if images_per_prompt < 1:
        raise UserError(f"images_per_prompt is {images_per_prompt}; it must be 1 or more")
    return [
        Sample(text, number, i, sample_seed(number, i, seed))
        for number, text in enumerate(texts)
        for i in range(images_per_prompt)
    ]


def class_prompt(noun: str) -> str:
    """The prompt that asks for the class and not the subject: what is trained must not show in its pictures."""
    return f"a photo of {'an' if noun[:1] in tuple('aeiou') else 'a'} {noun}"


def drift_prompts(noun: str, *, world: bool = False) -> list[str]:
    """Prompts of other things than `noun`, whose pictures should stay those of the base model."""
    return [text for text in _DRIFT["world" if world else "photographs"] if noun not in text.split()]
