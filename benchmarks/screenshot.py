"""A page from its top to the end of its pictures, as README shows it: `python benchmarks/screenshot.py PAGE OUT`.

docs/images/demo.png is of `runs/demo/report.html`, which `make demo` writes. Needs `pip install .[browser]`.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--until", default="#pictures", help="the last part that is shown, in the words of CSS")
    parser.add_argument("--width", type=int, default=1000)
    parser.add_argument("--dark", action="store_true")
    given = parser.parse_args()
    with sync_playwright() as start:
        chromium = start.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = chromium.new_page(
            viewport={"width": given.width, "height": 900}, color_scheme="dark" if given.dark else "light"
        )
        page.goto(given.page.resolve().as_uri())
        end = page.locator(given.until).evaluate("each => each.getBoundingClientRect().bottom + 6")
        clip = {"x": 0, "y": 0, "width": given.width, "height": end}
        page.screenshot(path=given.output, full_page=True, clip=clip)
        chromium.close()


if __name__ == "__main__":
    main()
