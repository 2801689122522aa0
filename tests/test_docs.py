"""The pages say what the kept results say: tables are cut from them, links and modules exist.

python tests/test_docs.py      # write the tables of the pages anew
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from fewbayes.studies.remedies import tables as remedies_tables

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LOG = "lab-log.md"  # its entries stand as they were written
Rows = list[dict[str, str]]


@dataclass(frozen=True)
class Cut:
    """Rows and columns of a section of a result page; rows by the start of their first cells, "a | b"."""

    file: str
    section: str
    rows: Sequence[str]
    columns: dict[str, str]
    """Heading in the page: heading in the result."""


_LEVELS = {
    "arm": "arm",
    "weights": "weights",
    "corrupted, %": "corrupted checkpoints, %",
    "last Dino": "last Dino",
    "last quality": "last quality",
}
_SIZES = ("SD 1.5", "SDXL", "SD 3.5 medium", "SD 3.5 large", "FLUX.2 klein 4B", "FLUX.2 klein 9B", "Z-Image")
_PEAKS = ("model", "side", "denoiser", "text encoders", "fp32", "bf16", "nf4", "nf4, 512")
_CARDS = ("model", "8 GB", "12 GB", "16 GB", "24 GB", "48 GB")
CUTS: dict[str, list[Cut]] = {
    "memory peaks": [Cut("memory.md", "Peaks", _SIZES, {name: name for name in _PEAKS})],
    "memory that fits": [Cut("memory.md", "What fits", _SIZES, {name: name for name in _CARDS})],
    "noise levels": [
        Cut(
            "remedies_noise.md",
            "Levels",
            [
                "Plain | raw",
                *(f"{arm} | raw" for arm in ("Bayesian, 0.01", "Bayesian, 0.1", "Bayesian, 0.3")),
                *(f"{arm} | raw" for arm in ("Plain, quarter rate", "Pull to the start, 40")),
            ],
            _LEVELS,
        )
    ],
    "rate levels": [
        Cut(
            "remedies_rate.md",
            "Levels",
            [
                "Plain | raw",
                "Plain | averaged",
                *(f"{arm} | raw" for arm in ("Bayesian, 0.01", "Bayesian, 0.03", "Bayesian, 0.1")),
                *(f"{arm} | raw" for arm in ("Plain, quarter rate", "Pull to the start, 10")),
            ],
            _LEVELS,
        )
    ],
}


def markdown(rows: Rows) -> str:
    heads = list(rows[0])
    lines = [heads, ["---"] * len(heads), *([row[head] for head in heads] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tables(text: str) -> Iterator[Rows]:
    """The Markdown tables of a text, each as rows by heading."""
    for block in re.findall(r"(?:^\|.*\n)+", text + "\n", re.MULTILINE):
        cells = [line.strip("| ").split(" | ") for line in block.splitlines()]
        yield [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def cut(found: Cut) -> Rows:
    text = (ROOT / "docs/results" / found.file).read_text().split(f"## {found.section}\n")[1].split("\n## ")[0]
    known = [(" | ".join(row.values()), row) for table in tables(text) for row in table]
    rows = []
    for start in found.rows:
        row = next(row for words, row in known if words.startswith(start))
        rows.append({head: row[name] for head, name in found.columns.items()})
    return rows


def demo_table() -> str:
    """README's numbers of the demo: how far each arm falls after its peak, mean over seeds."""
    summary = json.loads((ROOT / "docs/results/demo.json").read_text())
    rows = [
        {"arm": arm["label"]}
        | {
            words: f"{arm['weights'][kind]['deepest_fall']['mean']:.2f}"
            for kind, words in (("raw", "fall after the peak, raw weights"), ("ema", "averaged weights"))
        }
        for arm in summary["arms"]
    ]
    return markdown(rows)


ARMS = {
    "fewbayes, plain": "fewbayes, plain",
    "fewbayes, learned": "Bayesian, learned deviations",
    "fewbayes, fixed": "Bayesian, fixed deviations",
    "diffusers, plain": "diffusers' script, plain",
    "diffusers, authors": "Bayesian as the authors have it, in that script",
    "diffusers, textbook": "Bayesian as textbooks have it, in that script",
}


