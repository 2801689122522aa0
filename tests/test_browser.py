"""Every kind of page as a reader meets it, in headless Chromium; needs `pip install .[browser]` and a chromium."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from fewbayes.page import write_report
from fewbayes.page.live import server
from test_evaluation_page import write_study
from test_report import LOOKS, draw, watch, write_experiment, write_run

CHROMIUM = next((path for name in ("chromium", "google-chrome") if (path := shutil.which(name))), None)
if CHROMIUM is None:
    pytest.skip("no Chromium here", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="no playwright here")

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
HOSTILE = "</script><script>document.title='taken'</script>\"><img src=https://evil.example onerror=alert(1)>{{7*7}}"


@pytest.fixture(scope="session")
def browser():
    with playwright.sync_playwright() as start:
        chromium = start.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


def write_diagnosis(folder: Path) -> Path:
    """A diagnosis as `fewbayes diagnose` leaves it, its words hostile."""
    groups = []
    for name in ("training", "base", "source"):
        (folder / "pictures" / name).mkdir(parents=True)
        for i in range(4):
            draw(64, 0.8, 4, i).save(folder / "pictures" / name / f"{i:02d}.png")
        groups.append({"name": name, "title": HOSTILE, "files": [f"{i:02d}.png" for i in range(4)]})
    told: dict[str, Any] = {"stage": "unclear", "cause": None, "verdict": [HOSTILE], "evidence": [HOSTILE]}
    told |= {"options": [HOSTILE], "notes": [HOSTILE], "scores": {}, "timeline": [], "pictures": groups}
    told |= {"numbers": {}, "readings": {}, "samples": {}, "seconds": 1.0, "environment": {HOSTILE: HOSTILE}}
    told["settings"] = {"source": HOSTILE, "base": HOSTILE, "prompt": HOSTILE, "images": ["a"], "weights": None}
    told["settings"]["seeds"] = [0, 1, 2, 3]
    (folder / "diagnosis.json").write_text(json.dumps(told))
    return folder


def write_grid(folder: Path) -> Path:
    """Samples of two models at two strengths, of hostile prompts."""
    folder.mkdir()
    rows = []
    for source in ("run/checkpoint-100", "run/checkpoint-200", HOSTILE):
        for strength in (0.5, 1.0):
            for prompt in (HOSTILE, "a photo of a <v> mug"):
                file = f"{len(rows):02d}.png"
                draw(64, strength, 4, len(rows)).save(folder / file)
                rows.append({"file": file, "source": source, "strength": strength, "prompt": prompt, "seed": 0})
    (folder / "samples.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture(scope="session")
def pages(tmp_path_factory) -> dict[str, Path]:
    """One page of each kind, with hostile names and prompts wherever the format has some."""
    root = tmp_path_factory.mktemp("pages")
    steps = tuple(range(0, 1100, 100))
    run = write_run(
        root / HOSTILE.replace("/", "_"), steps=steps, raw=(0.5,) * 11, raw_noise=(3.0,) * 11, ema=(0.5,) * 11,
        size=64, pictures=4, prompt=HOSTILE, note=HOSTILE, losses=20,
    )  # fmt: skip
    run = watch(run, [*LOOKS, *((step, "corrupted") for step in range(600, 1100, 100))], best=200)
    study = write_study(root / "study", seeds=(0,), per_run=5, subjects=("swirl_fish",))
    told = json.loads((study / "study.json").read_text())
    (study / "study.json").write_text(json.dumps({**told, "title": HOSTILE, "notes": [HOSTILE]}))
    experiment = write_experiment(root / "experiment", seeds=(0, 1), title=HOSTILE, summary=[HOSTILE])
    found = {"run": run, "experiment": experiment, "evaluation": study}
    found |= {"diagnosis": write_diagnosis(root / "diagnosis"), "samples": write_grid(root / "samples")}
    return {kind: write_report(folder, root / f"{kind}.html") for kind, folder in found.items()}


KINDS = ("run", "experiment", "evaluation", "diagnosis", "samples")


@pytest.fixture
def opened(browser, pages):
    """Opens a page; whatever it asks of anybody, and whatever goes wrong in it, fails the test."""
    contexts = []

    def to(kind: str, width: int = 1280, **options):
        context = browser.new_context(viewport={"width": width, "height": 844}, **options)
        contexts.append((context, asked := []))
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: asked.append(str(error)))
        page.on("console", lambda said: asked.append(said.text))
        page.on("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
        page.goto(pages[kind].as_uri())
        asked.remove(pages[kind].as_uri())
        return page

    yield to
    for context, asked in contexts:
        context.close()
        assert not [each for each in asked if not each.startswith("data:image/")]


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_stays_within_its_window_and_every_column_of_pictures_too(opened, kind):
    page = opened(kind)
    page.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        script = "all => all.map((each) => each.getBoundingClientRect()).map((box) => [box.left, box.right, box.width])"
        boxes = [box for box in page.locator(".sheet .shot").evaluate_all(script) if box[2]]
        assert boxes
        assert all(left >= 0 and right <= width and wide >= 24 for left, right, wide in boxes)


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_words_are_shown_as_words(opened, kind):
    page = opened(kind)
    assert page.title() != "taken"
    assert page.locator("script").count() == 1
    assert page.locator("img[onerror]").count() == 0
    if kind != "evaluation":
        assert "<img src=https:" in page.locator("body").inner_text().replace("_", "/")


@pytest.mark.parametrize("kind", KINDS)
def test_the_keyboard_reaches_the_viewer_and_arrows_move_in_it(opened, kind):
    page = opened(kind)
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('.sheet .shot')"):
            break
    assert page.evaluate("document.activeElement.matches('.sheet .shot')")
    page.keyboard.press("Enter")
    assert page.evaluate("document.getElementById('viewer').open")
    first, size = page.inner_text("#viewer-label"), page.viewport_size
    assert page.locator("#viewer").bounding_box() == {"x": 0, "y": 0, **size}
    page.keyboard.press("ArrowDown")
    second = page.inner_text("#viewer-label")
    page.keyboard.press("ArrowUp")
    assert page.inner_text("#viewer-label") == first != second
    page.keyboard.press("4")
    image = page.locator("#viewer figure img").first
    assert image.evaluate("each => each.width / each.naturalWidth") == 4
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.matches('.sheet .shot')")


def test_each_picture_stands_beside_its_nearest_training_image(opened):
    page = opened("run", 390)
    page.locator(".sheet:visible .shot").nth(5).click()
    assert page.locator("#viewer figure").count() == 2
    assert "nearest training image, likeness" in page.locator("#viewer figure").nth(1).inner_text()
    label = page.inner_text("#viewer-label")
    page.mouse.move(300, 400)
    page.mouse.down()
    page.mouse.move(120, 400)
    page.mouse.up()
    assert page.inner_text("#viewer-label") != label  # a swipe


def test_the_column_to_use_is_the_one_that_best_holds(opened):
    page = opened("run")
    assert page.locator("h2", has_text="Use step 200").is_visible()
    heads = page.locator(".sheet:visible .head.chosen")
    assert heads.all_inner_texts() == ["200\ngood\nuse this"]
    chosen = page.locator(".sheet:visible .chosen .shot")
    assert {each.get_attribute("data-column") for each in chosen.all()} == {"2"}
    assert page.locator("#step-name").inner_text() == "200 good"


def test_steps_play_and_two_of_them_are_compared(opened):
    page = opened("run")
    page.locator("#step").fill("4")
    assert page.locator("#player figure").count() == 4
    assert page.locator("#step-name").inner_text() == "400 corrupted"
    page.click("#compare")
    assert page.locator("#player .two img").count() == 8
    page.select_option("#other", label="200 good")
    page.locator("#player input").fill("10")
    assert page.locator("#player").evaluate("each => each.style.getPropertyValue('--cut')") == "10%"
    page.click("#play")
    assert page.locator("#step-name").inner_text() == "500 corrupted"


def test_labels_stay_in_sight(opened):
    page = opened("run")
    for width, height, label in ((390, 844, ".name"), (1280, 300, ".head")):
        page.set_viewport_size({"width": width, "height": height})
        page.locator(".sheet:visible .shot").last.scroll_into_view_if_needed()
        assert page.locator(f".sheet:visible {label}").first.bounding_box()["y"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_words_can_be_told_from_the_page_in_light_and_in_dark(opened, kind):
    """WCAG's contrast of at least 4.5 for every text that is shown."""
    script = """() => {
      const channel = (c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
      const light = (rgb) => 0.2126 * channel(rgb[0]) + 0.7152 * channel(rgb[1]) + 0.0722 * channel(rgb[2]);
      const parse = (text) => text.match(/[\\d.]+/g).map(Number);
      const ground = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
        if (c.length < 4 || c[3] > 0) return c; } };
      const bad = [];
      for (const e of document.querySelectorAll("main *:not(svg *, .swatch, option)")) {
        const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
        if (!own || !e.getClientRects().length) continue;
        const [a, b] = [light(parse(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 4.5) bad.push(`${e.className}: ${e.textContent.trim().slice(0, 40)}`);
      }
      return bad;
    }"""
    page = opened(kind)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate(script) == []


