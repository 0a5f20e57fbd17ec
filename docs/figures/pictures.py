"""Still pictures of the interactive figures, for README and docs: docs/images/figures_NAME.png.

pip install playwright && apt-get install chromium      # no browser is downloaded
python docs/figures/pictures.py
"""

import io
import shutil
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE / "index.html"
IMAGES = HERE.parent / "images"

# name: (what is photographed, {input: value})
PICTURES: dict[str, tuple[str, dict[str, str]]] = {
    "forward": ("#forward-canvas", {"forward-t": "30"}),
    "reverse": ("#reverse-canvas", {}),
    "compass": ("#compass-canvas", {}),
    "score": ("#score-canvas", {"score-t": "15"}),
    "ode": ("#paths-canvas", {"paths-eta": "0"}),
    "sde": ("#paths-canvas", {"paths-eta": "4"}),
    "schedules": ("#schedules-canvas", {}),
    "langevin": ("#langevin .panels", {}),
    "digits": ("#digits-canvas", {"digits-t": "7"}),
    "network": ("#network .panels", {"network-t": "15"}),
}


def chromium() -> str | None:
    """The path of the system's Chromium, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def launch(playwright: Any) -> Any:
    """The system's Chromium without a window.

    Raises:
      RuntimeError: if there is none.
    """
    if (path := chromium()) is None:
        raise RuntimeError("chromium must be on the PATH, got none: install the package chromium")
    return playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])


def opened(browser: Any, page_file: Path = PAGE, **options: Any) -> Any:
    """The page, with all figures drawn. options: of Playwright's `new_page`, such as viewport and color_scheme."""
    page = browser.new_page(**options)
    page.goto(page_file.resolve().as_uri())
    page.wait_for_function("Object.keys(window.figures?.byName ?? {}).length === 9")
    settle(page)
    return page


def settle(page: Any) -> None:
    """Wait until the figures that were asked to draw have drawn."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def set_input(page: Any, name: str, value: str) -> None:
    """Set a slider or a list, as a person would."""
    page.evaluate("([name, value]) => move(document.getElementById(name), value)", [name, value])
    settle(page)


def main() -> None:
    """Write the pictures."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        page = opened(launch(playwright), viewport={"width": 900, "height": 1000}, device_scale_factor=1.1)
        for name, (selector, inputs) in PICTURES.items():
            for key, value in inputs.items():
                set_input(page, key, value)
            picture = Image.open(io.BytesIO(page.locator(selector).screenshot())).convert("RGB")
            path = IMAGES / f"figures_{name}.png"
            # 52 values a channel, which the eye cannot tell from 256, halve the file.
            picture.point(lambda value: 5 * round(value / 5)).save(path, optimize=True)
            print(f"wrote {path}, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
