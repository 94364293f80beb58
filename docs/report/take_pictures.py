"""Take the pictures of this folder from a report: ``take_pictures.py output/demo/index.html``.

They show the top of the page in a window of a desktop and of a phone, light and dark. It needs
Chromium and the dev extra.
"""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

WINDOWS = {"desktop": (1280, 1100), "phone": (390, 844)}
FOLDER = Path(__file__).parent
_COLORS = 64  # of a picture; a page has few, and fewer make a smaller file


def main() -> None:
    parser = argparse.ArgumentParser(description="Take the pictures of docs/report from a report.")
    parser.add_argument("page", type=Path, help="report: index.html of a demo or of a benchmark")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder (default: docs/report)")
    args = parser.parse_args()
    page_file = args.page.resolve(strict=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for window, (width, height) in WINDOWS.items():
            for scheme in ("light", "dark"):
                size = {"width": width, "height": height}
                page = browser.new_page(viewport=size, color_scheme=scheme)
                page.goto(page_file.as_uri())
                picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
                picture = picture.quantize(_COLORS, dither=Image.Dither.NONE)
                picture.save(args.out / f"{window}_{scheme}.png", optimize=True)
        browser.close()


if __name__ == "__main__":
    main()
