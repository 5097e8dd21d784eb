"""The documentation as a site: built with warnings as errors, served, and read in a real browser at two widths."""

import functools
import http.server
import os
import re
import subprocess
import sys
import threading

import pytest

from vcd.cli import CONF

ROOT = CONF.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site."""
    out = tmp_path_factory.mktemp("site")
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONWARNINGS": "ignore"}
    built = subprocess.run(line, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return out


@pytest.fixture(scope="module")
def address(site):
    """Where it is served."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()


@pytest.mark.long
def test_every_page_is_there_and_links_between_them_stay(site):
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    written = {
        path.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for path in (ROOT / "docs").rglob("*.md")
    }
    assert written | {"index.html", "results.html", "benchmarks.html", "contributing.html", "changelog.html"} <= pages
    home = (site / "index.html").read_text()
    assert 'href="results.html"' in home and 'href="tutorial.html"' in home
    assert not [page for page in pages if re.search(r'href="[^":]*\.md["#]', (site / page).read_text())]
    assert 'src="benchmarks/results/scaling.png"' in (site / "benchmarks.html").read_text()
    trained = (site / "api" / "trained.html").read_text()
    assert 'id="vcd.api.Trained.exchange"' in trained and "&gt;&gt;&gt;" in trained


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("width", [1280, 390])
def test_it_reads_well_and_asks_nobody_else(site, address, browser, width):
    page, said, asked = browser.new_page(viewport={"width": width, "height": 900}), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    for path in sorted(site.rglob("*.html")):
        name = path.relative_to(site).as_posix()
        page.goto(f"{address}/{name}")
        inner, scroll = page.evaluate("[window.innerWidth, document.documentElement.scrollWidth]")
        assert scroll <= inner == width, f"{name} is {scroll} pixels wide"
        assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)"), name
        assert page.locator("h1").count() == 1, name
    page.goto(f"{address}/index.html")
    page.evaluate("document.querySelector('[data-md-toggle=search]').click()")
    page.locator(".md-search__input").fill("preemption")
    page.locator(".md-search-result__link").first.wait_for(timeout=20_000)
    assert "clusters.html" in page.locator(".md-search-result__link").first.get_attribute("href")
    assert said == [] and all(url.startswith((address, "data:", "blob:")) for url in asked)
