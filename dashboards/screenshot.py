"""Takes a screenshot of a view: ``python dashboards/screenshot.py GALLERY VIEW PNG``, VIEW such as feature=12.

Needs Playwright and a Chromium: on the PATH, or named in SAE_LENS_MAIRA_CHROMIUM.
"""

import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright


def main(gallery: str, view: str, path: str) -> None:
    """Write the first screen of a view, 1280 by 1320 pixels."""
    browser_path = os.environ.get("SAE_LENS_MAIRA_CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1320})
        page.goto(f"{(Path(gallery) / 'index.html').resolve().as_uri()}#{view}")
        page.wait_for_selector("main > *")
        page.wait_for_timeout(1000)
        page.screenshot(path=path)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
