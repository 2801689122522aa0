import json
import math
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw

from fewbayes.page import summarise, write_report
from fewbayes.page.read import read_experiment
from fewbayes.page.run_page import UNDER, contact_sheet, differing_settings
from fewbayes.page.verdict import ELSEWHERE, MISSED, RATED, chosen, confidence
from fewbayes.stage.definition import CORRUPTED, stages
from fewbayes.stage.monitor import seen

STEPS = (0, 100, 200, 300, 400, 500)
RAW = {0: (0.1, 0.7, 0.4, 0.4, 0.5, 0.8), 1: (0.1, 0.6, 0.5, 0.3, 0.4, 0.9), 2: (0.1, 0.8, 0.6, 0.5, 0.6, 0.7)}
EMA = dict.fromkeys(RAW, (0.1, 0.5, 0.7, 0.8, 0.85, 0.9))
NOISE = (2.5, 4.0, 9.0, 10.0, 8.0, 4.0)
FLAT = (2.5, 3.0, 3.0, 3.0, 3.0, 3.0)


def draw(size: int, likeness: float, noise: float, seed: int) -> Image.Image:
    """A striped mug that appears as likeness grows, under noise."""
    mug = Image.new("RGB", (size, size), (210, 190, 160))
    pen = ImageDraw.Draw(mug)
    unit = size / 16
    pen.ellipse((9 * unit, 5 * unit, 14 * unit, 11 * unit), outline=(150, 40, 40), width=max(int(unit), 1))
    for i in range(4):
        shade = (180, 50, 40) if i % 2 else (240, 225, 200)
        pen.rectangle((4 * unit, (4 + 2 * i) * unit, 11 * unit, (6 + 2 * i) * unit), fill=shade)
    rng = np.random.default_rng(seed)
    plain = np.full((size, size, 3), (120, 140, 150)) + np.linspace(-30, 30, size)[:, None, None]
    mixed = likeness * np.asarray(mug, dtype=float) + (1 - likeness) * plain
    mixed += rng.normal(0, noise, mixed.shape)
    return Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))


