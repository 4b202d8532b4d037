"""A browser for tests: a page enters, what its script finds and how it looks leave; DevTools over a pipe."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)


class Browser:
    """Headless Chromium with one tab. `said` collects what pages write to their console, `asked` the addresses that
    they load beside themselves and data URIs.
    """

    def __init__(self, profile: Path) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        self._number, self._rest = 0, b""
        down, up = os.pipe(), os.pipe()
        inner, outer = down[0], up[1]
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"]
        flags += [f"--user-data-dir={profile}", "--no-first-run", "--disable-extensions", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$0" "$@" 3<&{inner} 4>&{outer}', CHROMIUM, *flags],
            pass_fds=(inner, outer),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(inner)
        os.close(outer)
        self._to, self._from = down[1], up[0]
        self._session = ""
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for part in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{part}.enable")

    def call(self, method: str, **params: Any) -> Any:
        """One command of the DevTools protocol, and its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            found = self._read()
            if found.get("id") == self._number:
                assert "error" not in found, found
                return found["result"]

    def _read(self) -> dict[str, Any]:
        end = time.monotonic() + 120
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], max(0, end - time.monotonic()))
            assert ready, "the browser is silent"
            part = os.read(self._from, 1 << 20)
            assert part, "the browser is gone"
            self._rest += part
        one, self._rest = self._rest.split(b"\0", 1)
        found = json.loads(one)
        params = found.get("params", {})
        if found.get("method") == "Runtime.exceptionThrown":
            self.said.append(json.dumps(params["exceptionDetails"]))
        if found.get("method") == "Runtime.consoleAPICalled":
            self.said.append(json.dumps(params["args"]))
        if found.get("method") == "Log.entryAdded":
            self.said.append(params["entry"]["text"])
        if found.get("method") == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if params["type"] != "Document" and not url.startswith("data:"):
                self.asked.append(url)
        return found

    def open(self, url: str) -> None:
        """Load a page and wait for its script."""
        self.said.clear()
        self.asked.clear()
        self.call("Page.navigate", url=url)
        self.wait("document.documentElement?.dataset.ready === 'yes'")

    def run(self, script: str) -> Any:
        """The value of an expression in the page; promises are awaited."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, condition: str, seconds: float = 120) -> None:
        """Until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < end, f"never true: {condition}; {self.said}"
            time.sleep(0.05)

    def press(self, key: str) -> None:
        """One key, to whatever has the focus."""
        codes = {"Tab": 9, "ArrowLeft": 37, "ArrowRight": 39, "Enter": 13, " ": 32}
        how: dict[str, Any] = dict(key=key, code="Space" if key == " " else key, windowsVirtualKeyCode=codes[key])
        text = {"Enter": "\r", " ": " "}.get(key)
        self.call("Input.dispatchKeyEvent", type="keyDown", **how, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **how)

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        """Window and color scheme; below 500 pixels as a phone."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def shot(self, path: Path, height: int | None = None) -> None:
        """A picture of the window, or of so much of the page."""
        if height is not None:
            width = self.run("innerWidth")
            clip = dict(x=0, y=0, width=width, height=height, scale=1)
            data = self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)["data"]
        else:
            data = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        """End the browser."""
        self._process.terminate()
        self._process.wait(timeout=30)
        os.close(self._to)
        os.close(self._from)
