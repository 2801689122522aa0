"""The page and the tables of an evaluation say what its rows say, under the encoders' own names, and ask no one."""

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewbayes.files import decode
from fewbayes.metrics.registry import registered
from fewbayes.metrics.statistics import Comparison, Estimate, compare, coverage
from fewbayes.page import write_report
from fewbayes.page.evaluation.gallery import choose, kept, make_gallery
from fewbayes.page.evaluation.page import _headline, dot_plots, evaluation_page
from fewbayes.page.evaluation.reading import Arm, Picture, is_evaluation, read_evaluation
from fewbayes.page.evaluation.scores import Difference, Line, Scores, as_latex, as_markdown, make_scores, verdict
from fewbayes.page.render import render

ENCODERS = {
    "clip_t": "fewbayes-clip",
    "dino": "fewbayes-dino",
    "clip_i": "fewbayes-clip",
    "lpips": "fewbayes-dino",
    "clip_iqa": "fewbayes-clip",
}
ARMS = ("full", "full-bayes", "lora", "lora-bayes")
SUBJECTS = ("swirl_fish", "backpack")
PROMPTS = ("a <v> thing in the snow", "a <v> thing <on> the beach & more")


def _draw(path: Path, seed: int, side: int = 64) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 220, (4, 4, 3), dtype=np.uint8)
    pixels = np.kron(coarse, np.ones((side // 4, side // 4, 1))) + rng.normal(0, 6, (side, side, 3))
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)


def write_study(folder: Path, seeds=(0, 1, 2), side: int = 64, subjects=SUBJECTS, per_run: int = 8) -> Path:
    """A study as the experiment writes it, with numbers that we choose: Bayesian arms gain 0.01 in all but Lpips."""
    rng = np.random.default_rng(0)
    rows, images = [], []
    for subject in subjects:
        for i in range(3):
            _draw(folder / subject / "reference" / f"{i}.png", 1000 + i, side)
        for metric, encoder in ENCODERS.items():
            common = {"metric": metric, "mode": "sound", "encoder": encoder, "subject": subject}
            rows.append(common | {"row": "real", "value": 0.9 if metric != "clip_t" else None, "reason": "no prompts"})
            rows.append(common | {"row": "base", "value": 0.3, "arm": "base", "seed": 0})
        for arm in ARMS:
            for seed in seeds:
                for metric, encoder in ENCODERS.items():
                    gain = 0.01 * arm.endswith("bayes") * (metric != "lpips")
                    value = 0.6 + gain + 0.002 * seed + 0.1 * (subject == "backpack") + rng.normal(0, 0.0005)
                    common = {"metric": metric, "mode": "sound", "encoder": encoder, "row": "samples", "n": per_run}
                    rows.append(common | {"subject": subject, "arm": arm, "seed": seed, "value": value})
                for n in range(per_run):
                    file = f"{subject}/pictures/{arm}-seed{seed}/{n:02d}.png"
                    _draw(folder / file, 100 * seed + n, side)
                    for metric in ("clip_t", "dino", "clip_iqa"):
                        row = {"file": file, "subject": subject, "arm": arm, "seed": seed, "metric": metric}
                        row |= {"prompt": PROMPTS[n % 2], "prompt_id": n % 2, "sample": n // 2, "mode": "sound"}
                        images.append(row | {"value": float(rng.uniform(0.2, 0.9))})
                    near = {"metric": "nearest_ncc", "value": 0.5, "reference": f"{n % 3}.png"}
                    images.append(images[-1] | near)
    rows.append({"metric": "dinov2", "mode": "sound", "encoder": None, "value": None, "reason": "no <weights> given"})
    study = {
        "title": "Methods, plain and Bayesian",
        "question": "Does it help?",
        "arms": [
            {"name": "full", "label": "DreamBooth"},
            {"name": "full-bayes", "label": "DreamBooth, Bayesian", "against": "full"},
            {"name": "lora", "label": "LoRA"},
            {"name": "lora-bayes", "label": "LoRA, Bayesian", "against": "lora"},
        ],
        "subjects": [{"name": s, "class_word": "fish", "references": f"{s}/reference"} for s in subjects],
        "sampling": {"sampler": "ddim", "steps": 25, "guidance": 7.5, "safety_filter": "off"},
    }
    (folder / "study.json").write_text(json.dumps(study))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "images.jsonl").write_text("".join(json.dumps(row) + "\n" for row in images))
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    return write_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def page(study) -> str:
    return write_report(study).read_text("utf-8")


def rows_of(study: Path) -> list[dict]:
    return [json.loads(line) for line in (study / "metrics.jsonl").read_text().splitlines()]


def test_the_table_is_the_macro_mean_of_the_rows(study):
    table = make_scores(read_evaluation(study), "sound")
    values = [r["value"] for r in rows_of(study) if r.get("arm") == "lora" and r["metric"] == "dino"]
    line = next(line for line in table.lines if line.name == "lora")
    assert line.cells["dino"].mean == pytest.approx(np.mean(values))
    assert (line.cells["dino"].subjects, line.cells["dino"].units) == (2, 6)
    assert [line.name for line in table.lines] == ["base", *ARMS, "real"]
    assert table.lines[-1].cells["dino"].mean == pytest.approx(0.9)
    assert table.lines[-1].cells["clip_t"].mean is None


def test_differences_are_paired_and_say_what_was_put_in(study):
    evaluation = read_evaluation(study)
    table = make_scores(evaluation, "sound")
    assert [(row.treated.name, row.control.name) for row in table.differences] == [
        ("full-bayes", "full"),
        ("lora-bayes", "lora"),
    ]
    units = evaluation.units["sound"]["dino"]
    row = table.differences[1]
    assert row.cells["dino"] == compare(units["lora-bayes"], units["lora"])
    assert row.cells["dino"].win_rate == 1
    assert (row.cells["dino"].p_over, row.cells["dino"].p) == ("subjects", 0.5)  # the least that two can have
    said = verdict(table)[0]
    assert "interval above zero in Clip-T, Dino, Clip-I, Clip-IQA; interval across zero in Lpips" in said
    assert "this speaks of these 2 subjects, over which no p can fall below 0.5" in said
    assert "2 of them can give no p below 0.50, whatever the data" in as_markdown(table)


def test_the_headline_counts_what_the_intervals_say(page):
    said = "DreamBooth, Bayesian: better than DreamBooth in 4 of 5 metrics, worse in 0, no clear difference in 1"
    assert f"<h2>{said}</h2>" in page


def test_comparisons_that_all_show_nothing_are_said_once(study):
    evaluation = read_evaluation(study)
    table = make_scores(evaluation, "sound")
    none = Estimate(0.0, -1.0, 1.0, 4, 12, 0)
    rows = [replace(r, cells={n: replace(c, difference=none) for n, c in r.cells.items()}) for r in table.differences]
    said, lines = _headline(evaluation, replace(table, differences=rows))
    assert said == f"No clear difference in any of {len(rows)} comparisons"
    assert lines == [f"{5 * len(rows)} intervals over 2 subjects all cross zero."]


def test_per_subject_differences_resample_their_own_seeds(study):
    row = make_scores(read_evaluation(study), "sound").differences[0]
    assert sorted(row.per_subject["dino"]) == sorted(SUBJECTS)
    assert row.per_subject["dino"]["backpack"].units == 3


def test_the_caption_calls_every_encoder_by_its_own_name(study):
    evaluation = read_evaluation(study)
    table = make_scores(evaluation, "sound")
    said = table.caption
    assert "Clip-T, Clip-I, Clip-IQA by fewbayes-clip; Dino, Lpips by fewbayes-dino" in said
    assert "no published table" in said
    assert "2 subjects" in said
    assert f"in {coverage(2, 3)[1]} of 100 where a few stand far out" in said
    for text in (as_markdown(table), as_latex(table)):
        assert "fewbayes-clip" in text
        assert "fewbayes-dino" in text
        assert "openai" not in text


def test_the_tables_agree_with_the_page_and_with_one_another(study, page):
    table = make_scores(read_evaluation(study), "sound")
    mean = next(line for line in table.lines if line.name == "full-bayes").cells["clip_i"].mean
    assert mean is not None
    assert f"{mean:.3f}" in page
    assert f"{mean:.3f}" in (study / "table.md").read_text()
    assert f"${mean:.3f}$" in (study / "table.tex").read_text()
    rows = list(csv.DictReader((study / "table.csv").read_text().splitlines()))
    (found,) = [r for r in rows if (r["line"], r["metric"], r["kind"]) == ("full-bayes", "clip_i", "arm")]
    assert float(found["mean"]) == mean
    assert found["encoder"] == "fewbayes-clip"
    (tested,) = [r for r in rows if (r["line"], r["metric"], r["kind"]) == ("full-bayes", "clip_i", "difference")]
    assert (tested["against"], tested["p_over"]) == ("full", "subjects")
    kept_numbers = json.loads((study / "table.json").read_text())
    assert len(kept_numbers["rows"]) == len(rows)


def test_latex_has_a_column_for_each_metric(study):
    text = as_latex(make_scores(read_evaluation(study), "sound"))
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.count(" & ") for line in body} == {5}


def test_what_is_missing_is_said_with_its_reason(page):
    assert "No value for dinov2: no &lt;weights&gt; given" in page


def test_the_kept_table_is_written_as_it_was_from_its_kept_numbers():
    results = Path(__file__).parents[1] / "docs" / "results"
    told = json.loads((results / "table1.json").read_text("utf-8"))
    written = (results / "table1.md").read_text("utf-8")
    shown = [i for i, caption in enumerate(told["captions"]) if caption["mode"] == "sound"]
    assert len(shown) == 2
    for i, name in zip(shown, ("paper", "beside"), strict=True):
        rows = [row for row in told["rows"] if row["mode"] == "sound" and METRICS[row["metric"]].place[0] == name]
        assert as_markdown(_kept_scores(rows, told["facts"]["arms"], told["captions"][i])) in written


METRICS = {metric.name: metric for metric in registered()}


def _kept_scores(rows: list[dict], arms: list[dict], caption: dict[str, str]) -> Scores:
    """The table that rows of a kept table.json are of."""
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    labels = {"base": "Base model", "real": "Real against real"} | {arm["name"]: arm["label"] for arm in arms}
    cells: dict[tuple[str, str], dict[str, Estimate]] = {}
    tested: dict[str, dict[str, Comparison]] = {}
    holm: dict[str, dict[str, float | None]] = {}
    for row in rows:
        found = Estimate(*(row[key] for key in ("mean", "low", "high", "subjects", "units", "missing")))
        if row["kind"] == "difference":
            cell = Comparison(found, row["win_rate"], row["p"], row["p_over"], None)
            tested.setdefault(row["line"], {})[row["metric"]] = cell
            holm.setdefault(row["line"], {})[row["metric"]] = row["p_holm"]
        else:
            cells.setdefault((row["line"], row["kind"]), {})[row["metric"]] = found
    lines = [Line(name, labels.get(name, name), kind, its) for (name, kind), its in cells.items()]
    against = {arm["name"]: arm["against"] for arm in arms}
    by_name = {name: Arm(name, label) for name, label in labels.items()}
    differences = [
        Difference(by_name[name], by_name[against[name]], its, holm[name], {}) for name, its in tested.items()
    ]
    return Scores("sound", [METRICS[m] for m in metrics], lines, differences, caption["caption"], caption["test"])


def test_rows_that_no_program_of_ours_wrote_are_torn_and_break_nothing(tmp_path):
    rows = [{"subject": "cat"}, {"seed": "one"}, {"value": "high"}, {"seed": [1]}, {"value": {}}]
    evaluation = read_evaluation(_evaluation(tmp_path, rows))
    assert evaluation.notes == ("4 torn rows of metrics.jsonl left out.",)
    assert evaluation.units["sound"]["dino"]["samples"] == {("cat", 0): 0.5}


@pytest.mark.parametrize(
    "junk", [None, 3, "text", [], [3], [{}], [{"name": 3}], {"black": "x"}, {"a": {"b": [1]}}, "\0"]
)
@pytest.mark.parametrize("key", ["title", "question", "arms", "subjects", "counts", "missing", "notes", "pictures"])
def test_whatever_an_evaluation_says_of_itself_is_read(key, junk, tmp_path):
    (tmp_path / "0.png").write_bytes(b"no picture")
    images = [{"subject": "cat", "file": "0.png", "prompt": "a cat"}]
    folder = _evaluation(tmp_path / "scores", [{"subject": "cat"}], images, **{key: junk})
    evaluation = read_evaluation(folder)
    assert evaluation.units["sound"]["dino"]["samples"] == {("cat", 0): 0.5}
    assert "0.500" in render(evaluation_page(evaluation))


def test_a_long_run_is_told_from_an_evaluation_by_its_first_rows(tmp_path, monkeypatch):
    row = json.dumps({"step": 1, "metric": "loss", "value": 0.1}) + "\n"
    (tmp_path / "metrics.jsonl").write_text(row * 1000)
    read = []
    monkeypatch.setattr(decode, "parse_json", lambda line, _: read.append(line) or json.loads(line))
    assert not is_evaluation(tmp_path)
    assert len(read) < 10


def test_hostile_prompts_are_escaped(page):
    assert "thing &lt;on&gt; the beach &amp; more" in page
    assert "<on>" not in page


def test_the_page_asks_no_one(page):
    assert not re.findall(r"""(?:src|href|action|data|poster)\s*=\s*["']?\s*(?:https?:)?//""", page)
    assert not re.findall(r"url\(\s*[\"']?(?!#)", page)
    assert "@import" not in page
    assert not re.findall(r"https?://", page)
    assert "default-src 'none'" in page


def test_every_reference_inside_the_page_exists_and_ids_are_unique(page):
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) | set(re.findall(r'data-near="([^"]+)"', page)) <= set(ids)


