"""best/ and checkpoint-N of a run are taken wherever a run is."""

from pathlib import Path

import pytest

from conftest import short_run
from fewbayes.cli import main
from fewbayes.errors import UserError
from fewbayes.metrics.sources import find_source
from fewbayes.runs.folder import RunFolder
from fewbayes.training.train import train


@pytest.fixture(scope="module")
def run(eps_model, photos, tmp_path_factory):
    steps = {"max_train_steps": 2, "checkpointing_steps": 1, "validation_steps": 1}
    made = tmp_path_factory.mktemp("parts") / "run"
    train(short_run(eps_model, photos, made, method="lora", **steps), progress=False)

    def writer(best: Path) -> None:
        (best / "pytorch_lora_weights.safetensors").write_bytes(
            (made / "pytorch_lora_weights.safetensors").read_bytes()
        )

    RunFolder(made).write_best(writer, {"step": 2, "stage": "good"})
    return made


@pytest.mark.parametrize(
    ("part", "command", "result"),
    [
        (part, command, result)
        for part in ("best", "checkpoint-1")
        for command, result in (
            (["sample", "--prompt", "a <v> dog", "--num_images", "1", "--num_inference_steps", "2"], "samples.json"),
            (["export", "--format", "kohya"], "*.safetensors"),
            (["report"], None),
        )
    ]
    + [("best", ["diagnose", "--num_images", "1", "--num_inference_steps", "2"], "diagnosis.json")],
    ids=lambda value: value[0] if isinstance(value, list) else value,
)
def test_a_part_of_a_run_is_taken_wherever_a_run_is(run, tmp_path, capsys, part, command, result):
    name, *flags = command
    output = ["--output_dir", str(tmp_path / "out")] if result else ["--output", str(tmp_path / "page.html")]
    assert main([name, str(run / part), *flags, *output]) == 0, capsys.readouterr().err
    assert list(tmp_path.rglob(result or "page.html"))


def test_the_samples_of_a_part_of_a_run_are_those_of_its_step(run):
    assert find_source(run / "best").pictures == run / "samples/step-000002"
    assert find_source(run / "checkpoint-1").pictures == run / "samples/step-000001"
    assert find_source(run / "checkpoint-1").reference == run / "reference"
    (run / "samples/step-000001").rename(run / "samples/gone")
    with pytest.raises(UserError, match=r"no samples of step 1 \(it has those of step 0, 2\).*checkpoint-1 --prompt"):
        find_source(run / "checkpoint-1")
    (run / "samples/gone").rename(run / "samples/step-000001")
