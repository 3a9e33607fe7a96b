"""Chromium without a window, driven over chromedriver's HTTP interface (W3C WebDriver), with the standard library."""

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--disable-dev-shm-usage", "--disable-default-apps",
)  # fmt: skip


class Browser:
    """One tab."""

    def __init__(self, address: str, session: str = "") -> None:
        self._address, self._session = address, session

    def call(self, path: str, body: dict[str, Any] | None = None, method: str = "") -> Any:
        """One command of WebDriver; its value."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self._address}{self._session}{path}", data, {"Content-Type": "application/json"}, method=method or None
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from error

    def open(self, address: str) -> None:
        self.call("/url", {"url": address})

    def run(self, script: str, *arguments: Any) -> Any:
        """The value that a script returns; `arguments[0]`, … are its arguments."""
        return self.call("/execute/sync", {"script": script, "args": list(arguments)})

    def size(self, width: int, height: int) -> None:
        """The size that the page has, as that of a phone: a window of Chromium cannot be that narrow."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.devtools("Emulation.setDeviceMetricsOverride", metrics)
        self.settle()

    def devtools(self, command: str, parameters: dict[str, Any]) -> Any:
        return self.call("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def settle(self) -> None:
        """Wait for two frames, in which charts are drawn."""
        script = "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done(1)))"
        self.call("/execute/async", {"script": script, "args": []})

    def point_at(self, x: float, y: float) -> None:
        """Move the mouse to a place of the window."""
        move = {"type": "pointerMove", "duration": 0, "x": round(x), "y": round(y), "origin": "viewport"}
        self.call("/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": [move]}]})

    def press(self, key: str) -> None:
        """Press and release a key."""
        keys = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        self.call("/actions", {"actions": [{"type": "key", "id": "keys", "actions": keys}]})

    def log(self, kind: str) -> list[dict[str, Any]]:
        """What was logged since the last call: "browser" (the console) or "performance" (DevTools' events)."""
        return self.call("/se/log", {"type": kind})


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser with an empty profile; skips where there is none, but fails where CI is set."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        message = "needs Chromium and its driver: apt-get install chromium chromium-driver"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            there = Browser(f"http://127.0.0.1:{port}")
            _wait(there)
            options = {"binary": chromium, "args": [*FLAGS, f"--user-data-dir={profile}"]}
            wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
            session = there.call("/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
            tab = Browser(f"http://127.0.0.1:{port}", f"/session/{session}")
            yield tab
            tab.call("", method="DELETE")
        finally:
            process.terminate()
            process.wait(10)


def _wait(there: Browser, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            there.call("/status")
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