ELSEWHERE = {"tiny-flow, full": "tiny-flow_full", "SD 1.5, LoRA, 256 px": "sd15_lora"}


def result(name: str) -> dict:
    return json.loads((ROOT / "benchmarks/results" / f"{name}.json").read_text())


def cost_table(columns: dict[str, str]) -> str:
    """Time and peak memory of whole trainings, as multiples of our plain one. columns: results of peers.py."""

    def cell(arm: str, rows: dict[str, dict]) -> str:
        if arm not in rows:
            return ""
        row, plain = rows[arm], rows["fewbayes, plain"]
        if row is plain:
            time, memory = plain["cpu_ms"]["median"], plain["peak_bytes"] / 1e6
            told = (
                (f"{time:.0f} ms", f"{memory:.0f} MB")
                if time < 1e3
                else (f"{time / 1e3:.1f} s", f"{memory / 1e3:.1f} GB")
            )
            return ", ".join(told)
        return f"{row['ratio_to_fewbayes_plain']['median']:.2f}, {row['peak_bytes'] / plain['peak_bytes']:.2f}"

    found = {h: {row["arm"]: row for row in result(f"peers_{name}")["results"]} for h, name in columns.items()}
    return markdown(
        [{"time, memory": words} | {h: cell(arm, rows) for h, rows in found.items()} for arm, words in ARMS.items()]
    )


def start_table() -> str:
    """Processor time from the start of a LoRA's training to its first step, by the size of the model."""
    words = {"tiny": "tiny, 17 MB", "sd15": "SD 1.5 in float32, 4.3 GB"}
    found = {name: {row["arm"]: row for row in result(f"peers_{name}_lora")["results"]} for name in words}
    arms = {"fewbayes": "fewbayes, plain", "diffusers' script": "diffusers, plain"}
    return markdown(
        [
            {"model": said} | {h: f"{found[name][arm]['first_step_cpu_s']:.1f} s" for h, arm in arms.items()}
            for name, said in words.items()
        ]
    )


def versions_table() -> str:
    """A step of the embedded model in earlier versions of this package and now, by benchmarks/versions.py."""
    names = {"first": "the first version", "before": "before the work on speed", "now": "now"}

    def cell(found: dict, name: str) -> str:
        return f"{found[name]['cpu_ms']['median']:.0f} ms" if name in found else ""

    return markdown(
        [
            {"": arm}
            | {words: cell(found, name) for name, words in names.items()}
            | {"now, of the earliest": "{median:.2f} ({low:.2f} to {high:.2f})".format(**found["now"]["ratio"])}
            for arm, found in result("versions")["results"].items()
        ]
    )


def parts_table() -> str:
    """Where a step goes, in milliseconds of processor time, by benchmarks/step_parts.py."""
    found = json.loads((ROOT / "benchmarks/results/step_parts.json").read_text())
    columns = {
        f"{heading}{kind}": found[method][arm]
        for method, heading in (("full", ""), ("lora", "LoRA, "))
        for arm, kind in (("plain", "plain"), ("elementwise", "learned"), ("fixed", "fixed"))
    }
    names = dict.fromkeys(name for column in columns.values() for name in column if name != "all")
    rows = [{"ms": name} | {h: f"{c[name]:.1f}" if name in c else "" for h, c in columns.items()} for name in names]
    return markdown([*rows, {"ms": "all"} | {h: f"{c['all']:.1f}" for h, c in columns.items()}])


def growth_tables() -> tuple[str, str]:
    """How a Bayesian step's multiple and everything else grow, by benchmarks/growth.py."""
    found = json.loads((ROOT / "benchmarks/results/growth.json").read_text())["results"]
    steps = [
        {
            "random": f"{row['random'] / 1e6:.2f} million",
            "batch": str(row["at"].get("batch_size", 1)),
            "side": f"{row['at'].get('resolution', 64)} px",
            "plain": f"{row['plain_ms']['median']:.0f} ms",
            "learned": f"{row['ratio']['median']:.2f} x",
        }
        for row in sorted(found["step"], key=lambda row: [row["at"].get(n, 1) for n in ("resolution", "batch_size")])
    ]
    words = {
        "start": ("encoding images", "encode_s"),
        "page": ("the page of a run, by its steps", "cpu_s"),
        "report": ("the page of an experiment, by its runs", "cpu_s"),
        "evaluate": ("an evaluation, by its pictures", "cpu_s"),
    }
    rest = [
        {"": said, "number": f"{row['at']:,}", "CPU s": f"{row[key]:.2g}", "memory, MB": f"{row['bytes'] / 1e6:.0f}"}
        for part, (said, key) in words.items()
        for row in found.get(part, [])
    ]
    return markdown(steps), markdown(rest)