def write_run(
    folder: Path,
    *,
    seed: int = 0,
    steps=STEPS,
    raw=RAW[0],
    raw_noise=NOISE,
    ema=None,
    size: int = 16,
    pictures: int = 1,
    prompt: str = "a photo of a <v> mug",
    losses: int = 0,
    **config,
) -> Path:
    """A run folder as a training writes it."""
    folder.mkdir(parents=True)
    settings = {"seed": seed, "bayes": False, "learning_rate": 3e-4, "instance_prompt": prompt, **config}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    manifest = {"status": "done", "versions": {"torch": "2.13.0"}, "hardware": {"cpu": "2 cores"}, "seed": seed}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    rows, samples = [], {}
    for weights, similarity, noise in [("raw", raw, raw_noise)] + ([("ema", ema, FLAT * 2)] if ema else []):
        for i, step in enumerate(steps):
            rows.append({"step": step, "metric": "image_similarity", "value": similarity[i], "weights": weights})
            rows.append({"step": step, "metric": "haar_noise", "value": noise[i], "weights": weights})
            at = folder / "samples" / f"step-{step:06d}"
            (at / weights).mkdir(parents=True, exist_ok=True)
            for n in range(pictures):
                picture = draw(size, max(similarity[i], 0), noise[i], 1000 * seed + n)
                picture.save(at / weights / f"{n:02d}.png")
            for n in range(pictures):
                row = {"file": f"{weights}/{n:02d}.png", "weights": weights, "prompt": prompt, "seed": n}
                row |= {"sampler": "ddim", "steps": 25, "guidance": 3.0, "image_similarity": similarity[i]}
                samples.setdefault(at / "samples.json", []).append(row)
    for path, listed in samples.items():
        path.write_text(json.dumps(listed))
    rng = np.random.default_rng(seed)
    rows += [{"step": s, "metric": "loss", "value": float(rng.gamma(2, 0.02))} for s in range(1, losses + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "reference").mkdir()
    draw(size, 1, 3, 0).save(folder / "reference" / "00.png")
    return folder


def write_experiment(folder: Path, seeds=(0, 1, 2), **changes) -> Path:
    """Plain training that dips and recovers, and a Bayesian arm that rises."""
    for seed in seeds:
        write_run(folder / f"plain-seed{seed}", seed=seed, raw=RAW[seed], ema=EMA[seed])
        write_run(
            folder / f"bayes-seed{seed}",
            seed=seed,
            raw=EMA[seed],
            raw_noise=FLAT,
            ema=EMA[seed],
            bayes=True,
            weight_std=0.01,
        )
    arms = [
        {"name": arm, "label": label, "runs": [f"{arm}-seed{seed}" for seed in seeds], "note": ""}
        for arm, label in (("plain", "Plain DreamBooth"), ("bayes", "Bayesian DreamBooth"))
    ]
    listed = {"title": "One mug", "subject": "mug", "question": "Does it dip?", "summary": ["It dips."], "arms": arms}
    (folder / "experiment.json").write_text(json.dumps({**listed, "provenance": {"commit": "abc123"}, **changes}))
    return folder


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Path:
    return write_experiment(tmp_path_factory.mktemp("experiment"))


@pytest.fixture(scope="module")
def page(experiment: Path) -> str:
    return write_report(experiment).read_text("utf-8")


def test_a_stage_is_two_corrupted_checkpoints_in_a_row():
    assert stages(STEPS, [0.1, 0.9, 0.1, 0.5, 0.6, 0.4]) == [(300, 400)]
    assert stages(STEPS, [0.9, 0.9, 0.1, 0.5, 0.4, 0.9]) == [(0, 100)]
    assert stages(STEPS, [0.1, 0.9, 0.1, 0.9, 0.1, 0.9]) == []


def test_summary_equals_numbers_worked_out_by_hand(experiment: Path):
    summary = summarise(experiment)
    plain = summary["arms"][0]["weights"]["raw"]
    assert plain["n"] == 3
    assert plain["seeds"] == [0, 1, 2]
    assert plain["peak_similarity"]["values"] == [0.8, 0.9, 0.8]
    assert plain["peak_similarity"]["mean"] == pytest.approx(2.5 / 3)
    assert plain["deepest_fall"]["values"] == pytest.approx([0.3, 0.3, 0.3])
    assert plain["final_similarity"]["mean"] == pytest.approx(0.8)
    half = 4.303 * 0.1 / math.sqrt(3)
    assert plain["final_similarity"]["low"] == pytest.approx(0.8 - half, abs=1e-4)
    assert plain["highest_noise"]["mean"] == 10.0
    assert plain["fidelity_dip"]["values"] == pytest.approx([0.0, 0.1, 0.0])  # of medians of three
    averaged = summary["arms"][0]["weights"]["ema"]
    assert averaged["deepest_fall"]["mean"] == 0.0
    assert averaged["fidelity_dip"]["mean"] == 0.0
    difference = next(row for row in summary["differences"] if row["weights"] == "raw")
    assert difference["final_similarity"]["values"] == pytest.approx([0.1, 0.0, 0.2])
    assert difference["highest_noise"]["mean"] == pytest.approx(-7.0)


def test_page_shows_the_numbers_of_the_summary(experiment: Path, page: str):
    rows = re.findall(r"<tr>\s*<th scope=\"row\">.*?</tr>", page[page.index("<summary>Numbers") :], re.DOTALL)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", rows[0]))
    assert "0.83 0.80 to 0.90 " in text  # the least and the greatest of three seeds, no interval
    assert "0.80 0.70 to 0.90 " in text
    assert "1 of 3" in text
    assert json.loads((experiment / "summary.json").read_text()) == json.loads(json.dumps(summarise(experiment)))


def test_the_page_tells_stages_by_the_pictures_as_the_monitor_does(tmp_path: Path):
    noise = (2.5, 3.0, 40.0, 60.0, 60.0, 3.0)
    run = write_run(tmp_path / "noisy", raw=(0.5,) * 6, raw_noise=noise, pictures=2, size=32)
    (read,) = read_experiment(run).runs
    curve = read.curve("corruption")
    assert curve.steps.tolist() == list(STEPS)
    corrupted = (curve.values >= CORRUPTED).tolist()
    assert corrupted == [False, False, True, True, True, False]
    row = summarise(run)["arms"][0]["weights"]["raw"]
    assert row["stages_per_run"] == [[(200, 400)]]
    assert row["fidelity_dip"]["mean"] == 0.0  # likeness never fell: the dip is another thing
    tones = [look.seen for look in read.looks["raw"] if look.step]
    assert [tone == "corrupted" for tone in tones] == corrupted[1:]


def watch(run: Path, looks, best: int | None = None) -> Path:
    """What the stage monitor leaves behind: (step, stage) of its looks, the last row torn, and best/."""
    rows = [json.dumps({"step": step, "stage": stage}) for step, stage in looks]
    (run / "stages.jsonl").write_text("\n".join([*rows, '{"step": 900, "sta']))
    if best is not None:
        (run / "best").mkdir()
        (run / "best" / "best.json").write_text(json.dumps({"step": best}))
    return run


LOOKS = [(0, "underfit"), (100, "good"), (200, "good"), (300, "corrupted"), (400, "corrupted"), (500, "corrupted")]


def test_the_page_says_what_the_monitor_said_and_names_the_step_that_best_holds(tmp_path: Path):
    run = watch(write_run(tmp_path / "watched run"), LOOKS, best=200)
    page = write_report(run).read_text("utf-8")
    assert "Good at step 200. Corrupted from step 300 on" in page
    assert "<h2>Use step 200</h2>" in page
    folder = f"&#39;{run}/best&#39;"  # quoted for a shell, as it has a space
    assert f"<code>fewbayes sample {folder} --prompt" in page
    assert f"<code>fewbayes export {folder} --format" in page
    (panel,) = contact_sheet(read_experiment(run)).panels
    assert [column.tone for column in panel.columns[1:]] == [stage for _, stage in LOOKS[1:]]
    assert [column.title for column in panel.columns if column.chosen] == ["200"]


def test_without_best_a_good_step_is_recommended_only_if_its_weights_are_kept(tmp_path: Path):
    run = watch(write_run(tmp_path / "run"), LOOKS)
    assert chosen(read_experiment(run).runs[0]) is None
    assert "No step to recommend" in write_report(run).read_text("utf-8")
    (run / "stages.jsonl").unlink()  # nobody watched: the page judges the pictures itself
    (run / "checkpoint-200").mkdir()
    found = chosen(read_experiment(run).runs[0])
    assert found in (None, (200, "checkpoint-200"))


JUDGED = "ratings_siblings"


def json_rows(path: Path) -> list[dict]:
    return json.loads(path.read_text())["rows"]


def test_how_often_a_verdict_is_wrong_is_what_was_measured():
    results = Path(__file__).parents[1] / "benchmarks" / "results"
    told = json.loads((results / "earned_good.json").read_text())["sets"][JUDGED]
    ratings = {(r["training"], r["step"]): median(r["ratings"]) for r in json_rows(results / f"{JUDGED}.json")}
    found = Counter()
    for row in told["rows"]:
        assert row["rated"] == ("clean", "between", "broken")[int(ratings[row["training"], row["step"]])]
        assert row["seen"] == seen(row["scores"], several=True)  # by the limits of today
        found[row["seen"], row["rated"]] += 1
    for stage in ("good", "unclear"):
        assert RATED[stage] == tuple(found[stage, rated] for rated in ("clean", "between", "broken"))
    assert (found["good", "broken"], sum(n for (_, rated), n in found.items() if rated == "broken")) == MISSED
    held = json.loads((results / "monitor_quality.json").read_text())["sets"]["ratings_held_out"]["quality"]["all"]
    shares, (clean, between, broken) = held["called_corrupted"], RATED["corrupted"]
    assert broken == pytest.approx(shares["broken"] * held["broken"])
    assert clean == shares["clean"] == 0
    assert between / shares["between"] == pytest.approx(round(between / shares["between"]))
    assert "115 were broken and 0 clean" in confidence("corrupted")
    groups = json.loads((results / "guided_monitor.json").read_text())["groups"]
    called = groups["clean latents, drawn, tiny-sharp"]["called"]["score"]
    assert (called["broken"][0], sum(each[0] for each in called.values())) == ELSEWHERE


def test_a_run_without_pictures_of_the_base_model_is_not_judged(tmp_path: Path):
    run = write_run(tmp_path / "late", steps=STEPS[1:], raw=(0.5,) * 5, raw_noise=NOISE[1:])
    assert "No pictures were judged" in write_report(run).read_text("utf-8")


def test_an_experiment_answers_its_question_in_one_line(tmp_path: Path):
    folder = write_experiment(tmp_path, summary=[])
    assert summarise(folder)["verdict"][0] in write_report(folder).read_text("utf-8")
    assert summarise(folder)["verdict"][0].startswith("A corruption stage in Plain DreamBooth (1 of 3)")
    told = json.loads((folder / "experiment.json").read_text())
    made = {"command": "fewbayes demo", "model": "my model"}
    (folder / "experiment.json").write_text(json.dumps(told | {"provenance": made}))
    assert "fewbayes train --model &#39;my model&#39; --instance_data_dir" in write_report(folder).read_text("utf-8")


def test_a_page_of_nine_arms_has_nine_colours(tmp_path: Path):
    for i in range(9):
        write_run(tmp_path / f"a{i}-seed0", ema=EMA[0])
    arms = [{"name": f"a{i}", "label": f"arm {i}", "runs": [f"a{i}-seed0"]} for i in range(9)]
    (tmp_path / "experiment.json").write_text(json.dumps({"arms": arms}))
    page = write_report(tmp_path).read_text("utf-8")
    used = set(re.findall(r"var\(--arm-(\d+)\)", page))
    assert used == set(map(str, range(9))) == set(re.findall(r"--arm-(\d+):", page))


def test_page_is_self_contained(page: str):
    assert not re.search(r"https?:", page)
    assert not re.search(r"@import|<link|<iframe|<object|src=\"(?!data:image/png;base64,)", page)
    assert not re.search(r"url\((?!#)", page)
    assert "default-src 'none'" in page


def test_every_reference_inside_the_page_exists_and_ids_are_unique(page: str):
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) | set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)


