"""The page in a real browser: it renders, stays silent, and asks the network for nothing."""

import re
import shutil
import subprocess

import pytest

from simulations.report import write_report

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--enable-logging=stderr",
    "--v=0",
)

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no chromium, chromium-browser or google-chrome on the path"
)


@pytest.fixture
def browse(tmp_path):
    """Open a file; return its DOM and the messages on its console."""

    def browse(path):
        command = [BROWSER, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
        done = subprocess.run(
            [*command, path.as_uri()], capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout, re.findall(r".*CONSOLE.*", done.stderr)

    return browse


def test_the_report_renders_silently(make_run, browse):
    run = make_run(
        compare="local, fedavg", others={"local": {}}, failing={(1, 0): "<script>x()</script>"}
    )
    dom, console = browse(write_report(run))
    assert console == []
    for heading in ("Comparison", "Curves", "Clients", "Partition", "Bytes on the wire"):
        assert f"<h2>{heading}</h2>" in dom
    assert dom.count("<svg role=") == dom.count("</svg>") == 6
    assert "<script>" not in dom


def test_the_browser_would_tell_of_a_request(make_run, browse):
    """The page forbids itself the network, so that any request would show on the console."""
    path = write_report(make_run())
    loads = '<img src="https://example.org/x.png"><script>y()</script></body>'
    path.write_text(path.read_text().replace("</body>", loads))
    _, console = browse(path)
    assert len(console) == 2
    assert all("Content Security Policy" in line for line in console)