def test_the_page_shows_four_pictures_of_each_case_and_every_one_has_its_training_image(page):
    panels = page.split('<div class="panel"')[1:]
    assert len(panels) == len(ARMS) * len(SUBJECTS)
    for panel in panels:
        cells = re.findall(r'data-row="\d+" data-column="\d+" data-near="near-\d+" data-likeness="0.50"', panel)
        assert len(cells) == 16


def test_the_page_is_the_same_bytes_twice(study, page):
    assert write_report(study).read_text("utf-8") == page


def _pictures(scores) -> list[Picture]:
    return [
        Picture(Path(f"{i:02d}.png"), "s", "a", 0, "p", dict(zip(("clip_t", "dino", "clip_iqa"), row, strict=True)))
        for i, row in enumerate(scores)
    ]


def test_the_best_case_has_passed_both_filters_and_the_worst_has_not_to():
    scores = [(0.5, 0.5, i / 20) for i in range(20)]
    scores[19] = (0.1, 0.5, 0.99)  # the best quality, the worst text
    scores[18] = (0.5, 0.1, 0.98)  # the worst subject
    scores[0] = (0.05, 0.05, 0.0)  # the worst of all, which filters would hide
    cases = {name: [p.file.stem for p in pictures] for name, pictures in choose(_pictures(scores), 2).items()}
    assert cases["best"] == ["17", "16"]
    assert cases["worst"] == ["00", "01"]
    assert cases["average"] == ["10", "09"]
    assert len(cases["random"]) == 2


