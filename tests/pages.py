"""A page as a browser takes it: its parts, its text, and what it looks like."""

import html.parser
import shutil
import subprocess
from pathlib import Path

import numpy as np

CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
NASTY = '<script>alert(1)</script> & "x" $y'


class Page(html.parser.HTMLParser):
    """What a browser would take of a page: its tags, what they point to, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def opened(page: Path, folder: Path) -> tuple[str, np.ndarray]:
    """In a browser without a window: the document once its scripts ran, and a picture, red green blue from 0 to 1."""
    from matplotlib.image import imread

    assert CHROMIUM is not None
    profile, picture = folder / "profile", folder / "page.png"
    size = "--window-size=1100,2600"
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        size,
        f"--user-data-dir={profile}",
    ]
    shown = subprocess.run(
        [*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120
    )
    subprocess.run(
        [*command, f"--screenshot={picture}", page.as_uri()], capture_output=True, timeout=120, check=True
    )
    return shown.stdout, imread(picture)[..., :3]
