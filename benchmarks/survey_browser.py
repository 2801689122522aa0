"""The user study end to end in a real headless Chromium: two widths, keyboard and touch, reload, zoom, the end.

    python benchmarks/survey_browser.py PLAIN BAYES --output benchmarks/results/survey_browser.json --shots SHOTS

PLAIN and BAYES are folders of runs that share photographs, prompts and seeds. A study is made of them and served; one
participant at 1280 pixels answers by keys, one at 390 pixels by touch, and `read` reads both. Checked: every answer is
kept as the side that stood where it was chosen; a reload goes on; no request leaves the server; nothing is written to
the console; nothing is wider than the screen; targets of touch have 44 pixels. Needs `pip install .[browser]`
and a chromium.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright
from survey_toy import Server

from fewbayes.survey import run_study
from fewbayes.survey.answers import Answer, from_database
from fewbayes.survey.plan import read_study
from fewbayes.survey.schedule import Trial, trials

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
FASTEST = 200
"""Milliseconds before an answer: the page takes nothing that comes faster, as a second press of a key does."""
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
DONE = "state.total - state.todo.length"


def opened(chromium: Browser, name: str, address: str, **more: Any) -> Page:
    """The first page of the study, on a desk or on a phone."""
    width, height = SIZES[name]
    touch = {"has_touch": True, "is_mobile": True, "device_scale_factor": 2} if name == "phone" else {}
    page = chromium.new_context(viewport={"width": width, "height": height}, **touch, **more).new_page()
    page.goto(address)
    page.wait_for_selector("#consent", state="visible")
    return page


def until(page: Page, words: str) -> None:
    """Asked again and again: the page's policy lets no one wait inside of it by a script made of text."""
    for _ in range(1000):
        if page.evaluate(words):
            return
        page.wait_for_timeout(20)
    raise SystemExit(f"{words} did not come")


def take_part(chromium: Browser, address: str, name: str, shots: Path) -> dict[str, Any]:
    """One participant from the first page to the last, who takes the left side, and every third time the right."""
    touch, choices, console, asked, wide = name == "phone", [], [], [], 0
    page = opened(chromium, name, address)
    page.on("console", lambda message: console.append(message.text))
    page.on("request", lambda request: asked.append(request.url))
    page.screenshot(path=shots / f"survey-{name}-consent.png")
    page.tap("#begin") if touch else page.press("#begin", "Enter")
    page.wait_for_selector("#trial", state="visible")
    total, seen, found = (
        page.evaluate("state.total"),
        set(),
        {"width": SIZES[name][0], "by": "touch" if touch else "keys"},
    )
    for place in range(total):
        if place == total // 2:
            page.reload()
        until(page, f"{DONE} === {place} && !state.busy && state.at !== null")
        if place == total // 2:
            found["resumed at"] = page.evaluate(DONE)
        wide = max(wide, page.evaluate(OVERFLOW))
        question = page.evaluate("state.at.question.name")
        if question not in seen:
            page.screenshot(path=shots / f"survey-{name}-{question}.png")
            seen.add(question)
        if place == 1:
            page.tap(".shot >> nth=0") if touch else page.keyboard.press("z")
            page.wait_for_selector("#zoom[open]")
            tops = page.eval_on_selector_all(".pane", "panes => panes.map((pane) => pane.getBoundingClientRect().top)")
            found["panes side by side"] = len(set(tops)) == 1
            page.screenshot(path=shots / f"survey-{name}-zoom.png")
            page.tap("#zoom form > button") if touch else page.keyboard.press("Escape")
            page.wait_for_selector("#zoom", state="hidden")
        side = int(place % 3 == 2)
        shown = page.eval_on_selector_all(".side img", "images => images.map((image) => image.src.split('/').pop())")
        choices.append([page.evaluate("state.at.trial"), question, side, shown])
        page.wait_for_timeout(FASTEST)
        key = "ArrowRight" if side else "ArrowLeft"
        page.tap(f"#choices button >> nth={side}") if touch else page.keyboard.press(key)
    page.wait_for_selector("#done", state="visible")
    page.screenshot(path=shots / f"survey-{name}-done.png")
    heights = page.eval_on_selector_all("button", "all => all.map((each) => each.getBoundingClientRect().height)")
    return found | {
        "participant": page.text_content("#code"),
        "choices": choices,
        "wider than the screen, pixels": wide,
        "targets under 44 pixels": sum(0 < height < 44 for height in heights),
        "console": console,
        "requests": len(asked),
        "requests elsewhere": [url for url in asked if not url.startswith(address)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs=2)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--shots", type=Path, required=True)
    parser.add_argument("--reference_dir")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder) / "study"
        more = ["--reference_dir", asked.reference_dir] if asked.reference_dir else []
        run_study(
            ["make", *asked.runs, *more, "--output_dir", str(study), "--per_participant", "6", "--participants", "20"]
        )
        server = Server(study)
        server.start()
        address = f"http://127.0.0.1:{server.port}/"
        asked.shots.mkdir(parents=True, exist_ok=True)
        with sync_playwright() as start:
            chromium = start.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
            people = [take_part(chromium, address, name, asked.shots) for name in SIZES]
            dark = opened(chromium, "desktop", address, color_scheme="dark")
            dark.click("#begin")
            dark.wait_for_selector("#trial", state="visible")
            dark.screenshot(path=asked.shots / "survey-dark.png")
            chromium.close()
        found, plan = read_study(study)
        kept = from_database(study, plan, None)
        server.kill()
        for number, person in enumerate(people):
            mine = {(a.trial, a.question): a for a in kept if a.participant == person["participant"]}
            shown = trials(found, number)
            wrong = [c for c in person.pop("choices") if not _kept_as_chosen(c, mine, shown)]
            person |= {"answers kept": len(mine), "answers kept wrongly": len(wrong)}
        result = Path(folder) / "result"
        run_study(["read", str(study), "--output_dir", str(result)])
        told = {"people": people, "read": sorted(path.name for path in result.iterdir())}
        asked.output.write_text(json.dumps(told, indent=1) + "\n")


def _kept_as_chosen(chosen: list, kept: dict[tuple[int, str], Answer], shown: list[Trial]) -> bool:
    """Whether the picture that stood on the chosen side, as the browser had it, is the one that was kept."""
    trial, question, side, pictures = chosen
    answer = kept.get((trial, question))
    return answer is not None and f"{shown[trial].item.sides[answer.choice][0]}.png" == pictures[side]


if __name__ == "__main__":
    main()