def test_nine_tenths_are_kept():
    pictures = _pictures([(i / 40, 0.5, 0.5) for i in range(40)])
    assert len(kept(pictures)) == 36


def test_the_random_panel_does_not_look_at_scores():
    first = _pictures([(0.5, 0.5, i / 20) for i in range(20)])
    second = _pictures([(0.5, 0.5, 1 - i / 20) for i in range(20)])
    chosen = [[p.file for p in choose(pictures, 4, seed=3)["random"]] for pictures in (first, list(reversed(second)))]
    assert chosen[0] == chosen[1]
    assert chosen[0] != [p.file for p in choose(first, 4, seed=4)["random"]]
    other = [replace(picture, arm="another") for picture in second]
    assert chosen[0] == [p.file for p in choose(other, 4, seed=3)["random"]]  # side by side


def test_without_quality_scores_only_chance_chooses():
    pictures = [Picture(Path(f"{i}.png"), "s", "a", 0, "p", {"dino": 0.5}) for i in range(5)]
    assert list(choose(pictures)) == ["random"]


def test_the_gallery_keeps_to_its_budget_and_says_so(study):
    evaluation = read_evaluation(study)
    whole = make_gallery(evaluation)
    assert len(whole.notes) == 1  # how cases are chosen
    for budget in (400_000, 200_000):
        gallery = make_gallery(evaluation, budget)
        shots = [shot for panel in gallery.panels for row in panel.rows for shot in row.shots]
        assert 0 < sum(len(shot.picture.uri) for shot in shots if shot) <= budget
        assert len(gallery.notes) > 1


