"""An evaluation from folders to files: what is read, what is counted, what is computed once, what is said."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from fewbayes.files.atomic import atomic_write
from fewbayes.files.decode import plain_json_lines
from fewbayes.metrics.encoders.base import Missing, load_from
from fewbayes.metrics.encoders.places import Place
from fewbayes.metrics.evaluate import evaluate_folder, run_evaluate
from fewbayes.metrics.features import FeatureStore, mirrored
from fewbayes.metrics.folders import read_references, read_samples
from fewbayes.metrics.layout import FACTS, IMAGES, METRICS
from fewbayes.metrics.scores import without_token
from fewbayes.metrics.sources import find_source
from fewbayes.page.evaluation.reading import read_evaluation
from small_encoders import black, build_embedded, picture

PROMPTS = ("a <v> dog in the snow", "a <v> dog on a rug")
UNRELATED = "a cat on the moon"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return load_from(Place(build_embedded(tmp_path_factory.mktemp("encoders")), "cpu", world=True))


def write(folder: Path, pictures: Sequence[tuple[Image.Image, str | None]], listing: str = "samples.json") -> Path:
    """Pictures with prompts and seeds, as `fewbayes sample` leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, (image, prompt) in enumerate(pictures):
        image.save(folder / f"{i:02d}.png")
        rows.append({"file": f"{i:02d}.png", "prompt": prompt, "seed": i})
    lines = json.dumps(rows) if listing.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
    (folder / listing).write_text(lines)
    return folder


@pytest.fixture
def samples(tmp_path) -> Path:
    return write(tmp_path / "samples", [(picture(seed), PROMPTS[seed % 2]) for seed in range(4)])


@pytest.fixture
def reference(tmp_path) -> Path:
    return write(tmp_path / "reference", [(picture(seed), "") for seed in range(10, 13)])