def test_all_is_there_without_a_script(opened):
    page = opened("run", java_script_enabled=False)
    assert page.locator(".sheet:visible .shot").count() == 44
    assert not page.locator("#play").is_visible()
    page.locator("fieldset label", has_text="averaged weights").click()
    assert page.locator(".panel:visible").count() == 1
    assert "averaged weights" in page.locator(".sheet:visible img").first.get_attribute("alt")


def test_a_live_page_shows_what_is_new_and_leaves_folds_as_they_are(browser, tmp_path):
    run = watch(write_run(tmp_path / "run", steps=(0, 100), raw=(0.5,) * 2), [(0, "underfit"), (100, "good")])
    with server(run) as here:
        thread = Thread(target=here.serve_forever)
        thread.start()
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{here.server_address[1]}/")
        page.locator("summary", has_text="Curves").click()
        with (run / "stages.jsonl").open("a") as rows:
            rows.write("\n" + json.dumps({"step": 200, "stage": "corrupted"}) + "\n")
        page.locator("h2", has_text="Corrupted from step 200 on").wait_for(timeout=20_000)
        assert page.locator("#fold-Curves").get_attribute("open") is not None
        page.locator(".sheet:visible .shot").first.click()  # all works on as before
        assert page.locator("#viewer").is_visible()
        page.close()
        here.shutdown()
        thread.join()
