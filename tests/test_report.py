"""`python -m vcd.report`: one file that opens without a network, in a real browser, on a phone's width too."""

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import SHORT

from vcd.cli import CONF
from vcd.report import TEMPLATE, Look, differences, render


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium, headless."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine: apt install chromium")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(trained, command, tmp_path_factory) -> Path:
    """Of a VCD and of a DDPM, which has no latents."""
    cwd = tmp_path_factory.mktemp("report")
    short = [o for o in SHORT if not o.startswith("prior")]
    ddpm = command("train", *short, "model=ddpm", "sampler.steps=3", cwd=cwd)
    assert ddpm.returncode == 0, ddpm.stderr
    other = Path(ddpm.stdout.splitlines()[-1].split(maxsplit=1)[1]).parent
    made = command("report", f"run=[{trained.last.parent},{other}]", "n=9", "pairs=3", f"out={cwd}/page.html", cwd=cwd)
    assert made.returncode == 0, made.stderr
    page = Path(made.stdout.splitlines()[-1].split(maxsplit=1)[1])
    assert page == cwd / "page.html"
    return page


def look(name: str, **flat) -> Look:
    return Look(name=name, model="VCD", facts={"T": "3"}, config="T: 3\n", flat=flat, metrics=[], evaluation={},
                samples="data:,", sequences="data:,", animation="data:,")  # fmt: skip


def test_what_differs_is_named_once_and_what_is_incidental_not_at_all():
    a = look(
        "a",
        **{
            "T": 3,
            "seed": 0,
            "prior.latent": 4,
            "model.prior.latent": 4,
            "run_dir": "x",
            "threads": 1,
            "dataset.name": "d",
        },
    )
    b = look(
        "b",
        **{
            "T": 3,
            "seed": 1,
            "prior.latent": 8,
            "model.prior.latent": 8,
            "run_dir": "y",
            "threads": 2,
            "dataset.name": "e",
        },
    )
    assert differences([a, b]) == [("seed", ["0", "1"]), ("prior.latent", ["4", "8"]), ("dataset.name", ["d", "e"])]


def test_what_the_user_wrote_is_escaped_and_nothing_is_fetched():
    page = render([look("<b>bold</b>")])
    assert "&lt;b&gt;bold" in page and "<b>bold" not in page
    assert not re.search(r"(?:src|href)=\"(?!data:)", page) and "http" not in TEMPLATE.read_text()


def test_the_template_is_part_of_the_package():
    assert "*.jinja" in (CONF.parent / "setup.py").read_text()


@pytest.mark.long
@pytest.mark.parametrize("width", [1280, 390])
def test_it_opens_from_the_file_system_and_its_slider_moves(report, browser, width, tmp_path):
    page, said, asked = browser.new_page(viewport={"width": width, "height": 900}), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")

    assert page.locator("input[type=range]").count() == 1  # the DDPM has nothing to exchange
    shown = page.locator("[data-exchange] img:visible")
    assert (page.locator("output").inner_text(), shown.get_attribute("data-level")) == ("3", "3")
    before = shown.screenshot()
    page.locator("input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    assert (page.locator("output").inner_text(), shown.get_attribute("data-level")) == ("2", "2") and shown.count() == 1
    assert shown.screenshot() != before
    page.locator("summary").first.click()
    assert "degradation:" in page.locator("pre:visible").first.inner_text()

    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert (tmp_path / "page.png").stat().st_size > 10_000
    assert said == [] and all(url.startswith(("file:", "data:")) for url in asked)


@pytest.mark.long
def test_a_single_run_writes_beside_it_and_mistakes_are_one_sentence(trained, command, tmp_path):
    folder = Path(shutil.copytree(trained.last.parent, tmp_path / "run"))
    number = {"value": 12.54321, "floor": 3.5, "better": "lower", "unit": "", "protocol": {}}
    (folder / "metrics.json").write_text(json.dumps({"metrics": {"fcd_1000": number}}))
    made = command("report", f"run={folder}", "n=4", "pairs=2", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    page = (folder / "report.html").read_text()
    assert (
        "<td>fcd_1000</td><td>12.543</td><td>3.5</td>" in page
        and "kl_bits by level" in page
        and page.count("<section") == 1
    )
    for arguments, words in (([], "run=runs/"), ([f"run={tmp_path}"], "last.ckpt"), ([f"run={folder}", "n=0"], "n=0")):
        failed = command("report", *arguments, cwd=tmp_path)
        assert failed.returncode == 1 and "Traceback" not in failed.stderr
        assert failed.stderr.splitlines()[-1].startswith("error: ") and words in failed.stderr