def test_page_holds_every_picture_once_per_row(page: str):
    cells = re.findall(r'role="cell"[^>]*>\s*<button type="button" class="shot"', page)
    seeds, rows = 3, 4
    assert len(cells) == seeds * rows * len(STEPS)


def test_page_tells_how_pictures_were_sampled_and_what_differs(experiment: Path, page: str):
    provenance = page[page.index("<summary>Settings") :]
    for key, value in {
        "sampler": "ddim",
        "steps": "25",
        "guidance": "3.0",
        "prompt": "a photo of a &lt;v&gt; mug",
    }.items():
        assert f"<dt>{key}</dt><dd>{value}</dd>" in provenance
    differing = dict(differing_settings(read_experiment(experiment)))
    assert differing == {"bayes": ["False", "True"], "weight_std": ["\N{EN DASH}", "0.01"]}


def test_reports_need_no_torch():
    code = "import sys, fewbayes.page; sys.exit(any(name in sys.modules for name in ('torch', 'diffusers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_hostile_text_is_escaped(tmp_path: Path):
    hostile = "</script><script>alert('$x_{')</script>\"><img src=http://evil onerror=alert(1)>$\\frac{"
    write_run(tmp_path / hostile.replace("/", "_"), prompt=hostile, ema=EMA[0], note=hostile)
    arms = [{"name": hostile, "label": hostile, "note": hostile, "runs": [hostile.replace("/", "_")]}]
    listed = {
        "title": hostile,
        "question": hostile,
        "summary": [hostile],
        "arms": arms,
        "provenance": {hostile: hostile},
    }
    (tmp_path / "experiment.json").write_text(json.dumps(listed))
    page = write_report(tmp_path, tmp_path / "out" / "page.html").read_text("utf-8")
    assert page.count("<script>") == 1
    assert "<img src=http" not in page
    assert hostile not in page
    assert page.count("&lt;img src=http://evil") > 5


