"""The monitor beside training: it sees every stage, keeps the last good model, stops on request, and changes nothing.

Where a stage has to come at a given step, the true monitor judges and a script has the last word.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fewbayes.errors import UserError
from fewbayes.files.decode import typed
from fewbayes.metrics.evaluate import evaluate_folder
from fewbayes.runs.folder import RunFolder, read_metrics
from fewbayes.runs.layout import read_best, read_listing, read_manifest
from fewbayes.runs.opening import open_model
from fewbayes.stage import watch as watch_room
from fewbayes.stage.monitor import Judgement, Look, Monitor
from fewbayes.stage.watch import PROBES, StageWatch
from fewbayes.training.batches import Pictures
from fewbayes.training.stages import PROBED_IMAGES, _at_once, _mean_latents
from fewbayes.training.train import train

SIDE = 32
WATCHED = {"monitor_steps": 1, "validation_steps": 2, "max_train_steps": 6}
SPOILS = {1: "underfit", 2: "good", 3: "good", 4: "corrupted", 5: "corrupted", 6: "corrupted"}


class Scripted(Monitor):
    """A monitor whose stage at each step is written down."""

    script: ClassVar[dict[int, str]] = {}

    def judge(self, look: Look) -> Judgement:
        stage = self.script[look.step]
        best = look.step if stage == "good" and look.samples else self.best
        judged = super().judge(look)
        self._state = replace(self._state, stage=stage, seen=stage, best=best)
        return replace(judged, stage=stage, seen=stage)


@pytest.fixture
def stages_are(monkeypatch):
    def written_down(script: dict[int, str]) -> None:
        monkeypatch.setattr(Scripted, "script", script)
        monkeypatch.setattr(watch_room, "Monitor", Scripted)

    return written_down


@pytest.fixture
def run(settings, family):
    def go(output: str, **changes) -> Path:
        return train(settings(output, **changes), family=family, progress=False).folder

    return go


def judgements(folder: Path) -> list[Judgement]:
    return [typed(row, Judgement, "stages.jsonl") for row in RunFolder(folder).stages()]


def rows(folder: Path, metric: str) -> list[tuple[int, float]]:
    return [(r["step"], r["value"]) for r in read_metrics(folder / "metrics.jsonl") if r["metric"] == metric]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.relative_to(folder)} {name}": value
        for file in folder.rglob("*.safetensors")
        for name, value in load_file(file).items()
    }


def same(a: Path, b: Path) -> bool:
    ours, theirs = tensors(a), tensors(b)
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def pictures(count: int, seed: int = 0) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for _ in range(count)]


def watch_of(family, count: int = 3, others: int = 0, **settings) -> StageWatch:
    """A watch of `count` training images and so many other ones."""
    prompts, theirs, of_others = ["a photo of <v> dog"] * count, pictures(others, 2), ["a dog"] * others
    known, unknown = (encoded(family, shown) if shown else None for shown in (pictures(count), theirs))
    return StageWatch(family, known, prompts, pictures(count), others=unknown, other_prompts=of_others, **settings)


def encoded(family, shown: list[np.ndarray]) -> torch.Tensor:
    return family.encode_images(np.stack(shown))[0]


# the watch alone


def test_a_look_at_the_untouched_model_reads_what_the_base_reads(family):
    watch = watch_of(family)
    base = watch.begin(pictures(2, 1))
    judgement, reading = watch.look(1, pictures(2, 1))
    assert reading == base == watch.base
    assert judgement.stage == watch.stage == "underfit"


@pytest.mark.parametrize(("others", "forwards"), [(0, 14), (4, 24)])
def test_a_look_costs_as_many_forwards_as_it_says(family, others, forwards):
    base = watch_of(family, others=others).begin()
    assert base.forwards == forwards
    assert (base.others_losses is not None) == bool(others)
    assert PROBES == ("sigma_1", "losses", "blank", "guided")
    assert len(base.guided.t) == 2  # the unconditional branch, once at each of two noise levels


def test_between_pictures_a_look_asks_what_decides_alone_and_encodes_fixed_prompts_no_more(family, monkeypatch):
    watch = watch_of(family, prompts_change=False)
    base = watch.begin(pictures(2, 1))
    monkeypatch.setattr(family, "encode_prompts", None)
    reading = watch.look(1)[1]
    assert reading == replace(base, blank=None, forwards=12)


def test_of_a_thousand_images_the_probes_see_a_few_evenly_chosen(family):
    shown = pictures(40)
    latents, prompts = _mean_latents(family, Pictures(family, shown, [f"{i}" for i in range(40)], side=SIDE), 16)
    chosen = [int(prompt) for prompt in prompts]
    assert len(chosen) == PROBED_IMAGES == 16
    assert {after - before for before, after in pairwise(chosen)} == {2, 3}
    torch.testing.assert_close(latents, encoded(family, [shown[i] for i in chosen]))
    assert watch_of(family, 16).begin().forwards == watch_of(family, 2).begin().forwards == 14
    few = Pictures(family, shown[:3], ["a", "b", "c"], side=SIDE)
    assert _mean_latents(family, few, PROBED_IMAGES)[1] == ["a", "b", "c"]


def test_a_watch_that_is_resumed_judges_on_as_the_uninterrupted_one(family):
    seen = [(step, pictures(2, step)) for step in range(1, 5)]
    whole = watch_of(family, sampled_as={"seeds": [1]})
    whole.begin(pictures(2))
    wanted = [whole.look(*look) for look in seen]
    first, second = (watch_of(family, sampled_as={"seeds": [1]}) for _ in range(2))
    first.begin(pictures(2))
    found = [first.look(*look) for look in seen[:2]]
    assert second.resume(json.loads(json.dumps(first.to_dict())))
    assert found + [second.look(*look) for look in seen[2:]] == wanted
    assert second.to_dict() == whole.to_dict()


def test_samples_that_are_drawn_otherwise_are_not_compared_with_those_before(family):
    begun = watch_of(family, sampled_as={"seeds": [1]})
    begun.begin(pictures(2))
    told = begun.to_dict()
    assert not watch_of(family, sampled_as={"seeds": [2]}).resume(told)
    assert not watch_of(family).resume(None)
    assert not watch_of(family).resume({k: v for k, v in told.items() if k != "twins"})
    assert watch_of(family).resume(told)  # no samples any more: nothing to compare
    for changes in ({"twins": [[[[300, 0, 0]]]]}, {"monitor": {}}, {"stage": "splendid"}):
        with pytest.raises(ValueError, match="the stage monitor's part of the checkpoint"):
            watch_of(family).resume(told | changes)


# in a run


@pytest.mark.parametrize(
    "arm",
    [
        {"bayes": True, "use_ema": True},
        {"method": "lora", "rank": 2, "lora_dropout": 0.5, "dropout": 0.3},
        {"method": "oft", "mixed_precision": "bf16"},
        {"method": "lora", "train_rare_token": True},
    ],
    ids=lambda arm: arm.get("method", "full"),
)
def test_watching_never_changes_training(run, stages_are, arm):
    stages_are(SPOILS)
    common = arm | {"max_train_steps": 4, "checkpointing_steps": 4}
    blind, watched = run("blind", **common), run("watched", **common, monitor_steps=1, validation_steps=2)
    assert (watched / "best").is_dir()
    shutil.rmtree(watched / "best")
    assert same(blind, watched)
    assert rows(blind, "loss") == rows(watched, "loss")


def test_every_look_leaves_a_row_and_its_numbers(run):
    folder = run("run", monitor_steps=2, validation_steps=3, max_train_steps=5)
    assert [judgement.step for judgement in judgements(folder)] == [2, 3, 4, 5]  # where it is sampled, and at the end
    assert [step for step, _ in rows(folder, "stage_learning")] == [2, 3, 4, 5]
    assert [step for step, _ in rows(folder, "stage_corruption")] == [3, 5]  # seen in samples alone
    assert [step for step, _ in rows(folder, "loss_training")] == [0, 2, 3, 4, 5]
    ratio = dict(rows(folder, "loss_training_ratio"))
    loss = dict(rows(folder, "loss_training"))
    assert ratio[5] == loss[5] / loss[0]


def test_an_image_that_is_held_out_is_looked_at_and_never_trained_on(run, photos, tmp_path):
    others = shutil.copytree(photos, tmp_path / "others")
    max(others.iterdir()).unlink()
    arm = {"validation_steps": 2, "monitor_steps": 2, "max_train_steps": 2, "checkpointing_steps": 2}
    apart, without = run("apart", held_out=True, **arm), run("without", instance_data_dir=str(others), **arm)
    assert same(apart, without)
    run("later", held_out=True, **arm | {"max_train_steps": 1})
    later = run("later", held_out=True, **arm)  # goes on from the first step's checkpoint
    assert [name for name, value in tensors(apart).items() if not torch.equal(value, tensors(later)[name])] == []
    assert judgements(later)[-1].scores == judgements(apart)[-1].scores
    assert read_manifest(apart).images == read_manifest(without).images
    assert len(list((apart / "held_out").glob("*.png"))) == 1
    assert {"likeness", "unseen_likeness"} <= judgements(apart)[-1].scores.keys()
    assert "to the image held out" in judgements(apart)[-1].line + " ".join(judgements(apart)[-1].evidence)
    assert all(row.unseen_similarity is not None for row in read_listing(apart / "samples/step-000002"))
    scored = evaluate_folder(apart, encoders={}).rows
    assert [r.value for r in scored if (r.metric, r.row) == ("nearest_ncc", "unseen")] != [None]
    with pytest.raises(UserError, match="three or more, and there are 2"):
        run("few", held_out=True, instance_data_dir=str(others), **arm)


def test_without_a_monitor_nothing_of_it_is_there(run):
    folder = run("run", validation_steps=2)
    assert not (folder / "stages.jsonl").exists()
    assert not (folder / "best").exists()
    assert not rows(folder, "loss_training")


def test_class_images_are_watched_where_training_has_them(run, tmp_path):
    preserving = {"with_prior_preservation": True, "class_prompt": "a photo of dog", "num_class_images": 3}
    folder = run("run", **preserving, class_data_dir=str(tmp_path / "class"), monitor_steps=2)
    assert [step for step, _ in rows(folder, "loss_others")] == [0, 2, 4]


@pytest.mark.parametrize(
    "arm", [{}, {"method": "lora", "rank": 2}, {"method": "oft"}], ids=lambda arm: arm.get("method", "full")
)
def test_best_is_the_model_of_the_last_good_samples_and_can_be_drawn_from(run, stages_are, arm):
    stages_are(SPOILS)
    folder = run("run", **arm, **WATCHED, checkpointing_steps=2)
    told = json.loads((folder / "best/best.json").read_text())
    assert (told["step"], told["stage"], told["weights"]) == (2, "good", "raw")  # step 3 was good, but not sampled
    (ours, _), (theirs, word) = (open_model(str(folder / name)) for name in ("checkpoint-2", "best"))
    assert word == "<v>"
    asked = torch.ones(1, 4, 8, 8), torch.tensor([100])
    answers = [model.predict(*asked, model.encode_prompts(["a <v> dog"])) for model in (ours, theirs)]
    assert torch.equal(*answers)


def test_what_is_exported_is_what_is_watched(run, stages_are):
    stages_are(SPOILS)
    folder = run("run", **WATCHED, use_ema=True, export_weights="ema", checkpointing_steps=2)
    averages = load_file(folder / "checkpoint-2/ema.safetensors")
    best = load_file(folder / "best/unet/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(value, averages[f"denoiser.{name}"]) for name, value in best.items())
    assert json.loads((folder / "best/best.json").read_text())["weights"] == "ema"
    rated = [r for r in read_metrics(folder / "metrics.jsonl") if r["metric"] == "loss_training"]
    assert {r["weights"] for r in rated} == {"ema"}


def test_averages_are_shown_to_the_monitor_beside_the_weights_that_are_exported(run, monkeypatch):
    seen: list[Look] = []
    judge = Monitor.judge
    monkeypatch.setattr(Monitor, "judge", lambda self, look: seen.append(look) or judge(self, look))
    both = {
        weights: run(weights, use_ema=True, export_weights=weights, **WATCHED | {"max_train_steps": 2})
        for weights in ("raw", "ema")
    }
    assert [(look.samples is not None, look.averaged is not None) for look in seen] == [
        (False, False),
        (True, True),
        (False, False),
        (True, False),
    ]
    # the loss of the raw weights over that of their averages, whichever are exported
    raw, ema = (rows(folder, "jitter") for folder in both.values())
    loss = {weights: dict(rows(folder, "loss_training")) for weights, folder in both.items()}
    assert [step for step, _ in raw] == [2]
    assert [value for _, value in (*raw, *ema)] == pytest.approx([loss["raw"][2] / loss["ema"][2]] * 2)


# stopping


def test_a_run_stops_at_the_stage_that_was_named_and_says_what_is_kept(settings, family, stages_are, caplog):
    stages_are(SPOILS)
    config = settings("run", **WATCHED, stop_when="corrupted")
    with caplog.at_level(logging.INFO, "fewbayes"):
        ended = train(config, family=family, progress=False)
    assert ended.steps == 4
    manifest = read_manifest(ended.folder)
    assert (manifest.status, manifest.stopped, manifest.steps) == ("done", "corrupted", 4)
    assert (
        "Stopped at step 4 of 6: corrupted. Step 2 is kept in best/. To go on anyway: --stop_when never" in caplog.text
    )
    assert (ended.folder / "checkpoint-4").is_dir()
    assert (ended.folder / "model_index.json").is_file()
    assert not rows(ended.folder, "loss")[4:]


def test_a_stopped_run_is_done_until_it_is_told_to_go_on(settings, family, stages_are, caplog):
    stages_are(SPOILS)
    whole = train(settings("whole", **WATCHED), family=family, progress=False).folder
    stop = WATCHED | {"stop_when": "corrupted"}
    train(settings("run", **stop), family=family, progress=False)
    again = train(settings("run", **stop), family=family, progress=False)
    assert again.steps == again.resumed_from == 4
    assert "already done, stopped at step 4 as corrupted (stop_when never would train on from step 4)" in caplog.text
    grown = train(settings("run", **WATCHED), family=family, progress=False)
    assert (grown.resumed_from, grown.steps) == (4, 6)
    assert read_manifest(grown.folder).stopped is None
    shutil.rmtree(grown.folder / "checkpoint-4")
    assert same(whole, grown.folder)
    assert judgements(whole) == judgements(grown.folder)


def test_killed_between_the_stop_and_the_result_it_only_exports(settings, family, stages_are):
    stages_are(SPOILS)
    config = settings("run", **WATCHED, stop_when="corrupted")
    folder = train(config, family=family, progress=False).folder
    (folder / "model_index.json").unlink()
    RunFolder(folder).manifest_update(status="running", stopped=None)
    again = train(config, family=family, progress=False)
    assert (again.resumed_from, again.steps) == (4, 4)
    assert read_manifest(folder).stopped == "corrupted"
    assert (folder / "model_index.json").is_file()


def test_looks_at_pictures_are_said_and_a_cause_of_damage_once_when_it_comes(settings, family, stages_are, caplog):
    stages_are(SPOILS)
    with caplog.at_level(logging.INFO, "fewbayes"):
        train(settings("run", **WATCHED), family=family, progress=False)
    said = [record for record in caplog.records if record.getMessage().startswith("step ")]
    assert [record.getMessage().split(":")[0] for record in said] == [f"step {n}" for n in (1, 2, 3, 4, 6)]
    assert "step 3: looks good: what the model had learned at step 2 is gone" in said[2].getMessage()
    assert [record.levelname for record in said] == ["INFO", "INFO", "INFO", "WARNING", "WARNING"]
    assert said[3].getMessage().endswith("Step 2 is kept in best/")
    assert "The last step, 6: looks corrupted. Step 2 is kept in best/" in caplog.text


# resuming


def test_a_run_continued_from_a_checkpoint_ends_with_the_stages_and_the_best_of_an_uninterrupted_one(settings, family):
    """With the true monitor, whose history travels in the checkpoint."""
    arm = {"monitor_steps": 1, "validation_steps": 2, "checkpointing_steps": 3, "use_ema": True}
    whole = train(settings("whole", **arm, max_train_steps=6), family=family, progress=False).folder
    torn = train(settings("torn", **arm, max_train_steps=6), family=family, progress=False).folder
    shutil.rmtree(torn / "checkpoint-6")
    RunFolder(torn).manifest_update(status="running")
    again = train(settings("torn", **arm, max_train_steps=6), family=family, progress=False)
    assert again.resumed_from == 3
    assert same(whole, torn)
    assert (whole / "stages.jsonl").read_bytes() == (torn / "stages.jsonl").read_bytes()
    assert read_metrics(whole / "metrics.jsonl") == read_metrics(torn / "metrics.jsonl")
    states = [json.loads((folder / "checkpoint-6/trainer_state.json").read_text()) for folder in (whole, torn)]
    assert states[0]["state"] == states[1]["state"]


def test_best_is_what_the_true_monitor_last_saw_as_good_and_stays_so_when_nothing_good_follows(
    settings, family, caplog, monkeypatch
):
    monkeypatch.setattr("fewbayes.stage.monitor.OUTLINES", {})  # random weights draw none
    arm = {"monitor_steps": 2, "validation_steps": 2, "checkpointing_steps": 4, "learning_rate": 1e-2}
    folder = train(settings("run", **arm, max_train_steps=4), family=family, progress=False).folder
    good = [judgement for judgement in judgements(folder) if judgement.seen == "good"]
    told = json.loads((folder / "best/best.json").read_text())
    assert {key: told[key] for key in ("step", "stage", "seen", "scores")} == {
        key: value for key, value in asdict(good[-1]).items() if key in told
    }
    kept = tensors(folder / "best")
    with caplog.at_level(logging.INFO, "fewbayes"):
        blind = arm | {"validation_steps": 0}  # without samples no look can be good
        train(settings("run", **blind, max_train_steps=6), family=family, progress=False)
    assert json.loads((folder / "best/best.json").read_text()) == told
    assert all(torch.equal(value, kept[name]) for name, value in tensors(folder / "best").items())
    assert f"Step {told['step']} is kept in best/" in caplog.text
    assert read_manifest(folder).steps == 6


@pytest.fixture
def killed_after_a_good_look(settings, family, stages_are):
    """The folder of a run that was killed at step 6 and whose best/ is later than its newest checkpoint."""

    def make(checkpoint: int, **arm) -> Path:
        stages_are(SPOILS | {4: "good"})
        arm = WATCHED | {"checkpointing_steps": checkpoint} | arm
        folder = train(settings("run", **arm), family=family, progress=False).folder
        for path in folder.glob("checkpoint-*"):
            if path.name != f"checkpoint-{checkpoint}":
                shutil.rmtree(path)
        RunFolder(folder).manifest_update(status="running")
        assert json.loads((folder / "best/best.json").read_text())["step"] == 4
        return folder

    return make


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"guidance_scale": 3.0}, "looks corrupted. No samples were good"),
        ({"max_train_steps": 3}, "looks good. Samples were last good at step 2, which best/ does not hold"),
    ],
    ids=["other samples", "fewer steps"],
)
def test_best_of_a_step_that_is_not_reached_any_more_is_kept_under_its_step(
    settings, family, stages_are, killed_after_a_good_look, caplog, changes, said
):
    folder = killed_after_a_good_look(3)
    stages_are(SPOILS | {4: "corrupted"})
    with caplog.at_level(logging.INFO, "fewbayes"):
        again = train(settings("run", **WATCHED | {"checkpointing_steps": 3} | changes), family=family, progress=False)
    assert again.resumed_from == 3
    assert read_best(folder / "best-4").step == 4
    assert not (folder / "best").exists()
    assert "goes on from step 3, so best/ (step 4) is kept as best-4/" in caplog.text
    assert said in caplog.text


def test_a_run_that_begins_again_keeps_best_of_before_under_its_step(
    settings, family, stages_are, killed_after_a_good_look
):
    folder = killed_after_a_good_look(3)
    shutil.rmtree(folder / "checkpoint-3")
    stages_are(dict.fromkeys(range(1, 7), "underfit"))
    train(settings("run", **WATCHED), family=family, progress=False)
    assert sorted(path.name for path in folder.glob("best*")) == ["best-4"]


def test_best_is_written_again_from_the_checkpoint_of_its_step(settings, family, killed_after_a_good_look):
    folder = killed_after_a_good_look(2, use_ema=True, export_weights="ema")
    arm = {"checkpointing_steps": 2, "use_ema": True, "export_weights": "ema"}
    train(settings("run", **WATCHED | arm | {"max_train_steps": 2}), family=family, progress=False)
    short = train(settings("short", **WATCHED | arm | {"max_train_steps": 2}), family=family, progress=False).folder
    assert (folder / "best/best.json").read_text() == (short / "best/best.json").read_text()
    assert same(folder / "best", short / "best")


def test_other_weights_are_not_compared_with_those_before(settings, family, stages_are, caplog):
    """Also where there are no samples; what best/ holds stays, and is said."""
    stages_are(SPOILS)
    arm = WATCHED | {"use_ema": True, "max_train_steps": 2}
    folder = train(settings("run", **arm), family=family, progress=False).folder
    begun = watch_of(family)
    begun.begin()
    assert not watch_of(family, weights="ema").resume(begun.to_dict())
    with caplog.at_level(logging.INFO, "fewbayes"):
        train(settings("run", **arm, export_weights="ema"), family=family, progress=False)
    assert "begins anew at step 2 and knows nothing of before. Step 2 is kept in best/" in caplog.text
    assert "has not looked since it began. Step 2 is kept in best/" in caplog.text
    assert json.loads((folder / "best/best.json").read_text())["weights"] == "raw"


def test_a_stopped_run_without_checkpoints_says_that_it_would_begin_again(settings, family, stages_are, caplog):
    stages_are(SPOILS)
    config = settings("run", **WATCHED, stop_when="corrupted", checkpointing_steps=0)
    train(config, family=family, progress=False)
    train(config, family=family, progress=False)
    assert "(stop_when never would train again from step 0, as there is no checkpoint)" in caplog.text


def test_looks_put_no_more_through_the_denoiser_at_once_than_samples(settings):
    assert _at_once(settings(sample_batch_size=3)) == 6
    assert _at_once(settings(sample_batch_size=3, guidance_scale=1.0)) == 3
    assert _at_once(settings(sample_batch_size=3, mixed_precision="bf16")) == 3  # looks are in float32
    assert _at_once(settings(sample_batch_size=1, guidance_scale=1.0, mixed_precision="bf16")) == 1


def test_a_run_that_turns_to_being_watched_compares_with_the_model_it_began_from(settings, family, caplog):
    arm = {"validation_steps": 2, "checkpointing_steps": 2}
    whole = train(settings("whole", **arm, monitor_steps=2), family=family, progress=False).folder
    train(settings("late", **arm, max_train_steps=2), family=family, progress=False)
    late = train(settings("late", **arm, monitor_steps=2), family=family, progress=False).folder
    assert "the monitor begins anew at step 2" in caplog.text
    assert rows(late, "loss_training_ratio") == rows(whole, "loss_training_ratio")[1:]
    assert judgements(late)[-1].scores == judgements(whole)[-1].scores
