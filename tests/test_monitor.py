"""The stage is told from constructed pictures and readings whose stage is known by construction."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbayes.files.decode import typed
from fewbayes.models import inspect_model
from fewbayes.settings.config import recommended_rate
from fewbayes.stage.monitor import (
    CORRUPTED,
    Judgement,
    Look,
    Monitor,
    corruption,
)
from fewbayes.stage.readings import Blank, Losses, Reading
from fewbayes.stage.samples import SampleStats, describe
from fewbayes.stage.scores import CLEAN, OUTLINES, SOFTNESS, STRANGE, VISIBLE
from fewbayes.stage.words import fitted
from fewbayes.world.scenes import SUBJECTS, subject_photograph
from test_sample_stats import noised, scene

REFERENCES = [scene(seed) for seed in range(20, 24)]
BASE = [scene(seed) for seed in range(40, 44)]
TRAINING = describe(REFERENCES, REFERENCES)
BLENDS = [(b * 0.3 + r * 0.7).astype(np.uint8) for b, r in zip(BASE, [*REFERENCES[1:], REFERENCES[0]], strict=True)]


def stats(pictures) -> SampleStats:
    return describe(pictures, REFERENCES, BASE[: len(pictures)])


def noisy(strength: float) -> list[np.ndarray]:
    return [noised(picture, strength, seed=i) for i, picture in enumerate(BASE)]


def reading(loss: float, blank: float = 0.1) -> Reading:
    return Reading(1, losses=Losses((100, 400), (loss, loss)), blank=Blank((999,), ((blank,),), (0.1,), (0.1,)))


UNDERFIT = Look(0, reading(0.5), stats(BASE))
LEARNED = reading(0.3)
SEEN = {
    "u": Look(0, reading(0.5), stats(BASE)),
    "g": Look(0, LEARNED, stats(BASE)),
    "C": Look(0, LEARNED, stats(noisy(40))),
    "M": Look(0, LEARNED, stats([reference.copy() for reference in REFERENCES])),
    "-": Look(0, LEARNED),
}
NAMES = {"u": "underfit", "g": "good", "C": "corrupted", "M": "memorised"}
LETTERS = {name: letter for letter, name in NAMES.items()}


def monitor(**settings) -> Monitor:
    return Monitor(UNDERFIT, TRAINING, **settings)


def kept(value):
    """As it comes back from a checkpoint."""
    return typed(json.loads(json.dumps(asdict(value))), type(value), "kept")


def at(step: int, look: Look, averaged: SampleStats | None = None) -> Look:
    return Look(step, look.reading, look.samples, averaged)


def alone(look: Look) -> Judgement:
    return monitor(patience=1).judge(at(1, look))


@pytest.mark.parametrize("letter", NAMES)
def test_each_stage_is_known_by_its_pictures(letter):
    assert alone(SEEN[letter]).seen == NAMES[letter]


def test_the_base_model_is_underfit_by_its_samples_alone():
    judged = Monitor(Look(0, None, stats(BASE)), TRAINING).judge(Look(1, None, stats(BASE)))
    assert (judged.stage, judged.scores["learning"]) == ("underfit", 0)
    assert judged.scores["corruption"] <= CLEAN


def test_likeness_alone_tells_that_something_was_learned():
    judged = Monitor(Look(0, None, stats(BASE)), TRAINING).judge(Look(1, None, stats(BLENDS)))
    assert judged.seen in ("good", "memorised")
    assert judged.scores["learning"] > 0.1


def test_the_corruption_score_rises_with_noise():
    scores = [alone(Look(1, LEARNED, stats(noisy(s)))).scores["corruption"] for s in (0, 5, 10, 20, 40, 80)]
    assert all(a < b for a, b in pairwise(scores))
    assert scores[0] < 0.5 < scores[-1] <= 1


@pytest.mark.parametrize("change", [0.6, 0.8, 1.2])
def test_a_change_of_brightness_is_no_corruption(change):
    changed = [(picture * change).clip(0, 255).astype(np.uint8) for picture in BASE]
    scores = alone(Look(1, LEARNED, stats(changed))).scores
    assert scores["corruption"] < CORRUPTED
    assert scores["contours"] == pytest.approx(0, abs=0.01)  # whole grey levels


def test_pictures_as_noisy_as_the_training_images_are_not_corrupted():
    textured = [noised(picture, 40, seed=9) for picture in REFERENCES]
    clean_base = Look(0, None, describe(BASE, textured))
    judged = Monitor(clean_base, describe(textured, textured)).judge(Look(1, LEARNED, describe(noisy(38), textured)))
    assert judged.seen != "corrupted"


def test_copies_of_the_richest_training_image_are_memorised_and_not_corrupted():
    mixed = [*REFERENCES[:3], noised(REFERENCES[3], 60)]
    watch = Monitor(Look(0, None, describe(BASE, mixed)), describe(mixed, mixed))
    assert watch.judge(Look(1, None, describe([mixed[3].copy()] * 4, mixed))).seen == "memorised"


def test_with_one_training_image_likeness_is_no_memorisation_before_diversity_falls():
    one = REFERENCES[:1]
    base = describe(BASE, one)
    watch = Monitor(Look(0, reading(0.5), base), describe(one, one), patience=1)
    spread = replace(base, likeness=(0.99,) * 4)
    assert watch.judge(Look(1, LEARNED, spread)).seen == "good"
    assert watch.judge(Look(2, LEARNED, describe([one[0].copy()] * 4, one))).seen == "memorised"


# seen at each look -> stage after each, patience 2
HISTORIES = [
    ("uugg", "uugg"),
    ("ugCgC", "ugggg"),
    ("gCC", "ggC"),
    ("gCCgCg", "ggCCCC"),
    ("gCCgg", "ggCCg"),
    ("gCMCM", "ggMCM"),
    ("gMM", "ggM"),
    ("CCMM", "uCMM"),
    ("gCCug", "ggCCg"),
    ("gCgMC", "ggggC"),
    ("gC-C", "gggC"),
    ("gCC--", "ggCCC"),
    ("--g", "uug"),
]


@pytest.mark.parametrize(("seen", "stages"), HISTORIES)
def test_an_alarm_begins_and_ends_with_two_looks_in_a_row(seen, stages):
    watch = monitor()
    judged = [watch.judge(at(step, SEEN[letter])) for step, letter in enumerate(seen)]
    assert "".join(LETTERS[j.stage] for j in judged) == stages


@pytest.mark.parametrize(
    ("seen", "best"),
    [
        ("uu", None),
        ("ugCg", 3),
        ("ugCC", 1),
        ("gMM", 0),
        ("--", None),
        ("g--", 0),
        ("gCCg", 0),
        ("gCCgg", 4),
        ("gCCug", 0),
        ("CCg", 2),
    ],
)
def test_the_best_look_is_the_last_whose_samples_were_good(seen, best):
    watch = monitor()
    for step, letter in enumerate(seen):
        watch.judge(at(step, SEEN[letter]))
    assert watch.best == best


def test_corruption_that_averaging_cures_is_jitter():
    watch, clean = monitor(), stats(BASE)
    first, second = (watch.judge(at(step, SEEN["C"], clean)) for step in (1, 2))
    assert (first.cause, second.cause) == (None, "jitter")
    assert any("--use_ema" in option for option in second.options)


def test_corruption_of_the_average_too_is_no_jitter():
    watch = monitor()
    watch.judge(at(1, SEEN["C"], stats(BASE)))  # the average lags behind
    judged = [watch.judge(at(step, SEEN["C"], stats(noisy(40)))) for step in (2, 3, 4)]
    assert {j.cause for j in judged} == {None}
    assert any("averaged weights' samples are corrupted too" in said for said in judged[-1].evidence)


def test_without_samples_no_alarm_begins_and_the_evidence_says_so():
    watch = monitor(patience=1)
    terrible = Reading(1, losses=Losses((100, 400), (3.0, 3.0)), blank=Blank((999,), ((1.0,),), (1.0,), (1.0,)))
    judged = watch.judge(Look(1, terrible))
    assert judged.stage == "underfit"
    assert "corruption" not in judged.scores
    assert "no samples" in judged.evidence[1]


def test_the_line_says_step_stage_evidence_and_options():
    watch = monitor(patience=1)
    watch.judge(at(450, SEEN["g"]))
    line = watch.judge(at(650, SEEN["C"])).line
    assert line.startswith("step 650: looks corrupted: noise ")
    assert "(alarm at 1.2), 4 of 4 pictures over" in line
    assert "step 450" in line
    assert "\n" not in line


def test_what_cannot_be_compared_is_refused():
    watch = monitor()
    with pytest.raises(ValueError, match="3 samples and 4 of the base model"):
        watch.judge(Look(1, None, stats(BASE[:3])))
    watch.judge(at(5, SEEN["g"]))
    with pytest.raises(ValueError, match="order"):
        watch.judge(at(4, SEEN["g"]))
    with pytest.raises(ValueError, match="patience"):
        monitor(patience=0)
    with pytest.raises(ValueError, match="training images"):
        Monitor(UNDERFIT, describe([], []))


def test_samples_of_no_pictures_are_no_samples():
    assert monitor().judge(Look(1, LEARNED, stats([]))) == monitor().judge(Look(1, LEARNED))


@settings(max_examples=40, deadline=None)
@given(st.text("ugCM-", min_size=1, max_size=10), st.integers(0, 10), st.integers(1, 3))
def test_a_restored_monitor_judges_on_as_the_uninterrupted_one(history, cut, patience):
    averaged = {"C": stats(BASE), "M": stats(noisy(40))}
    looks = [at(step, SEEN[letter], averaged.get(letter)) for step, letter in enumerate(history)]
    whole, first = monitor(patience=patience), monitor(patience=patience)
    for look in looks[:cut]:
        first.judge(look)
    restored = Monitor.remembering(kept(first.memory))
    together = [whole.judge(look) for look in looks]
    assert [restored.judge(look) for look in looks[cut:]] == together[cut:]
    assert (restored.best, restored.memory) == (whole.best, whole.memory)


@pytest.mark.parametrize("letter", SEEN)
def test_judgements_and_looks_outlive_json(letter):
    look = at(3, SEEN[letter], stats(BASE))
    judged = alone(look)
    assert kept(look) == look
    assert kept(judged) == judged
    assert all(np.isfinite(score) for score in judged.scores.values())


# --- hard cases -------------------------------------------------------------------------------------------------------


def drawn(name: str) -> list[np.ndarray]:
    indices = range(len(SUBJECTS[name].settings))
    return [np.round(subject_photograph(name, i)[0] * 255).astype(np.uint8) for i in indices]


def against(base, references, **settings) -> Monitor:
    return Monitor(Look(0, reading(0.5), describe(base, references)), describe(references, references), **settings)


def test_texture_of_the_base_model_excuses_no_ruin():
    tiled = [noised(picture, 80, seed=i) for i, picture in enumerate(BASE)]
    judged = against(tiled, REFERENCES).judge(Look(1, LEARNED, stats(noisy(60))))
    assert judged.seen == "corrupted"


def test_mottling_that_drowns_a_clear_picture_is_corruption_beside_rich_training_images():
    textured = [*REFERENCES[:2], *(noised(picture, 60, seed=5) for picture in REFERENCES[2:])]
    mottled = [noised(np.full_like(BASE[0], 120), 40, seed=60 + i) for i in range(4)]
    watch, judge = against(BASE, textured), lambda pictures: Look(1, LEARNED, describe(pictures, textured))
    assert watch.judge(judge(BASE)).seen == "good"
    judged = watch.judge(judge(mottled))
    assert judged.seen == "corrupted"
    assert "mottling" in judged.evidence[0]


@pytest.mark.parametrize("grey", [0, 128, 255])
@pytest.mark.parametrize("learning", [None, LEARNED, reading(9.0)])
def test_flat_pictures_are_corrupted_and_not_underfit(grey, learning):
    flat = [np.full_like(BASE[0], grey)] * 4
    assert alone(Look(1, learning, stats(flat))).seen == "corrupted"
    assert against([], REFERENCES).judge(Look(1, learning, stats(flat))).seen == "corrupted"


def test_textured_pictures_beside_partly_textured_training_images_are_good():
    mixed = [*REFERENCES[:2], *(noised(reference, 40, seed=5) for reference in REFERENCES[2:])]
    pictures = [*BASE[:2], *(noised(picture, 40, seed=6) for picture in BASE[2:])]
    base = [*BASE[:3], pictures[3]]
    for twins in ([], base):
        judged = against(twins, mixed).judge(Look(1, LEARNED, describe(pictures, mixed)))
        assert judged.seen == "good"


def test_other_photographs_of_the_subject_are_seldom_called_corrupted():
    found = []
    for name in SUBJECTS:
        photographs = drawn(name)
        for odd in (0, 1):
            samples, references = photographs[odd::2], photographs[1 - odd :: 2]
            watch = Monitor(Look(0), describe(references, references))
            found.append(watch.judge(Look(1, None, describe(samples, references))).seen)
    assert len(found) == 24
    assert found.count("corrupted") <= 4
    assert "memorised" not in found


def test_copies_are_seen_among_duplicates_mirrored_ones_and_bursts():
    burst = [np.roll(reference, 1, axis=0) for reference in REFERENCES]
    for again in (REFERENCES, [reference[:, ::-1] for reference in REFERENCES], burst):
        known = [*REFERENCES, *(picture.copy() for picture in again)]
        watch = against(BASE, known)
        assert watch.judge(Look(1, LEARNED, describe(REFERENCES[::-1], []))).seen == "good"
        copies = [picture.copy() for picture in REFERENCES]
        assert watch.judge(Look(2, LEARNED, describe(copies, known))).seen == "memorised"


def test_one_photograph_twice_is_one_photograph():
    twice = [REFERENCES[0], REFERENCES[0].copy()]
    watch = against(BASE, twice)
    base = describe(BASE, twice)
    spread = replace(base, likeness=(0.99,) * 4)
    assert watch.judge(Look(1, LEARNED, spread)).seen == "good"


def test_one_training_image_and_one_sample_cannot_tell_copies_and_say_so():
    one = REFERENCES[:1]
    watch = against(BASE[:1], one)
    judged = watch.judge(Look(1, LEARNED, describe([one[0].copy()], one)))
    assert not watch.standards.tells_copies
    assert judged.seen == "good"
    assert any("cannot be told" in said for said in judged.evidence)
    assert against(BASE, one).standards.tells_copies
    assert against(BASE[:1], REFERENCES).standards.tells_copies


def test_what_was_learned_and_lost_is_not_silently_underfit():
    watch = monitor()
    watch.judge(at(450, SEEN["g"]))
    judged = watch.judge(at(500, SEEN["u"]))
    assert (judged.stage, judged.cause) == ("underfit", "lost")
    assert "step 450" in judged.line
    assert "train longer" not in judged.options


@pytest.mark.parametrize("samples", [stats(BASE), None])
def test_a_loss_above_the_base_models_is_damage(samples):
    judged = monitor().judge(Look(1, reading(0.6), samples))
    assert judged.cause == "diverged"
    assert "damaged" in judged.evidence[0]
    assert "lower the learning rate" in judged.options


def test_underfit_has_options():
    assert monitor().judge(at(1, SEEN["u"])).options == ("train longer", "raise the learning rate")


def test_a_fallen_loss_alone_is_not_called_good():
    judged = monitor().judge(Look(1, LEARNED))
    assert (judged.stage, judged.options) == ("underfit", ())
    assert "only samples tell" in judged.evidence[0]


def plainly(unrest: float, kept: float = 1.0, contrast: float = 49.0) -> SampleStats:
    """Four pictures of one kind, of no fine noise and as like the training images as the base model's."""
    four = {"noise": 1e-9, "saturation": 0.0, "likeness": 0.2, "contrast": contrast, "unrest": unrest, "kept": kept}
    return SampleStats(4, diversity=0.3, distinct=4, **{name: (value,) * 4 for name, value in four.items()})


