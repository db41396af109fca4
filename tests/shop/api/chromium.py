"""A real browser for the tests of pages: Debian's Chromium without a window, on an empty profile."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.expected_conditions import staleness_of
from selenium.webdriver.support.wait import WebDriverWait

SCREENSHOTS = Path(__file__).parents[3] / "runs" / "screenshots"
"""Test output, kept to be looked at."""

WIDTHS = {"desktop": 1280, "phone": 390}
_FLAGS = (
    *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"),
    *("disable-component-update", "disable-sync", "hide-scrollbars", "disable-dev-shm-usage"),
)


class Browser:
    """Chromium, with what tests ask of it."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def find(self, css: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def texts(self, css: str) -> list[str]:
        return [one.text for one in self.driver.find_elements(By.CSS_SELECTOR, css)]

    def count(self, css: str) -> int:
        """How many there are now; does not wait for them."""
        return int(self.driver.execute_script("return document.querySelectorAll(arguments[0]).length", css))

    def click(self, css: str) -> None:
        self.find(css).click()

    def follow(self, css: str) -> None:
        """Click what leads to another page, and wait for that."""
        page = self.find("html")
        self.click(css)
        WebDriverWait(self.driver, 20).until(staleness_of(page))

    def write(self, css: str, text: str) -> None:
        self.find(css).send_keys(text)

    def errors(self) -> list[str]:
        """What the console complains about since it was asked last; a refused script or request is among it."""
        found = self.driver.get_log("browser")
        return [str(entry["message"]) for entry in found if entry["level"] in ("WARNING", "SEVERE")]

    def keep(self, name: str) -> list[Path]:
        """Screenshots of the whole page on a desktop and a phone, light and dark; the page must fit in its width."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        paths = []
        for device, width in WIDTHS.items():
            self.resize(width)
            for scheme in ("light", "dark"):
                self._do("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
                size = "return [document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
                found, height = self.driver.execute_script(size)
                assert found <= width, f"{name}: {found} pixels wide on a {device}"
                clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
                taken = self._do("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
                path = SCREENSHOTS / f"{name}-{device}-{scheme}.png"
                path.write_bytes(base64.b64decode(taken["data"]))
                paths.append(path)
        self.resize(WIDTHS["desktop"])
        return paths

    def resize(self, width: int) -> None:
        self._do("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500)

    def _do(self, command: str, **arguments: object) -> dict[str, str]:
        return dict(self.driver.execute_cdp_cmd(command, arguments))


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """Start it; skips where it is not installed.

    Args:
        profile: an empty folder.
    """
    binary, server = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or server is None:
        pytest.skip("no chromium with chromedriver here: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = binary
    for flag in (*_FLAGS, f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=Service(server))
    try:
        driver.implicitly_wait(10)
        yield Browser(driver)
    finally:
        driver.quit()
