"""The user study end to end in a real headless Chromium: two widths, keyboard and touch, reload, zoom, the end.

    python benchmarks/survey_browser.py PLAIN BAYES --output benchmarks/results/survey_browser.json --shots SHOTS

PLAIN and BAYES are folders of runs that share photographs, prompts and seeds. A study is made of them and served; one
participant at 1280 pixels answers by keys, one at 390 pixels by touch, and `read` reads both. Checked: every answer is
kept as the side that stood where it was chosen; a reload goes on; no request leaves the server; nothing is written to
the console; nothing is wider than the screen; targets of touch have 44 pixels. Needs chromium and chromedriver.
"""

import argparse
import base64
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from survey_toy import Server, free_port

from fewbayes.survey import run_study
from fewbayes.survey.answers import Answer, from_database
from fewbayes.survey.plan import read_study
from fewbayes.survey.schedule import trials

KEYS = {"left": "\ue012", "right": "\ue014", "escape": "\ue00c", "enter": "\ue007"}
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


class Browser:
    """A headless Chromium through chromedriver's own protocol (WebDriver, W3C)."""

    def __init__(self, width: int, height: int, touch: bool, dark: bool = False) -> None:
        self.port = free_port()
        driver = shutil.which("chromedriver") or "/usr/bin/chromedriver"
        self.process = subprocess.Popen(
            [driver, f"--port={self.port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        options: dict[str, Any] = {
            "args": [
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                f"--window-size={width},{height}",
                "--hide-scrollbars",
            ],
        }
        if touch:
            metrics = {"width": width, "height": height, "pixelRatio": 2.0, "touch": True}
            options["mobileEmulation"] = {"deviceMetrics": metrics}
        logs = {"browser": "ALL", "performance": "ALL"}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": logs}
        for _ in range(100):
            try:
                answer = self._send("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
                break
            except OSError:
                time.sleep(0.1)
        self.session = f"/session/{answer['sessionId']}"
        if not touch:
            self.cdp(
                "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
            )
        if dark:
            scheme = [{"name": "prefers-color-scheme", "value": "dark"}]
            self.cdp("Emulation.setEmulatedMedia", features=scheme)

    def _send(self, method: str, path: str, body: dict | None = None) -> Any:
        data = json.dumps(body or {}).encode() if method == "POST" else None
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, method=method)
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.loads(response.read())["value"]

    def send(self, method: str, path: str, body: dict | None = None) -> Any:
        return self._send(method, self.session + path, body)

    def cdp(self, command: str, **params: Any) -> Any:
        return self.send("POST", "/goog/cdp/execute", {"cmd": command, "params": params})

    def go(self, address: str) -> None:
        self.send("POST", "/url", {"url": address})

    def run(self, script: str, *given: Any) -> Any:
        return self.send("POST", "/execute/sync", {"script": script, "args": list(given)})

    def wait(self, script: str, what: str) -> Any:
        for _ in range(400):
            if found := self.run(f"return {script}"):
                return found
            time.sleep(0.05)
        raise SystemExit(f"{what} did not come")

    def press(self, key: str) -> None:
        actions = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
        self.send("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def tap(self, selector: str) -> None:
        """A finger on the middle of an element."""
        self.run("document.querySelector(arguments[0]).scrollIntoView({block: 'nearest'})", selector)
        x, y = self.run(
            "const b = document.querySelector(arguments[0]).getBoundingClientRect();"
            "return [Math.round(b.x + b.width / 2), Math.round(b.y + b.height / 2)]",
            selector,
        )
        moves = [{"type": "pointerMove", "x": x, "y": y, "duration": 0}, {"type": "pointerDown"}, {"type": "pointerUp"}]
        pointer = {"type": "pointer", "id": "finger", "parameters": {"pointerType": "touch"}, "actions": moves}
        self.send("POST", "/actions", {"actions": [pointer]})

    def shot(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(base64.b64decode(self.send("GET", "/screenshot")))

    def log(self, kind: str) -> list[dict]:
        return self.send("POST", "/se/log", {"type": kind})

    def close(self) -> None:
        self.send("DELETE", "")
        self.process.terminate()
        self.process.wait()


def take_part(address: str, name: str, touch: bool, shots: Path) -> dict:
    """One participant from the first page to the last, who takes the left side, and every third time the right."""
    browser = Browser(*SIZES[name], touch)
    found: dict[str, Any] = {"width": SIZES[name][0], "by": "touch" if touch else "keys", "choices": []}
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    browser.go(address)
    browser.wait("!document.getElementById('consent').hidden", "the consent")
    browser.shot(shots / f"survey-{name}-consent.png")
    wide = browser.run(f"return {overflow}")
    if touch:
        browser.tap("#begin")
    else:
        browser.run("document.getElementById('begin').focus()")
        browser.press(KEYS["enter"])
    browser.wait("!document.getElementById('trial').hidden", "the first pair")
    total, place, seen = browser.run("return state.total"), 0, set()
    while place < total:
        browser.wait(f"state.total - state.todo.length === {place} && !state.busy", f"question {place}")
        wide = max(wide, browser.run(f"return {overflow}"))
        shows = browser.run("return state.at.question.name")
        if shows not in seen:
            browser.shot(shots / f"survey-{name}-{shows}.png")
            seen.add(shows)
        if place == 1:
            browser.tap(".shot") if touch else browser.press("z")
            browser.wait("document.getElementById('zoom').open", "the zoom")
            time.sleep(0.3)
            browser.shot(shots / f"survey-{name}-zoom.png")
            tops = "[...document.querySelectorAll('.pane')].map((pane) => pane.getBoundingClientRect().top)"
            found["panes side by side"] = len(set(browser.run(f"return {tops}"))) == 1
            browser.tap("#zoom form > button") if touch else browser.press(KEYS["escape"])
            browser.wait("!document.getElementById('zoom').open", "the end of the zoom")
        if place == total // 2:
            browser.go(address)
            browser.wait("!document.getElementById('trial').hidden", "the pair after a reload")
            found["resumed at"] = browser.run("return state.total - state.todo.length")
        side = int(place % 3 == 2)
        time.sleep(0.2)  # nobody answers faster, and the page takes nothing that comes faster
        trial = browser.run("return state.at.trial")
        shown = browser.run("return [...document.querySelectorAll('.side img')].map((i) => i.src.split('/').pop())")
        found["choices"].append([trial, browser.run("return state.at.question.name"), side, shown])
        if touch:
            browser.tap(f"#choices button:nth-child({side + 1})")
        else:
            browser.press(KEYS["right" if side else "left"])
        place += 1
    browser.wait("!document.getElementById('done').hidden", "the end")
    browser.shot(shots / f"survey-{name}-done.png")
    found["participant"] = browser.run("return document.getElementById('code').textContent")
    found["wider than the screen, pixels"] = wide
    heights = browser.run(
        "return [...document.querySelectorAll('button')].map((b) => b.getBoundingClientRect().height)"
    )
    found["targets under 44 pixels"] = sum(0 < height < 44 for height in heights)
    found["console"] = [row["message"] for row in browser.log("browser")]
    requests = [json.loads(row["message"])["message"] for row in browser.log("performance")]
    asked = [m["params"]["request"]["url"] for m in requests if m["method"] == "Network.requestWillBeSent"]
    found["requests"] = len(asked)
    found["requests elsewhere"] = [url for url in asked if not url.startswith((address, "data:"))]
    browser.close()
    return found


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
        people = [take_part(address, name, name == "phone", asked.shots) for name in SIZES]
        dark = Browser(*SIZES["desktop"], touch=False, dark=True)
        dark.go(address)
        dark.wait("!document.getElementById('consent').hidden", "the consent")
        dark.run("document.getElementById('begin').click()")
        dark.wait("!document.getElementById('trial').hidden", "the first pair")
        dark.shot(asked.shots / "survey-dark.png")
        dark.close()
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


def _kept_as_chosen(chosen: list, kept: dict[tuple[int, str], Answer], shown: list) -> bool:
    """Whether the picture that stood on the chosen side, as the browser had it, is the one that was kept."""
    trial, question, side, pictures = chosen
    answer = kept.get((trial, question))
    return answer is not None and f"{shown[trial].item.sides[answer.choice][0]}.png" == pictures[side]


if __name__ == "__main__":
    main()