@given(st.floats(0.2, 10), st.floats(0.3, 3), st.floats(-1, 1))
def test_restless_colours_count_more_the_stranger_a_picture_is(restless, faded, kept):
    base, seen = replace(plainly(10), noise=(1.0,) * 4), plainly(10 * restless, kept, 49 * faded)
    unrest = math.hypot(10 * restless, VISIBLE) / (49 * faded + 1) / (math.hypot(10, VISIBLE) / 50)
    strange = min(1, (1 - max(kept, 0.2)) / 0.8)
    beyond = math.log(unrest) + 2 * (strange - 0.85)
    assert corruption(seen, base, base) == pytest.approx(1 / (1 + math.exp(-beyond / SOFTNESS)))


def test_twice_the_unrest_is_excused_where_the_picture_is_the_twin_and_not_where_it_is_strange():
    assert corruption(plainly(20, kept=1), plainly(10), plainly(10)) < CORRUPTED
    assert corruption(plainly(20, kept=0), plainly(10), plainly(10)) > CORRUPTED
    assert corruption(plainly(10, kept=0), plainly(10), plainly(10)) > CORRUPTED
    assert corruption(plainly(6, kept=0), plainly(10), plainly(10)) < CORRUPTED
    assert corruption(plainly(0.8, kept=0.5), plainly(0.1), plainly(0.1)) < CORRUPTED  # nobody sees such changes


