"""How many weights are trained, and how many of them random, on the true shapes of published models.

Networks are built without memory from the config.json files in `shapes/`, and of flow models from the settings in
memory_table.py, so this takes a minute on any machine. Presets that a model has not are left out. Writes counts.json
and, the same as a table, counts.md.

    python benchmarks/counts.py --output benchmarks/results
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from memory_table import MODELS as FLOW_MODELS
from memory_table import write_shapes

from fewbayes.methods import make_method
from fewbayes.models import Family, ModelCard, meta_family, parameter_counts
from fewbayes.posterior.where import PRESETS, select
from fewbayes.settings.config import TrainConfig

SHAPES = Path(__file__).parent / "shapes"
MODELS = {"sd15": ("SD 1.5", "sd", 512), "sd21": ("SD 2.1", "sd", 768), "sdxl": ("SDXL", "sdxl", 1024)}
ADAPTERS: dict[str, dict[str, Any]] = {"lora": {"rank": 4}, "oft": {"oft_blocks": 4}}


def card_of(shape: str) -> ModelCard:
    """A model that is known by its shapes alone."""
    named, family, resolution = MODELS[shape]
    scheduler = json.loads((SHAPES / shape / "scheduler/scheduler_config.json").read_text())
    return ModelCard(named, SHAPES / shape, family, scheduler["prediction_type"], resolution)


def counted(family: Family, method: str, where: str = "linear", **settings: Any) -> dict[str, Any]:
    """One row: what a method trains of a model, and how much of it is random; the family is afterwards as before.

    where is for full fine-tuning; adapters have a rule of their own.
    """
    paths = {"model": "-", "instance_data_dir": "-", "instance_prompt": "<v>", "output_dir": "-"}
    maker = make_method(TrainConfig(**paths, method=method, bayes=True, where=where, **settings))  # pyright: ignore
    whole = sum(parameter.numel() for parameter in family.denoiser.parameters())
    with torch.device("meta"):
        maker.attach(family)
    trained = sum(weight.numel() for weight in maker.trainable(family).values())
    random = [chosen.parameter.numel() for chosen in select(*maker.random(family))]
    maker.detach(family)
    return {
        "model": family.card.model,
        "method": method,
        "settings": settings or {"where": where},
        "trained": trained,
        "random": sum(random),
        "random_tensors": len(random),
        "share_of_denoiser": sum(random) / whole,
    }


def count_all() -> dict[str, Any]:
    families = [meta_family(card_of(shape)) for shape in MODELS]
    with tempfile.TemporaryDirectory() as folder:
        families += [meta_family(write_shapes(model, Path(folder) / model)) for model in FLOW_MODELS]
        parameters = {family.card.model: parameter_counts(family.card) for family in families}
    rows = []
    for family in families:
        has = [name for name, it in PRESETS.items() if not it.within or it.within[0] in family.layer_groups]
        rows += [counted(family, "full", where) for where in has]
        rows += [counted(family, method, **settings) for method, settings in ADAPTERS.items()]
    return {"parameters": parameters, "rows": rows}


def as_table(counts: dict[str, Any]) -> str:
    lines = ["# Trained and random weights on true shapes", ""]
    lines += ["| model | part | parameters |", "|---|---|---:|"]
    lines += [f"| {m} | {part} | {n:,} |" for m, parts in counts["parameters"].items() for part, n in parts.items()]
    lines += ["", "| model | method | settings | trained | random | of the denoiser |", "|---|---|---|---:|---:|---:|"]
    for row in counts["rows"]:
        settings = ", ".join(f"{key} {value}" for key, value in row["settings"].items())
        share = f"{row['share_of_denoiser']:.3%}"
        lines.append(
            f"| {row['model']} | {row['method']} | {settings} | {row['trained']:,} | {row['random']:,} | {share} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    folder = parser.parse_args().output
    counts = count_all()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "counts.json").write_text(json.dumps(counts, indent=2) + "\n")
    (folder / "counts.md").write_text(as_table(counts))
    print(as_table(counts), end="")


if __name__ == "__main__":
    main()