def test_each_picture_points_to_the_training_image_of_its_own_subject(study):
    gallery = make_gallery(read_evaluation(study))
    assert len(gallery.training) == 3 * len(SUBJECTS)
    for panel in gallery.panels:
        near = {shot.near // 3 for row in panel.rows for shot in row.shots if shot and shot.near is not None}
        assert near == {panel.at[0]}


def test_an_evaluation_without_a_study_names_arms_by_their_rows(tmp_path):
    rows = [
        {"metric": "dino", "mode": mode, "encoder": "facebook/dino-vits16", "value": 0.6, "row": row}
        for mode in ("sound", "paper")
        for row in ("samples", "real")
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"metric": "di')
    evaluation = read_evaluation(tmp_path)
    assert [arm.label for arm in evaluation.arms] == ["Samples"]
    assert evaluation.notes == ("1 torn rows of metrics.jsonl left out.",)
    page = write_report(tmp_path).read_text("utf-8")
    assert "Dino by facebook/dino-vits16" in page
    assert "quirks included" in page
    assert "no published table" not in page
    assert "One training has no interval" in page


def _evaluation(folder: Path, rows: list[dict], images: Sequence[dict] = (), **facts) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    common = {"metric": "dino", "mode": "sound", "encoder": "fewbayes-dino", "row": "samples", "value": 0.5}
    for name, found in (("metrics", rows), ("images", images)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(common | row) + "\n" for row in found))
    (folder / "evaluation.json").write_text(json.dumps(facts))
    return folder


def test_numbers_of_two_encoders_under_one_name_are_not_compared_in_silence(tmp_path):
    rows = [{"subject": "cat", "seed": i, "encoder_sha256": sha * 64} for i, sha in enumerate("ab")]
    notes = read_evaluation(_evaluation(tmp_path, rows)).notes
    assert "DO NOT COMPARE the numbers of dino (sound mode): they come from 2 encoders" in notes[0]
    assert not read_evaluation(_evaluation(tmp_path, rows[:1])).notes


def test_numbers_over_all_pictures_are_a_line_of_their_own_and_no_subject(tmp_path):
    rows = [{"subject": name, "value": value} for name, value in (("cat", 0.4), ("mug", 0.6))]
    rows += [{"mode": "paper", "subject": None, "average": "micro", "row": row} for row in ("samples", "real")]
    evaluation = read_evaluation(_evaluation(tmp_path, rows))
    assert evaluation.subjects == ("cat", "mug")
    table = make_scores(evaluation, "paper")
    assert [line.label for line in table.lines] == [
        "Real against real, pooled over 2 subjects",
        "Samples, pooled over 2 subjects",
    ]
    assert "One number over the pictures of 2 subjects together." in table.caption
    assert "the authors' averaging within each subject" not in table.caption


def test_a_study_in_paper_mode_says_how_it_averages(tmp_path):
    rows = [{"mode": "paper", "subject": name} for name in ("cat", "mug")]
    said = make_scores(read_evaluation(_evaluation(tmp_path, rows)), "paper").caption
    assert "the authors' averaging within each subject, quirks included; macro over subjects" in said


def test_rows_without_a_subject_are_those_of_the_only_one(tmp_path):
    evaluation = read_evaluation(_evaluation(tmp_path, [{"subject": "cat"}, {"metric": "black", "value": 0.0}]))
    assert evaluation.subjects == ("cat",)
    rows = [{"subject": "cat"}, {"subject": "mug"}, {"subject": None, "value": 0.1}]
    evaluation = read_evaluation(_evaluation(tmp_path / "several", rows))
    assert evaluation.subjects == ("cat", "mug")
    assert "1 rows that name no subject" in evaluation.notes[0]


def test_pictures_are_found_from_wherever_the_report_is_made(tmp_path, monkeypatch):
    _draw(tmp_path / "work" / "pictures" / "0.png", 0)
    images = [{"file": file, "subject": "cat"} for file in ("0.png", "1.png")]
    folder = _evaluation(tmp_path / "work" / "scores", [{"subject": "cat"}], images, pictures="pictures")
    monkeypatch.chdir(tmp_path / "work")
    there = read_evaluation(Path("scores"))
    monkeypatch.chdir("/")
    for evaluation in (there, read_evaluation(folder)):
        assert evaluation.notes[0].startswith("1 of 2 pictures could not be opened")
    assert read_evaluation(folder).pictures[0].file.is_file()


def test_the_ceiling_is_one_of_likeness_alone(study):
    said = make_scores(read_evaluation(study), "sound").caption
    assert "Real against real is a ceiling in Dino, Clip-I, and none in other columns." in said


def test_the_caption_sees_our_encoders_among_others(tmp_path):
    rows = [{"subject": "cat", "seed": i, "encoder": name} for i, name in enumerate(("facebook/dino", "fewbayes-dino"))]
    assert "no published table" in make_scores(read_evaluation(_evaluation(tmp_path, rows)), "sound").caption


def test_one_pair_of_trainings_has_neither_wins_nor_p(tmp_path):
    rows = [{"subject": "cat", "seed": 0, "arm": arm, "value": v} for arm, v in (("oft", 0.5), ("oft-bayes", 0.501))]
    table = make_scores(read_evaluation(_evaluation(tmp_path, rows)), "sound")
    assert "wins" not in as_markdown(table).split("difference")[-1]
    assert "; p " not in as_markdown(table)
    figure = dot_plots(table)[0]
    assert "0.010" in figure  # however small the difference, the axis goes that far


def test_so_few_pictures_that_all_cases_are_the_same_are_shown_once(tmp_path):
    few = write_study(tmp_path / "few", seeds=(0,), subjects=SUBJECTS[:1], per_run=3)
    assert {row.title for panel in make_gallery(read_evaluation(few)).panels for row in panel.rows} == {"all"}


def test_arms_without_a_study_are_compared_by_their_suffix(tmp_path):
    rows = [
        {"metric": "dino", "mode": "sound", "value": 0.5, "subject": "s", "arm": arm, "seed": 0}
        for arm in ("oft", "oft-bayes", "lora-bayes")
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = make_scores(read_evaluation(tmp_path), "sound")
    assert [row.treated.name for row in table.differences] == ["oft-bayes"]


def test_rows_of_a_training_are_no_evaluation(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "metric": "loss", "value": 0.1}\n')
    assert not is_evaluation(tmp_path)
    with pytest.raises(ValueError, match="holds no evaluation"):
        read_evaluation(tmp_path)