def test_pictures_on_the_way_from_the_base_model_to_the_training_images_are_clean():
    for share in (0.2, 0.4, 0.6, 0.8):
        mixed = [(b * (1 - share) + r * share).astype(np.uint8) for b, r in zip(BASE, REFERENCES, strict=True)]
        assert alone(Look(1, LEARNED, stats(mixed))).seen in ("good", "memorised", "unclear")


def test_pictures_like_nothing_that_is_known_are_unclear_and_never_the_best():
    """Clean pictures of something else altogether: no number tells whether they are what anybody wanted."""
    elsewhere = stats([scene(seed) for seed in range(60, 64)])
    watch = monitor()
    judged = watch.judge(Look(1, LEARNED, elsewhere))
    assert judged.scores["corruption"] < CORRUPTED
    assert judged.seen == judged.stage == "unclear"
    assert "look yourself" in judged.line
    assert watch.best is None
    assert watch.judge(Look(2, LEARNED, stats(BASE))).stage == "good"
    assert watch.judge(Look(3, LEARNED, elsewhere)).stage == "unclear"
    assert watch.best == 2


FOUR = st.lists(st.floats(0, 1), min_size=4, max_size=4)


@settings(deadline=None)
@given(FOUR, FOUR, FOUR)
def test_good_is_earned_by_likeness_to_what_is_known_and_by_outlines(kept, contours, relief):
    drawn = {"kept": tuple(kept), "contours": tuple(contours), "relief": tuple(relief)}
    pictures = replace(UNDERFIT.samples, likeness=tuple(-1.0 for _ in kept), **drawn)
    judged = alone(Look(1, LEARNED, pictures))
    scores = judged.scores
    clear = all(scores[name] >= limit for name, limit in OUTLINES.items())
    assert judged.seen != "good" or (scores["strangeness"] < STRANGE and clear)