def test_torn_and_missing_files_are_said_and_do_no_harm(tmp_path: Path):
    folder = write_experiment(tmp_path)
    torn = folder / "plain-seed1"
    rows = (torn / "metrics.jsonl").read_text().splitlines()
    rows[2] = '{"step": 100, "metr'
    rows += [
        "[]",
        "",
        '{"step": 600, "metric": "haar_noise", "value": null}',
        '{"step": 1, "metric": "loss", "value": NaN}',
    ]
    (torn / "metrics.jsonl").write_text("\n".join(rows))
    (torn / "config.yaml").write_text("seed: [1")
    (torn / "manifest.json").unlink()
    (folder / "plain-seed2" / "samples" / "step-000300" / "raw" / "00.png").write_bytes(b"\x89PNG half")
    (folder / "bayes-seed0" / "samples" / "step-000200" / "samples.json").write_text("{")
    (folder / "bayes-seed2" / "metrics.jsonl").unlink()
    for gone in sorted((folder / "bayes-seed1").rglob("*"), reverse=True):
        gone.rmdir() if gone.is_dir() else gone.unlink()
    page = write_report(folder).read_text("utf-8")
    notes = " ".join(read_experiment(folder).notes)
    assert "3 torn rows" in notes
    assert "manifest.json is missing" in notes
    assert "config.yaml is not readable" in notes
    assert "bayes-seed1 is missing" in notes
    assert "no picture was found" in page
    assert summarise(folder)["arms"][1]["weights"]["raw"]["n"] == 1