def deviations_table() -> str:
    """What a million random weights cost by the kind of their deviations, by benchmarks/step_parts.py."""
    kinds = {"learned": 16, "learned in bfloat16": 8, "learned by rows": 0, "fixed": 0}
    found = result("step_parts")["deviations"]
    return markdown(
        [
            {"deviations": kind, "bytes of state a weight": f"{size}"}
            | {part: f"{found[kind][part]:.2f} ms" if part in found[kind] else "" for part in found["learned"]}
            for kind, size in kinds.items()
        ]
    )


MADE = {
    "deviations": deviations_table,
    "versions": versions_table,
    "costs elsewhere": lambda: cost_table(ELSEWHERE),
    "start": start_table,
    "demo": demo_table,
    "costs": lambda: cost_table({"full": "tiny_full", "LoRA, rank 4": "tiny_lora", "OFT, 4 blocks": "tiny_oft"}),
    "step parts": parts_table,
    "growth of a step": lambda: growth_tables()[0],
    "growth": lambda: growth_tables()[1],
}


def written(name: str) -> str:
    return MADE[name]() if name in MADE else markdown([row for part in CUTS[name] for row in cut(part)])


MARKED = re.compile(r"(<!-- table: (.+?) -->\n)(.*?)\n?<!-- end -->", re.DOTALL)


def test_every_table_of_a_page_is_cut_from_the_kept_result():
    seen = set()
    for page in PAGES:
        for _, name, table in MARKED.findall(page.read_text()):
            seen.add(name)
            assert table == written(name), f"{page.name}: run python tests/test_docs.py"
    assert seen == {*CUTS, *MADE}


@pytest.mark.parametrize("name", ["remedies_noise", "remedies_rate"])
def test_kept_tables_are_what_the_kept_numbers_give(name):
    kept = ROOT / "docs/results" / name
    assert kept.with_suffix(".md").read_text() == remedies_tables(json.loads(kept.with_suffix(".json").read_text()))


def test_readme_says_how_long_the_demo_takes():
    seconds = json.loads((ROOT / "docs/results/demo_one_seed.json").read_text())["seconds"]
    assert f"{seconds // 60:.0f} min {seconds % 60:.0f} s" in (ROOT / "README.md").read_text()


def test_a_number_that_differs_would_be_seen():
    text = (ROOT / "docs/corruption.md").read_text()
    (_, name, table), *_ = MARKED.findall(text)
    assert table.replace("79", "78", 1) != written(name)


@pytest.mark.parametrize("page", [*PAGES, *(ROOT / "docs/results").glob("*.md")], ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not target.startswith(("http", "mailto")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def _places(path: str) -> list[Path]:
    return [ROOT / path, ROOT / "src/fewbayes" / path, ROOT / "docs" / path, ROOT / "src" / path]


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != LOG], ids=lambda p: p.name)
def test_files_and_modules_that_a_page_names_exist(page):
    text = page.read_text()
    for path in re.findall(r"`((?:[a-z_0-9]+/)+[a-z_0-9]+\.py)`", text):
        assert any(place.exists() for place in _places(path)), f"{page.name}: {path}"
    for module in re.findall(r"`(fewbayes(?:\.[a-z_]+)+)", text):
        parts = module.split(".")
        assert any(  # a module, or a name in one
            any(place.with_suffix(".py").exists() or place.is_dir() for place in _places("/".join(parts[:n])))
            for n in range(len(parts), len(parts) - 2, -1)
        ), f"{page.name}: {module}"


if __name__ == "__main__":
    for page in PAGES:
        text = page.read_text()
        new = MARKED.sub(lambda found: f"{found[1]}{written(found[2])}\n<!-- end -->", text)
        if new != text:
            page.write_text(new)