def test_pictures_of_weaker_outlines_are_unclear_though_they_are_not_noisy():
    clear = stats(BASE)
    judged = alone(Look(1, LEARNED, replace(clear, relief=tuple(steep - 0.02 for steep in clear.relief))))
    assert (judged.seen, judged.scores["corruption"] < CORRUPTED) == ("unclear", True)
    assert "shapes stand out less" in judged.line


def test_what_was_kept_before_outlines_were_read_is_judged_without_them():
    old = Look(0, reading(0.5), replace(stats(BASE), contours=(), relief=()))
    judged = Monitor(old, TRAINING, patience=1).judge(Look(1, LEARNED, stats(BASE)))
    assert (judged.seen, "contours" in judged.scores) == ("good", False)


@pytest.mark.parametrize("pictures", [BASE, [np.full_like(BASE[0], grey) for grey in (0, 90, 128, 255)]])
def test_the_base_model_beside_itself_is_not_corrupted(pictures):
    base = describe(pictures, REFERENCES, pictures)
    assert corruption(base, base, TRAINING) < CORRUPTED


def test_one_set_of_pictures_has_the_score_of_its_judgement():
    mine, base = stats(noisy(20)), stats(BASE)
    judged = Monitor(Look(0, None, base), TRAINING).judge(Look(1, None, mine))
    assert corruption(mine, base, TRAINING) == judged.scores["corruption"]


