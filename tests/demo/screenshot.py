"""The picture of the page in README.md: a real service, a real browser, one example classified.

python -m tests.demo.screenshot      # writes docker/page.png; needs Debian's chromium
"""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

from tests import live

PICTURE = live.ROOT / "docker" / "page.png"
BUNDLE = live.ROOT / "models" / "cifar10-lt" / "2"
WIDTH_PX, HEIGHT_PX = 760, 900
PATIENCE_S = 30
CLICK = "document.querySelector('#examples img[alt=\"Example ship\"]')?.parentElement.click()"
SHOWN = "!document.getElementById('result').hidden && document.getElementById('preview').complete"
BOTTOM = "Math.ceil(document.querySelector('main').getBoundingClientRect().bottom + scrollY)"


class Browser:
    """Headless Chromium, driven by its DevTools protocol over a pair of pipes: JSON messages that end with NUL."""

    def __init__(self, folder: str) -> None:
        program = shutil.which("chromium")
        if program is None:
            raise SystemExit("chromium is not installed: apt-get install chromium")
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        command = [
            program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe",
            f"--user-data-dir={folder}", "about:blank",
        ]  # fmt: skip
        shell = f'exec "$@" 3<&{to_read} 4>&{to_write}'  # Chromium reads descriptor 3 and writes descriptor 4
        self.process = subprocess.Popen(
            ["bash", "-c", shell, "bash", *command], pass_fds=(to_read, to_write), stderr=subprocess.DEVNULL
        )
        self._session: dict[str, str] = {}
        self._received, self._number = b"", 0

    def attach(self) -> None:
        """To the one page that is open."""
        page = next(t for t in self("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = {"sessionId": attached["sessionId"]}

    def __call__(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters} | self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._received:
                self._received += os.read(self._read, 1 << 20)
            line, _, self._received = self._received.partition(b"\0")
            answer = json.loads(line)
            if answer.get("id") == self._number:
                return answer["result"]

    def value(self, expression: str) -> Any:
        return self("Runtime.evaluate", expression=expression)["result"].get("value")


def main() -> None:
    with live.serving(BUNDLE) as url, tempfile.TemporaryDirectory() as folder:
        browser = Browser(folder)
        try:
            browser.attach()
            size = {"width": WIDTH_PX, "height": HEIGHT_PX, "deviceScaleFactor": 1, "mobile": False}
            browser("Emulation.setDeviceMetricsOverride", **size)
            browser("Page.navigate", url=url)
            deadline = time.monotonic() + PATIENCE_S
            while not browser.value(SHOWN):
                if time.monotonic() > deadline:
                    sys.exit("the page showed no answer to its example")
                browser.value(CLICK)
                time.sleep(0.5)
            height = browser.value(BOTTOM) or HEIGHT_PX
            browser("Emulation.setDeviceMetricsOverride", **size | {"height": height})
            time.sleep(0.5)
            PICTURE.write_bytes(base64.b64decode(browser("Page.captureScreenshot")["data"]))
            browser("Browser.close")
        finally:
            browser.process.terminate()
            browser.process.wait(PATIENCE_S)
    print(f"written: {PICTURE}, {PICTURE.stat().st_size / 1000:.0f} KB")


if __name__ == "__main__":
    main()