def test_single_run_makes_a_page(tmp_path: Path):
    folder = write_run(tmp_path / "mine", raw=EMA[0], raw_noise=FLAT, losses=50, instance_data_dir="/photos/my_cat")
    page = write_report(folder).read_text("utf-8")
    assert "<h1>mine</h1>" in page
    assert "averaged weights" not in page
    assert "seeds" not in page[: page.index("<summary>How this")]  # one run: no n, no intervals
    assert not re.search(r"[\d.]+ to [\d.]+</small>", page)
    assert 'aria-label="Loss over training steps"' in page
    assert summarise(folder)["arms"][0]["weights"]["raw"]["final_similarity"]["low"] is None


def test_run_that_has_only_begun_makes_a_page(tmp_path: Path):
    folder = tmp_path / "begun"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"status": "running"}')
    page = write_report(folder).read_text("utf-8")
    assert "recorded as running" in page
    assert "still training" in page


def test_a_signal_that_only_one_arm_has_is_drawn_for_that_arm(tmp_path: Path):
    folder = write_experiment(tmp_path / "experiment", seeds=(0,))
    rows = folder / "bayes-seed0" / "metrics.jsonl"
    moved = [{"step": s, "metric": "weight_std_mean", "value": 1e-4 * s, "weights": "raw"} for s in (100, 200)]
    rows.write_text(rows.read_text() + "".join(json.dumps(row) + "\n" for row in moved))
    assert "Mean weight standard deviation over training steps" in write_report(folder).read_text()


def test_pictures_are_whole_while_there_is_room_then_reduced_and_that_is_said(tmp_path: Path):
    experiment = read_experiment(write_run(tmp_path / "large", size=300))

    def size(sheet):
        return {(s.picture.width, s.picture.reduced_from) for p in sheet.panels for r in p.rows for s in r.shots}

    assert size(contact_sheet(experiment)) == {(300, None)}
    small = contact_sheet(experiment, budget=150_000)
    assert size(small) == {(256, (300, 300))}
    assert "hides fine noise" in small.notes[-1]


def test_the_nearest_training_image_stands_beside_each_picture(tmp_path: Path):
    run = write_run(tmp_path / "run", raw=(0.9,) * 6, raw_noise=FLAT, size=32)
    Image.new("RGB", (32, 32), (20, 90, 20)).save(run / "reference" / "aa.png")  # sorted after 00.png, like nothing
    (panel,) = contact_sheet(read_experiment(run)).panels
    assert {shot.near for shot in panel.rows[0].shots} == {0}
    assert {shot.likeness for shot in panel.rows[0].shots} == {0.9}  # as the run recorded it


def test_the_sheet_keeps_to_its_budget_and_says_what_it_left_out(tmp_path: Path):
    for seed in (0, 1):
        write_run(
            tmp_path / f"plain-seed{seed}",
            seed=seed,
            pictures=2,
            steps=range(0, 1200, 100),
            raw=[0.5] * 12,
            raw_noise=[9] * 12,
        )
    arms = [{"name": "plain", "runs": ["plain-seed0", "plain-seed1"]}]
    (tmp_path / "experiment.json").write_text(json.dumps({"arms": arms}))
    experiment = read_experiment(tmp_path)
    whole = contact_sheet(experiment)
    assert (whole.choosers, whole.notes) == ([("training seed", ["0", "1"]), ("picture", ["1", "2"])], [UNDER])
    assert [len(panel.columns) for panel in whole.panels] == [12] * 4
    for budget in (40_000, 16_000, 8_000):
        sheet = contact_sheet(experiment, budget)
        shots = [shot for panel in sheet.panels for row in panel.rows for shot in row.shots]
        assert sum(len(shot.picture.uri) for shot in shots if shot) <= budget
        assert [sheet.panels[0].columns[i].title for i in (0, -1)] == ["0", "1100"]
        assert len(sheet.notes) > 1


def test_folder_that_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"neither an experiment\.json nor a run"):
        write_report(tmp_path)
    (tmp_path / "experiment.json").write_text("{")
    with pytest.raises(ValueError, match="not readable"):
        summarise(tmp_path)


def test_report_is_the_same_bytes_twice(experiment: Path, page: str):
    assert write_report(experiment).read_text("utf-8") == page