def test_a_first_warning_is_told_from_an_alarm():
    watch = monitor()
    watch.judge(at(450, SEEN["g"]))
    assert "looks corrupted (first warning; the alarm comes after 2 in a row)" in watch.judge(at(500, SEEN["C"])).line
    assert "looks corrupted: " in watch.judge(at(550, SEEN["C"])).line
    assert "looks good (the alarm ends after 2 such looks in a row)" in watch.judge(at(600, SEEN["g"])).line


def test_a_rate_far_above_the_recommended_one_is_the_first_thing_to_mend():
    options = ("keep the last good look, step 2", "lower the learning rate", "stop here")
    told = fitted(options, 1e-3, 1e-4)
    assert told[0] == "lower the learning rate: 0.001 is 10 times the recommended 0.0001"
    assert told[1:] == (options[0], options[2])
    assert fitted(options, 9e-4, 1e-4) == options
    assert fitted(options[:1], 1.0, 1e-4) == options[:1]


def test_the_recommended_rate_is_the_models_for_the_method_then_the_methods(eps_model):
    card = replace(inspect_model(str(eps_model)), recommended={"learning_rate": 1e-3, "lora": {"learning_rate": 5e-3}})
    assert recommended_rate("full", card) == 1e-3
    assert recommended_rate("lora", card) == 5e-3
    assert recommended_rate("full", replace(card, recommended={})) == 5e-6