def noisy(image: Image.Image, seed: int, level: float) -> Image.Image:
    noise = np.random.default_rng(seed).normal(0, level, (image.height, image.width, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


# --- rows -------------------------------------------------------------------------------------------------------------


def test_the_files_of_an_evaluation_hold_every_metric_with_its_keys(tmp_path, samples, reference, small):
    output = tmp_path / "out"
    keys = {"subject": "dog", "arm": "bayes", "seed": 3}
    result = evaluate_folder(samples, reference_dir=reference, encoders=small, output_dir=output, mode="both", **keys)
    rows = [row for _, row in plain_json_lines(output / METRICS)]
    assert rows == [row.plain() for row in result.rows]
    for row in rows:
        assert {"metric", "value", "mode", "row", "n", "encoder", "subject", "arm", "seed"} <= row.keys()
        assert (row["value"] is None) == ("reason" in row)
        assert {name: row[name] for name in keys} == keys
        if row["encoder"] and row["value"] is not None:
            assert len(row["encoder_sha256"]) == 64
            assert row["preprocessing"]
    facts = json.loads((output / FACTS).read_text())
    assert facts["encoders"]["clip"]["mean"] == [0.48145466, 0.4578275, 0.40821073]
    assert facts["encoders"]["clip"]["backend"] == "pillow"
    assert facts["environment"]["versions"]["transformers"]
    images = [row for _, row in plain_json_lines(output / IMAGES)]
    assert {row["file"] for row in images} == {f"{i:02d}.png" for i in range(4)}
    by_file = [row["value"] for row in images if row["metric"] == "clip_t"]
    assert np.mean(by_file) == pytest.approx(result.value("clip_t"))
    nearest = [row["reference"] for row in images if row["metric"] == "dino_nearest"]
    assert set(nearest) <= {"00.png", "01.png", "02.png"}


def test_the_five_metrics_have_values_in_both_modes_and_the_ceiling_stands_beside(samples, reference, small):
    result = evaluate_folder(samples, reference_dir=reference, encoders=small, mode="both")
    for mode in ("sound", "paper"):
        for metric in ("clip_t", "clip_i", "dino", "lpips", "clip_iqa"):
            assert result.value(metric, mode=mode) is not None
            if metric != "clip_t":
                assert result.value(metric, mode=mode, row="real") is not None


def test_clip_t_of_the_class_drops_the_rare_token(samples, reference, small):
    result = evaluate_folder(samples, reference_dir=reference, encoders=small)
    plain = write(samples.parent / "plain", [(picture(s), without_token(PROMPTS[s % 2], "<v>")) for s in range(4)])
    assert result.value("clip_t_class") == pytest.approx(evaluate_folder(plain, encoders=small).value("clip_t"))
    assert result.value("clip_t_class") != pytest.approx(result.value("clip_t"), abs=1e-6)


def test_exact_and_mirrored_copies_of_training_images_are_found(tmp_path, reference, small):
    copies = [
        Image.open(reference / "01.png"),
        Image.open(reference / "02.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    ]
    folder = write(tmp_path / "copies", [(image, PROMPTS[0]) for image in copies])
    result = evaluate_folder(folder, reference_dir=reference, encoders=small)
    assert result.value("nearest_ncc") == pytest.approx(1)
    assert result.value("nearest_ncc", row="real") < 0.95
    found = {row.file: row.reference for row in result.images if row.metric == "nearest_ncc"}
    assert found == {"00.png": "01.png", "01.png": "02.png"}
    assert result.images[0].sha256
    assert next(r.value for r in result.images if (r.metric, r.file) == ("dino_nearest", "00.png")) == (
        pytest.approx(1)
    )


def test_thumbnails_in_a_mirror_are_those_of_mirrored_pictures():
    store = FeatureStore({}).encoders["thumbnail"]
    image = picture(0)
    seen = store.images([image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)])
    np.testing.assert_allclose(mirrored(store.images([image])), seen, atol=1e-12)


def test_the_ceiling_of_copying_sees_mirrors_as_the_samples_do(tmp_path, samples, small):
    image = picture(30)
    twins = [(image, ""), (image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "")]
    result = evaluate_folder(samples, reference_dir=write(tmp_path / "twins", twins), encoders=small)
    assert result.value("nearest_ncc", row="real") == pytest.approx(1)


def test_one_reference_has_no_ceiling_and_the_row_says_why(tmp_path, samples, small):
    lone = write(tmp_path / "lone", [(picture(9), "")])
    result = evaluate_folder(samples, reference_dir=lone, encoders=small)
    [row] = [row for row in result.rows if (row.metric, row.row) == ("dino", "real")]
    assert row.value is None
    assert "takes two" in row.reason


def test_without_references_or_prompts_what_needs_them_is_null_with_the_reason(tmp_path, samples, small):
    (samples / "samples.json").unlink()
    result = evaluate_folder(samples, encoders=small)
    reasons = {row.metric: row.reason for row in result.rows if row.row == "samples"}
    assert "give --reference_dir" in reasons["dino"]
    assert "give --prompt" in reasons["clip_t"]
    assert "give --prompt" in reasons["lpips"]
    assert reasons["clip_iqa"] is None
    assert evaluate_folder(samples, encoders=small, prompt="a <v> dog").value("lpips") > 0


def test_an_evaluation_that_was_killed_while_it_was_written_says_that_it_is_partial(
    tmp_path, samples, reference, small, monkeypatch
):
    how = {"reference_dir": reference, "encoders": small, "output_dir": tmp_path / "out"}
    evaluate_folder(samples, **how)

    def killed(path, content):
        if path.name == IMAGES:
            raise KeyboardInterrupt
        atomic_write(path, content)

    with monkeypatch.context() as patched:
        patched.setattr("fewbayes.metrics.evaluate.atomic_write", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate_folder(samples, **how)
    assert "This evaluation is partial" in " ".join(read_evaluation(tmp_path / "out").notes)
    evaluate_folder(samples, **how)
    assert not [note for note in read_evaluation(tmp_path / "out").notes if "partial" in note]


def test_missing_encoders_give_nulls_with_their_reason_and_nothing_takes_their_place(samples, reference, small):
    encoders = {**small, "clip": Missing("fewbayes-clip", "it was lost"), "clip_iqa": Missing("piq", "so was this")}
    result = evaluate_folder(samples, reference_dir=reference, encoders=encoders, mode="both")
    for metric in ("clip_t", "clip_t_class", "clip_i", "clip_i_nearest"):
        for row in (row for row in result.rows if row.metric == metric):
            assert (row.value, row.reason, row.encoder) == (None, "it was lost", "fewbayes-clip")
    assert result.value("clip_iqa") is None
    assert result.value("dino") is not None
    assert result.value("clip_iqa", mode="paper") is not None


def test_the_mean_over_subjects_counts_each_once_and_says_which_has_no_value(tmp_path, small):
    for start, (name, count) in enumerate((("cat-1", 2), ("dog-1", 4), ("dog-2", 4))):
        write(tmp_path / "images" / name, [(picture(10 * start + i), PROMPTS[0]) for i in range(count)])
    for subject, count in (("cat", 2), ("dog", 1)):
        write(tmp_path / "data" / subject, [(picture(50 + i), "") for i in range(count)])
    result = evaluate_folder(tmp_path / "images", reference_dir=tmp_path / "data", encoders=small)
    parts = [result.value("clip_i", subject=subject) for subject in ("cat", "dog")]
    assert result.value("clip_i") == pytest.approx(np.mean(parts))
    [row] = [r for r in result.rows if (r.metric, r.row, r.subject) == ("dino", "real", None)]
    assert row.value is None
    assert row.reason.startswith("no value for dog")


# --- against the base model -------------------------------------------------------------------------------------------


def with_unrelated(folder: Path, change=lambda image, seed: image) -> Path:
    words = [*PROMPTS, UNRELATED]
    return write(folder, [(change(picture(seed), seed), words[seed % 3]) for seed in range(6)])


def test_the_base_model_against_itself_has_no_drift_and_a_noise_ratio_of_1(tmp_path, reference, small):
    tuned, base = with_unrelated(tmp_path / "tuned"), with_unrelated(tmp_path / "base")
    result = evaluate_folder(tuned, reference_dir=reference, base_dir=base, encoders=small)
    assert result.value("noise_ratio") == 1
    assert result.value("noisier_than_base") == 0
    assert result.value("drift") == pytest.approx(0, abs=1e-9)
    assert result.value("dino", row="base") == result.value("dino")


def test_noisier_pictures_than_the_base_models_are_seen_pair_by_pair(tmp_path, reference, small):
    tuned = with_unrelated(tmp_path / "tuned", lambda image, seed: noisy(image, seed, 30))
    base = with_unrelated(tmp_path / "base")
    result = evaluate_folder(tuned, reference_dir=reference, base_dir=base, encoders=small)
    assert result.value("noise_ratio") > 1.5
    assert result.value("noisier_than_base") > 0.9
    assert result.value("drift") > 1e-5
    [row] = [row for row in result.rows if row.metric == "drift"]
    assert row.n == 2


def test_pictures_of_unrelated_prompts_say_nothing_of_the_subject(tmp_path, reference, small):
    everything = with_unrelated(tmp_path / "all")
    only = write(tmp_path / "only", [(picture(seed), PROMPTS[seed % 3]) for seed in (0, 1, 3, 4)])
    whole, part = (evaluate_folder(folder, reference_dir=reference, encoders=small) for folder in (everything, only))
    for metric in ("dino", "clip_t", "lpips", "clip_iqa"):
        assert whole.value(metric) == pytest.approx(part.value(metric), abs=1e-9)
    for result in (whole, part):  # a cat on the moon is not of the class
        [row] = [row for row in result.rows if row.metric == "pres"]
        assert "the class alone" in row.reason


def test_pres_is_of_the_class_prompt_alone_and_drift_of_the_unrelated_ones(tmp_path, reference, small):
    words = [PROMPTS[0], "a photo of a dog", UNRELATED, "a photo of a bowl"]
    pictures = [(picture(seed), words[seed % 4]) for seed in range(8)]
    tuned, base = write(tmp_path / "tuned", pictures), write(tmp_path / "base", pictures)
    of_class = write(tmp_path / "class", [(image, PROMPTS[0]) for image, prompt in pictures if prompt == words[1]])
    result = evaluate_folder(tuned, reference_dir=reference, base_dir=base, encoders=small)
    expected = evaluate_folder(of_class, reference_dir=reference, encoders=small).value("dino")
    assert result.value("pres") == pytest.approx(expected)
    counts = {row.metric: row.n for row in result.rows if row.row == "samples"}
    assert (counts["pres"], counts["drift"], counts["noise_ratio"], counts["clip_t"]) == (2 * 3, 4, 8, 2)
    listed = json.loads((tuned / "samples.json").read_text())
    kinds = ["subject", "unrelated", "class", "unrelated"]
    (tuned / "samples.json").write_text(json.dumps([row | {"kind": kinds[i % 4]} for i, row in enumerate(listed)]))
    told = evaluate_folder(tuned, reference_dir=reference, base_dir=base, encoders=small)
    assert told.value("pres") != pytest.approx(expected)  # what the listing says goes before what the prompts say


def test_a_rare_token_that_no_prompt_holds_gives_nulls_that_say_so(tmp_path, reference, small):
    tuned, base = with_unrelated(tmp_path / "tuned"), with_unrelated(tmp_path / "base")
    result = evaluate_folder(tuned, reference_dir=reference, base_dir=base, encoders=small, rare_token="qwe")
    rows = {row.metric: row for row in result.rows if row.row == "samples"}
    for metric in ("clip_t_class", "drift", "pres"):
        assert rows[metric].value is None
        assert rows[metric].reason == "no prompt holds the rare token 'qwe'; give --rare_token"


def test_black_pictures_of_the_subject_do_not_hide_the_rare_token(tmp_path, reference, small):
    folder = write(tmp_path / "dark", [(black(), PROMPTS[0]), (picture(1), "a photo of a dog")])
    result = evaluate_folder(folder, reference_dir=reference, encoders=small)
    assert result.value("pres") is not None
    assert result.value("dino") is None


def test_a_picture_without_a_prompt_is_never_unrelated(tmp_path, reference, small):
    folder = write(tmp_path / "some", [(picture(0), PROMPTS[0]), (picture(1), None), (picture(2), UNRELATED)])
    result = evaluate_folder(folder, reference_dir=reference, encoders=small)
    assert {row.n for row in result.rows if row.metric == "clip_iqa" and row.row == "samples"} == {2}


def test_pictures_without_a_partner_of_the_base_model_are_said(tmp_path, reference, small):
    tuned = with_unrelated(tmp_path / "tuned")
    base = write(tmp_path / "base", [(picture(seed), [*PROMPTS, UNRELATED][seed % 3]) for seed in (0, 1, 2, 3)])
    rows = json.loads((base / "samples.json").read_text())
    (base / "samples.json").write_text(json.dumps([*rows[:3], rows[3] | {"seed": 0}]))
    result = evaluate_folder(tuned, reference_dir=reference, base_dir=base, encoders=small)
    notes = {row.metric: row.note for row in result.rows if row.row == "samples"}
    assert notes["noise_ratio"] == "3 of 6 pictures have a partner of the base model"
    assert notes["drift"] == "1 of 2 pictures have a partner"
    assert any("prompt and seed of an earlier one" in note for note in result.facts["notes"])


def test_prompts_with_one_picture_have_no_say_in_diversity_and_the_row_says_so(tmp_path, small):
    folder = write(tmp_path / "few", [(picture(seed), PROMPTS[seed == 2]) for seed in range(3)])
    result = evaluate_folder(folder, encoders=small)
    for metric in ("lpips", "vendi"):
        [row] = [r for r in result.rows if (r.metric, r.row) == (metric, "samples")]
        assert row.note == "1 of 2 prompts have two pictures"


# --- what is read -----------------------------------------------------------------------------------------------------


def test_unreadable_and_black_pictures_are_counted_said_and_not_scored(samples, reference, small):
    before = evaluate_folder(samples, reference_dir=reference, encoders=small)
    rows = json.loads((samples / "samples.json").read_text())
    (samples / "torn.png").write_bytes((samples / "00.png").read_bytes()[:60])
    black().save(samples / "dark.png")
    rows += [{"file": name, "prompt": PROMPTS[0], "seed": 9} for name in ("torn.png", "dark.png")]
    (samples / "samples.json").write_text(json.dumps(rows))
    result = evaluate_folder(samples, reference_dir=reference, encoders=small)
    assert result.value("dino") == before.value("dino")
    assert result.value("black") == pytest.approx(1 / 5)
    assert result.facts["counts"]["black pictures"] == 1
    assert list(result.facts["unreadable"]) == ["torn.png"]
    assert {row.metric for row in result.images if row.file in ("torn.png", "dark.png")} == {
        "black",
        "unreadable",
    }
    counts = {row.row: (row.black, row.unreadable) for row in result.rows}
    assert counts == {"samples": (1, 1), "real": (0, 0)}  # the references are all there


def test_a_subject_of_whom_nothing_can_be_read_stays_in_the_mean_and_keeps_its_losses(tmp_path, small):
    for start, name in enumerate(("cat-1", "dog-1", "dog_toy-1")):
        write(tmp_path / "images" / name, [(picture(10 * start + i), PROMPTS[0]) for i in range(2)])
        write(tmp_path / "data" / name[:-2], [(picture(50 + i), "") for i in range(2)])
    for file in (tmp_path / "images" / "dog-1").glob("*.png"):
        file.write_bytes(b"torn")
    result = evaluate_folder(tmp_path / "images", reference_dir=tmp_path / "data", encoders=small)
    assert result.value("dino", subject="dog") is None
    [row] = [r for r in result.rows if (r.metric, r.row, r.subject) == ("dino", "samples", None)]
    assert row.reason.startswith("no value for dog: there are no pictures that are readable")
    losses = {r.subject: r.unreadable for r in result.rows if (r.metric, r.row) == ("dino", "samples")}
    assert losses == {"cat": 0, "dog": 2, "dog_toy": 0, None: 2}
    assert {row.subject for row in result.images if row.metric == "unreadable"} == {"dog"}


def test_a_folder_of_which_nothing_can_be_read_gives_rows_of_nulls_in_both_modes(samples, reference, small):
    for file in samples.glob("*.png"):
        file.write_bytes(b"torn")
    result = evaluate_folder(samples, reference_dir=reference, encoders=small, mode="both")
    for mode in ("sound", "paper"):
        for metric in ("clip_t", "dino", "lpips", "clip_iqa"):
            assert result.value(metric, mode=mode) is None
    assert result.value("dino", row="real") is not None


def test_what_is_wrong_with_a_picture_is_said_under_its_name_and_no_address_in_memory(samples, reference, small):
    (samples / "00.png").write_bytes(b"torn")
    Image.new("RGB", (1, 1), "red").save(samples / "01.png")
    (reference / "00.png").write_bytes(b"torn")
    (samples / "02.png").unlink()
    facts = evaluate_folder(samples, reference_dir=reference, encoders=small).facts
    assert facts["unreadable"] == {
        "00.png": "not an image, whatever its name says; move it away",
        "01.png": "1 x 1 pixels; 2 x 2 at least",
        "02.png": "No such file or directory",
    }
    assert list(facts["unreadable_references"]) == ["00.png"]


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        (5, "holds 5; it must be a list"),
        ({"file": "00.png"}, "holds a table; it must be a list"),
        ([{"file": "00.png"}, 5], "[1] is 5"),
        ([{"file": "00.png", "prompt": 5}], "[0].prompt is 5"),
        ([{"file": "00.png", "seed": {}}], "[0].seed is"),
        ([{"file": ["00.png"]}], "[0].file is a list"),
        ([{"file": "00.png", "kind": "other"}], '[0].kind is "other"'),
        ([{"prompt": "a dog"}], "row 1: file is missing"),
        ([{"file": "00.png"}, {"file": "./00.png"}], "names 00.png more than once"),
    ],
)
def test_a_listing_that_cannot_be_meant_is_refused_with_its_file_and_row(samples, listing, message):
    (samples / "samples.json").write_text(json.dumps(listing))
    with pytest.raises(ValueError, match=re.escape(message)):
        read_samples(samples)


def test_pictures_that_the_listing_does_not_name_are_left_out_and_said(samples):
    picture(40).save(samples / "grid.png")
    found = read_samples(samples)
    assert len(found.samples) == 4
    assert "grid.png" in found.notes[0]


@pytest.mark.parametrize("listing", ["samples.jsonl", "metadata.jsonl"])
def test_prompts_come_from_listings_in_lines_too(tmp_path, listing):
    folder = write(tmp_path / "lines", [(picture(0), PROMPTS[0]), (picture(1), PROMPTS[1])], listing)
    if listing == "metadata.jsonl":
        rows = [{"file_name": f"{i:02d}.png", "text": PROMPTS[i]} for i in range(2)]
        (folder / listing).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [sample.prompt for sample in read_samples(folder).samples] == list(PROMPTS)


@pytest.fixture
def run(tmp_path, reference) -> Path:
    """A run as training leaves it, as far as an evaluation reads it."""
    folder = tmp_path / "run"
    for step in ("step-000000", "step-000100"):
        rows = []
        for weights, start in (("raw", 0), ("ema", 20)):
            for i in range(2):
                place = folder / "samples" / step / weights
                place.mkdir(parents=True, exist_ok=True)
                picture(start + i + int(step[-6:])).save(place / f"{i:02d}.png")
                rows.append({"file": f"{weights}/{i:02d}.png", "weights": weights, "prompt": PROMPTS[i], "seed": i})
        (folder / "samples" / step / "samples.json").write_text(json.dumps(rows))
    shutil.copytree(reference, folder / "reference")
    settings = {"model": "tiny", "rare_token": "<v>", "instance_data_dir": "photos/rex", "seed": 5}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "manifest.json").write_text(json.dumps({"exported": "ema"}))
    return folder


def test_a_run_is_scored_by_its_last_samples_of_the_exported_weights_against_its_own_references(run, small):
    result = evaluate_folder(run, encoders=small)
    assert result.facts["pictures"].endswith("step-000100")
    assert {row.file for row in result.images} == {"ema/00.png", "ema/01.png"}
    assert result.facts["reference_dir"] == str(run / "reference")
    assert {(row.subject, row.seed) for row in result.rows} == {("rex", 5)}


def test_other_samples_of_a_run_are_named_by_their_folder(run, small):
    result = evaluate_folder(run, encoders=small, samples="samples/step-000000/raw")
    assert {row.file for row in result.images} == {"00.png", "01.png"}
    assert [sample.prompt for sample in read_samples(run / "samples/step-000000/raw").samples] == list(PROMPTS)


def test_runs_of_the_embedded_model_are_scored_by_the_embedded_evaluators(run, samples):
    assert find_source(run).model == "tiny"
    rows = [{**row, "source": str(run)} for row in json.loads((samples / "samples.json").read_text())]
    (samples / "samples.json").write_text(json.dumps(rows))
    assert find_source(samples).model == "tiny"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: {"source": f / "nowhere"}, "there is no folder"),
        (lambda f: {"source": f, "samples": "nowhere"}, "there is no folder"),
        (lambda f: {"source": f, "mode": "true"}, "none of sound, paper and both"),
        (lambda f: {"source": f, "reference_dir": f / "nowhere"}, "reference_dir holds the photographs"),
        (lambda f: {"source": f, "metadata": f / "samples.json"}, "holds a list; it must be a table"),
        (lambda f: {"source": f, "output_dir": f / "00.png"}, "is a file"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_a_model_is_loaded(samples, change, message):
    with pytest.raises(ValueError, match=message):
        evaluate_folder(**change(samples), encoders={})


def test_a_run_is_not_overwritten_by_its_evaluation(run, small):
    with pytest.raises(ValueError, match="is a run"):
        evaluate_folder(run, encoders=small, output_dir=run)


def test_the_folders_that_are_read_and_folders_of_other_things_are_not_written_into(samples, reference, small):
    for output in (samples, reference):
        with pytest.raises(ValueError, match="output_dir"):
            evaluate_folder(samples, reference_dir=reference, encoders=small, output_dir=output)
        assert not (output / METRICS).exists()
    empty = samples.parent / "empty"
    empty.mkdir()
    evaluate_folder(samples, encoders=small, output_dir=empty)
    assert (empty / FACTS).is_file()


def test_several_subjects_need_a_folder_of_references_each(reference):
    with pytest.raises(ValueError, match="holds pictures of one subject"):
        read_references(reference, ["cat", "dog"])


# --- once -------------------------------------------------------------------------------------------------------------


def test_a_picture_is_encoded_once_by_content_within_and_across_evaluations(tmp_path, samples, small):
    shutil.copy(samples / "00.png", samples / "01.png")
    found = read_samples(samples).samples
    cache = tmp_path / "features.sqlite"
    first, second = (FeatureStore(small, cache=cache) for _ in range(2))
    first.compute(found)
    assert first.encoded == 3 * 4  # three different pictures; clip, dino, and the two kinds of pixels
    first.compute(found)
    first.distances("lpips", found)
    encoded = first.encoded
    first.distances("lpips", found[:2])
    assert first.encoded == encoded == 12 + 4
    second.compute(found)
    np.testing.assert_array_equal(second.distances("lpips", found), first.distances("lpips", found))
    np.testing.assert_array_equal(second.matrix("clip", found), first.matrix("clip", found))
    assert second.encoded == 0


def test_other_weights_are_other_features(tmp_path, samples, small):
    from fewbayes.metrics.encoders.dino import Vit
    from small_encoders import build_dino

    cache = tmp_path / "features.sqlite"
    found = read_samples(samples).samples
    FeatureStore({"dino": small["dino"]}, cache=cache).compute(found)
    other = FeatureStore({"dino": Vit(build_dino(tmp_path / "other", seed=7), "other")}, cache=cache)
    other.compute(found)
    assert other.encoded == 4


def test_pictures_that_are_decoded_otherwise_have_other_features(monkeypatch, small):
    store = FeatureStore(small)
    before = [store.fingerprint(key) for key in ("clip", "lpips", "pixels")]
    monkeypatch.setattr("fewbayes.metrics.features._decoding", lambda: "another")
    assert not {store.fingerprint(key) for key in ("clip", "lpips", "pixels")} & set(before)


def test_a_memory_that_cannot_be_used_is_done_without(tmp_path, samples, small):
    (tmp_path / "features.sqlite").write_bytes(b"not a database, and long enough to be looked at as one " * 40)
    store = FeatureStore(small, cache=tmp_path / "features.sqlite")
    store.compute(read_samples(samples).samples)
    assert store.encoded == 16


def test_all_pictures_of_a_prompt_are_compared_however_many(tmp_path, small):
    folder = write(tmp_path / "many", [(picture(seed, 8, 8), PROMPTS[0]) for seed in range(70)])
    result = evaluate_folder(folder, encoders=small)
    [row] = [r for r in result.rows if (r.metric, r.row) == ("lpips", "samples")]
    assert row.n == 70 * 69 // 2
    images = [Image.open(folder / f"{i:02d}.png") for i in (3, 67)]
    whole = small["lpips"].distances([Image.open(folder / f"{i:02d}.png") for i in range(70)])
    assert whole[3, 67] == whole[67, 3] == pytest.approx(small["lpips"].distances(images)[0, 1], rel=1e-5)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_scores_a_folder_and_says_what_is_missing(samples, reference, tmp_path, capsys):
    encoders = build_embedded(tmp_path / "weights")
    (encoders / "clip").rename(encoders / "clip-vit-large-patch14")
    (encoders / "dino").rename(encoders / "dino-vits16")
    output = tmp_path / "out"
    command = [
        "--reference_dir",
        str(reference),
        "--encoders",
        str(encoders),
        "--output-dir",
        str(output),
        "--cache",
        "",
    ]
    assert run_evaluate([str(samples), *command, "--mode", "both", "--subject", "rex"]) == 0
    said = capsys.readouterr().out
    assert "dino " in said
    assert "real against real" in said
    assert "no lpips" in said
    assert (output / FACTS).is_file()
    assert run_evaluate([str(samples), *command]) == 0  # an evaluation may be made again in its place


def test_the_command_lists_weights_and_refuses_half_a_question(capsys):
    assert run_evaluate(["--list-weights"]) == 0
    assert "clip-vit-large-patch14/model.safetensors" in capsys.readouterr().out
    for arguments, message in (
        (["pictures"], "--output_dir"),
        (["--fetch-weights", "x", "--offline"], "--offline forbids it"),
        (["x", "--output_dir", "y", "--batch_size", "0"], "batch_size is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            run_evaluate(arguments)


def test_help_needs_nothing_heavy():
    code = "import sys, fewbayes.metrics.evaluate; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "diffusers", "scipy"} & set(loaded)
