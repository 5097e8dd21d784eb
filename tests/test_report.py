"""`python -m vcd.report`: one file that opens without a network, in a real browser, on a phone's width too."""

import base64
import io
import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import SHORT
from PIL import Image

from vcd.cli import CONF
from vcd.curves import Panel
from vcd.report import TEMPLATE, Exchange, Look, call, differences, render


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


def picture(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, height), 90).save(buffer, "PNG")
    return buffer.getvalue()


def uri(width: int, height: int) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture(width, height)).decode()}"


def comparison() -> str:
    """A page with all there can be on it: eight variants with long names, numbers, keys and words without a gap."""
    names = ["VCD", "VWD with positions of 2x2 pixels, twice as wide", *(f"variant_number_{i}" for i in range(6))]
    metrics = ["fcd_2000", "log_spectral_distance_2000", "path_bound_bits_per_dim"]
    number = {"value": 0.0123456789, "floor": 1234.5, "better": "neither", "unit": "bits per dimension of x_0"}
    looks = []
    for i, name in enumerate(names):
        flat = {f"network.unet.injection.key{k}._target_": f"vcd.networks.injection.{'Long' * 6}{i}" for k in range(14)}
        seen = look(f"mnist-vwd-black_gaussian_blur-0123456{i}-seed{i}", **flat)
        seen.called, seen.samples, seen.sequences, seen.animation = name, uri(584, 584), uri(900, 600), uri(584, 584)
        seen.evaluation = {"metrics": dict.fromkeys(metrics, number), "protocol": "x" * 300}
        seen.config = f"key: {'value' * 60}\n"
        if i < 2:
            seen.exchange = Exchange([3, 2], [uri(500, 500), uri(501, 501)])
            seen.contributions = [uri(720, 600)] * 3
        looks.append(seen)
    table = [["", *metrics, "samples/s"], *([name, *["1,234 ± 0.0001234"] * 4] for name in [*names, "real images"])]
    return render(looks, table, [Panel(metric, picture(720, 580)) for metric in metrics])


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_of_a_comparison_is_wider_than_the_window_or_cut_off(browser, width, tmp_path):
    (tmp_path / "page.html").write_text(comparison())
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto((tmp_path / "page.html").as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    out = page.evaluate("""[...document.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > innerWidth
                           || e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX != "visible")
                           .map(e => e.outerHTML.slice(0, 80))""")
    assert out == []
    sizes = page.evaluate("""[...document.querySelectorAll("td, th, p, figcaption, summary, pre")].filter(e => e.innerText.trim())
                             .map(e => parseFloat(getComputedStyle(e).fontSize))""")
    assert min(sizes) >= 12
    narrow = page.evaluate(
        """[...document.querySelectorAll(".rows td")].filter(e => e.offsetWidth && e.offsetWidth < 40).length"""
    )
    assert narrow == 0
    if width > 1000:  # a number and a short name stay in one line
        for words in ("0.0001234", "VCD"):
            assert page.evaluate(f"""[...document.querySelectorAll("td, th")].filter(e => e.innerText.includes("{words}")).every(e => {{
                const range = document.createRange(), node = e.firstChild, at = node.data.indexOf("{words}");
                range.setStart(node, at); range.setEnd(node, at + {len(words)}); return range.getClientRects().length == 1; }})"""), (
                words
            )
    page.close()


def test_it_opens_with_samples_then_sequences_then_curves_and_tables():
    page = comparison()
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings == ["Samples", "Sequences", "Latent exchange", "Curves", "Numbers", "Runs"]
    assert page.index("<table") > page.index("<h2>Numbers</h2>")
    assert page.index("<h2>Samples</h2>") < page.index("<img") and "<img" in page[: page.index("<h2>Sequences</h2>")]
    assert re.findall(r"<h2>(.*?)</h2>", render([look("a")])) == ["Samples", "Sequences", "Numbers", "Run"]


def test_a_comparison_has_a_row_a_metric_and_names_every_column():
    page = comparison()
    head = re.search(r'<table class="rows"><thead>(.*?)</thead>', page)
    assert head and head[1].count("<th>") == 1 + 8 + 1
    assert page.count('<td data-column="variant_number_3">1,234 ± 0.0001234</td>') == 4


def test_runs_are_called_by_what_sets_them_apart():
    def called(*names: tuple[str, str]) -> list[str]:
        looks = [look(folder) for folder, _ in names]
        for seen, (_, model) in zip(looks, names, strict=True):
            seen.model = model
        return call(looks)

    assert called(("digits-vcd-blur-1-seed0", "VCD"), ("digits-vwd-blur-2-seed0", "VWD")) == ["VCD", "VWD"]
    assert called(("digits-vcd-blur-1-seed0", "VCD"), ("digits-vcd-blur-1-seed1", "VCD")) == ["VCD seed0", "VCD seed1"]
    assert called(("a-1", "VCD"), ("a-1", "VCD")) == ["a-1", "a-1"]
    mine = look("folder")
    mine.called = "as I call it"
    assert call([mine]) == ["as I call it"]


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
    page.locator("summary", has_text="config.yaml of VCD").click()
    assert "degradation:" in page.locator("details[open] pre").last.inner_text()

    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert (tmp_path / "page.png").stat().st_size > 10_000
    assert said == [] and all(url.startswith(("file:", "data:")) for url in asked)


@pytest.mark.long
def test_a_single_run_writes_beside_it_and_mistakes_are_one_sentence(trained, command, tmp_path):
    folder = Path(shutil.copytree(trained.last.parent, tmp_path / "run"))
    number = {"value": 12.54321, "floor": 3.5, "better": "lower", "unit": "", "protocol": {}}
    (folder / "metrics.json").write_text(json.dumps({"subject": {}, "metrics": {"fcd_1000": number}, "curves": {}}))
    made = command("report", f"run={folder}", "n=4", "pairs=2", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    page = (folder / "report.html").read_text()
    assert (
        '<th>fcd_<wbr>1000</th><td class="number">12.54</td><td class="number">3.5</td>' in page
        and "kl_bits by level" in page
        and page.count("data-exchange>") == 1
    )
    for arguments, words in (([], "run=runs/"), ([f"run={tmp_path}"], "last.ckpt"), ([f"run={folder}", "n=0"], "n=0")):
        failed = command("report", *arguments, cwd=tmp_path)
        assert failed.returncode == 1 and "Traceback" not in failed.stderr
        assert failed.stderr.splitlines()[-1].startswith("error: ") and words in failed.stderr
