"""Prompt sets are those of their sources, and the world's say nothing that its pipeline was not taught."""

from collections import Counter

import pytest

from fewbayes.studies.prompts import (
    PROMPT_SETS,
    WORLD_LIVE,
    class_prompt,
    drift_prompts,
    prompts,
    sample_seed,
    samples,
    set_for,
)
from fewbayes.world.objects import LIVE, OBJECTS
from fewbayes.world.scenes import COLOURS, PATTERNS, SURFACES
from fewbayes.world.settings import SETTINGS


@pytest.mark.parametrize("name", PROMPT_SETS)
def test_every_set_has_25_different_prompts_with_token_and_class_word(name):
    written = prompts(name, "<v>", "backpack")
    assert len(set(written)) == 25
    assert all("<v> backpack" in prompt for prompt in written)


def test_the_two_lists_of_dreambooth_share_15_prompts():
    shared = set(PROMPT_SETS["dreambooth-object"]) & set(PROMPT_SETS["dreambooth-live"])
    assert len(shared) == 15


def test_table_5_prints_the_live_list_under_objects():
    assert PROMPT_SETS["paper-table5-object"] == PROMPT_SETS["dreambooth-live"]
    assert PROMPT_SETS["paper-table5-object"] != PROMPT_SETS["dreambooth-object"]


def test_a_set_is_written_with_the_words_of_its_subject():
    assert prompts("dreambooth-object", "qwe", "stuffed animal")[0] == "a qwe stuffed animal in the jungle"
    assert prompts("dreambooth-object", "", "backpack")[-1] == "a cube shaped backpack"
    assert prompts("paper-table5-person", "sks", "person")[24] == "a photo of a sks person laughing"


def test_the_sets_of_the_world_use_only_what_its_captions_say():
    phrases = {setting.phrase for setting in SETTINGS.values()}
    looks = {*COLOURS, *PATTERNS, *SURFACES}
    for name in ("world-object", "world-live"):
        for prompt in prompts(name, "<v>", "thing"):
            before, _, after = prompt.partition(" <v> thing")
            assert after.strip() in phrases or (after == "" and before.removeprefix("a ") in looks), prompt


@pytest.mark.parametrize("prompt", drift_prompts("", world=True))
def test_drift_prompts_of_the_world_are_captions_of_it(prompt):
    head = next(
        prompt.removesuffix(s.phrase).removeprefix("a photo of a ")
        for s in SETTINGS.values()
        if prompt.endswith(s.phrase)
    )
    look, thing = head.split()
    assert look in {*COLOURS, *PATTERNS, *SURFACES}
    assert thing in OBJECTS


def test_the_live_classes_are_those_of_the_world():
    assert set(LIVE) == WORLD_LIVE


def test_each_class_gets_the_list_that_suits_it():
    assert set_for("cat") == "dreambooth-live"
    assert set_for("cat", world=True) == "world-live"
    assert set_for("backpack") == "dreambooth-object"  # also where the subject is called backpack_dog
    assert set_for("person") == "paper-table5-person"
    assert set_for("mug", world=True) == "world-object"


def test_drift_prompts_never_name_the_class():
    for noun in ("mug", "cat", "car", "bicycle"):
        for world in (True, False):
            found = drift_prompts(noun, world=world)
            assert found
            assert not any(noun in prompt.split() for prompt in found)


def test_seeds_are_a_function_of_the_place_alone_and_differ():
    wanted = samples(prompts("dreambooth-object", "qwe", "can"), 4)
    again = samples(prompts("dreambooth-live", "sks", "dog"), 4)
    assert [s.seed for s in wanted] == [s.seed for s in again]
    assert max(Counter(s.seed for s in wanted).values()) == 1
    assert wanted[5].prompt_id == 1
    assert wanted[5].sample == 1
    assert sample_seed(0, 0) == 237566345  # never to change: published pictures hang on it
    assert sample_seed(0, 0, seed=1) != sample_seed(0, 0)
    assert all(0 <= s.seed < 2**32 for s in wanted)


def test_the_class_prompt_has_its_article():
    assert class_prompt("umbrella") == "a photo of an umbrella"
    assert class_prompt("mug") == "a photo of a mug"


def test_a_set_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(ValueError, match="there are dreambooth-object"):
        prompts("dreambooth", "a", "b")
    with pytest.raises(ValueError, match="must be 1 or more"):
        samples(["a"], 0)
