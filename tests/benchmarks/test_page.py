"""The page in a browser: sorting, filters, drawers, copies, widths, the dark, print, keyboard, axe-core, no request."""

from __future__ import annotations

import re
import shutil
import threading

import numpy as np
import pytest
from made_records import make_absent, make_record

from benchmarks import report
from benchmarks.records import store
from benchmarks.report import baselines, render
from benchmarks.report.exports import FORMS
from benchmarks.report.serve import Live, server

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install 'backbench[browser]'")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install the system's package chromium"),
]

HOSTILE = "<img src=x onerror=alert(1)>=1+1\x1b[31m"
WIDTHS = (390, 800, 1400)


def write_records(out, *, backbones=("alpha", "beta", "gamma"), cells=3):
    """Trained backbones, a random baseline and one with a hostile name; a failed, a skipped and a missing cell."""
    generator = np.random.default_rng(0)
    names = [*backbones, HOSTILE, "random:resnet50"]
    for place, name in enumerate(names):
        weights = format(place + 1, "x")
        for cell in range(cells):
            right = generator.random(200) < 0.3 + 0.08 * ((place + cell) % 5)
            best = np.stack([np.where(right, 1, 2), np.full(200, 0)], axis=1).astype(np.int32)
            value = 100 * float(right.mean())
            record = make_record(value, name=name, weights=weights, cell=f"data{cell}_linear", data=f"data{cell}",
                                 more={"top5": value}, named=True)  # fmt: skip
            arrays = {"best": best, "labels": np.ones(200, np.int32), "per_class_top1": np.array([0.0, value, 9.0])}
            store.write(out, record, arrays)
        if name != "gamma":
            fields = {"metric": "uniformity", "unit": "", "higher": False, "cell": "imagenet_uniformity"}
            store.write(out, of_task("uniformity", make_record(-1.0 - place, name=name, weights=weights, **fields)))
            knn = {"cell": "imagenet_knn", "metric": "top1_k20", "more": {"top1_k200": 30.0}}
            store.write(out, of_task("knn", make_record(40.0 + place, name=name, weights=weights, **knn)))
    store.write(out, of_task("voc07_svm", make_absent("failed", "no memory", name=backbones[0])))
    store.write(out, of_task("voc07_svm", make_absent("skipped", "no folder", name=backbones[1])))
    return out


def of_task(name, record):
    return record.model_copy(update={"task": record.task.model_copy(update={"name": name})})


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = write_records(tmp_path_factory.mktemp("results"))
    return report.write(out)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser):
    """Open a page; the test fails if it says an error or asks for anything but itself."""
    opened, said, asked = [], [], []

    def open_page(address, **options):
        context = browser.new_context(**options)
        context.set_default_timeout(120_000)  # of a busy machine
        opened.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        return page

    yield open_page
    for context in opened:
        context.close()
    assert said == []
    outside = ("file:///", "http://127.0.0.1:", "data:")
    assert [url for url in asked if not url.startswith(outside)] == []
    assert len({url for url in asked if url.startswith("file:")}) <= 1, "the file alone"


@pytest.fixture
def page(visit, written):
    return visit(written.as_uri(), viewport={"width": 1400, "height": 900})


def names(page):
    return page.eval_on_selector_all(
        "#matrix tbody tr:not([hidden])", "rows => rows.map(row => row.cells[0].innerText.trim())"
    )


def shown_heads(page):
    return page.eval_on_selector_all(
        "th[data-column]:not([hidden]) a", "links => links.map(link => link.innerText.trim())"
    )


def column(page, heading):
    """Return the texts of a column, without the small print."""
    at = page.get_by_label(f"sort by {heading}", exact=True).evaluate("button => button.closest('th').dataset.column")
    script = "(rows, at) => rows.map(row => row.cells[Number(at) + 1].dataset.value ?? null)"
    return [
        None if v is None else float(v) for v in page.eval_on_selector_all("#matrix tbody tr:not([hidden])", script, at)
    ]


def open_all(page):
    page.eval_on_selector_all("details", "all => all.forEach(one => one.open = true)")


def test_sorting_by_a_number_puts_the_best_first_and_missing_ones_last(page):
    button = page.get_by_label("sort by imagenet_knn top1_k20", exact=True)
    before = column(page, "imagenet_knn top1_k20")
    button.click()
    numbers = [v for v in before if v is not None]
    assert column(page, "imagenet_knn top1_k20") == [*sorted(numbers, reverse=True), None]
    assert button.evaluate("button => button.closest('th').getAttribute('aria-sort')") == "descending"
    button.click()
    assert column(page, "imagenet_knn top1_k20") == [*sorted(numbers), None]
    assert "ascending" in page.locator("#said").inner_text()
    page.get_by_label("sort by imagenet_uniformity uniformity", exact=True).click()
    assert column(page, "imagenet_uniformity uniformity") == [-5.0, -4.0, -2.0, -1.0, None], "lower is better"
    assert page.locator("[aria-sort]").count() == 1, "one column at a time"
    page.get_by_role("button", name="backbone").click()
    assert names(page) == sorted(names(page), key=str.lower)


def test_filters_choose_rows_and_columns(page):
    everything = shown_heads(page)
    page.locator("#find").fill("BETA")
    assert names(page) == ["beta (resnet50)"]
    page.locator("#find").fill("")
    page.locator("#tasks summary").click()
    page.get_by_label("linear probe", exact=True).uncheck()
    assert shown_heads(page) == [head for head in everything if not head.endswith("linear")]
    page.get_by_label("linear probe", exact=True).check()
    assert shown_heads(page) == everything
    page.get_by_label("all metrics").check()
    assert len(shown_heads(page)) == len(everything) + 4, "three top5 and the kNN's other k"
    widths = page.eval_on_selector_all("#matrix th[scope=colgroup]:not([hidden])", "all => all.map(one => one.colSpan)")
    assert sum(widths) == len(shown_heads(page))


def test_published_numbers_are_rows_that_can_be_switched_on(page):
    before = names(page)
    page.locator("#literature").check()
    assert len(names(page)) > len(before) and any(name.startswith("MSBReg (resnet50)") for name in names(page))
    assert "66.2" in page.locator("tr.published:not([hidden])").all_inner_texts().__repr__()
    assert page.locator("tr.published a[href^='https://arxiv.org/']").count() > 0
    page.locator("#literature").uncheck()
    assert names(page) == before


def test_a_failed_and_a_skipped_cell_stand_in_the_overview_with_their_reasons(page):
    texts = dict(zip(names(page), page.locator("#matrix tbody tr:not([hidden])").all_inner_texts(), strict=True))
    assert "failed" in texts["alpha (resnet50)"] and "skipped" in texts["beta (resnet50)"]
    assert page.locator("td.failed").first.get_attribute("title").endswith("no memory")
    assert page.locator("td.not-measured").first.inner_text() == "–"


def test_a_link_opens_the_drawer_of_its_cell(page):
    page.locator("th[data-column='0'] a").click()
    drawer = page.locator("details.drawer[open]")
    drawer.wait_for()
    assert page.evaluate("document.activeElement.closest('details').id") == drawer.get_attribute("id")
    text = drawer.inner_text()
    assert "Linear classifier on a frozen encoder" in text and "alpha (resnet50)" in text
    drawer.locator("details summary").filter(has_text="top1 by class").click()
    assert drawer.locator("table.bars tbody tr").count() == 3
    drawer.locator("details summary").filter(has_text="Confusions (5 backbones)").click()
    drawer.locator("details summary").filter(has_text="Confusions of alpha").click()
    assert drawer.locator("table.confusion:visible tbody tr").count() == 3
    words = drawer.locator("figure svg text").all_text_contents()
    assert "alpha" in words and any("top1" in word for word in words), "text in plots is text"


def test_colours_follow_the_chosen_baseline(page):
    page.get_by_label("Colour by difference to").select_option(label="alpha (resnet50)")
    page.get_by_label("sort by data0_linear top1", exact=True).click()
    script = "rows => rows.map(({cells}) => [cells[1].style.getPropertyValue('--hue'), 'noise' in cells[1].dataset])"
    hues = page.eval_on_selector_all("#matrix tbody tr:not([hidden])", script)
    base = names(page).index("alpha (resnet50)")
    assert hues[base] == ["", False] and any(is_noise for _, is_noise in hues)
    for place, (hue, is_noise) in enumerate(hues):
        side = "var(--better)" if place < base else "var(--worse)"
        assert hue == ("" if is_noise or place == base else side)
    page.get_by_label("Colour by difference to").select_option(label="nothing")
    assert page.locator("#matrix td[style]").count() == 0


def differences(page):
    """What the first cell says of every row: in the table, on hovering, in its drawer."""
    script = """rows => rows.map(({cells, dataset}) => {
        const drawn = document.querySelector(`.drawer td[data-of="${dataset.row} 0"] small`);
        return [cells[0].innerText.trim(), cells[1].querySelector(".difference")?.textContent ?? "", cells[1].title,
                drawn?.textContent ?? ""];
    })"""
    found = page.eval_on_selector_all("#matrix tbody tr:not([hidden])", script)
    return {name: words for name, *words in found}


def test_differences_are_to_the_chosen_row(page, written):
    before = differences(page)
    assert " to random:resnet50" in before["alpha (resnet50)"][1] and before["random:resnet50"][0] == ""
    page.get_by_label("differences and intervals").check()
    page.get_by_label("Colour by difference to").select_option(label="alpha (resnet50)")
    found = differences(page)
    made = report.Report(written.parent)
    place = next(n for n, row in enumerate(made.table.rows) if row.name == "alpha")
    of_alpha = made.choices.to[place].differences[made.comparisons[0].column]
    for n, row in enumerate(made.table.rows):
        if row.name == HOSTILE:
            continue
        in_table, hover, in_drawer = found[row.label]
        if n == place:
            assert (in_table, in_drawer) == ("", "") and " to " not in hover
            continue
        text = render.gap(of_alpha[n], made.comparisons[0].column)
        noise = of_alpha[n].is_noise
        assert in_table == text + (" noise" if noise else "")
        assert hover.endswith(f"{text} to alpha (resnet50)" + (", within the noise" if noise else ""))
        assert in_drawer == text + (", within the noise" if noise else "")
    assert {found.is_noise for found in of_alpha.values()} == {True, False}
    assert page.locator(".to b").first.inner_text() == "alpha (resnet50)"
    assert page.locator("#tested").is_visible() and not page.locator("#untested").is_visible()
    page.emulate_media(media="print")
    assert page.locator("#matrix .difference:visible").first.inner_text().strip() in {one[0] for one in found.values()}
    page.emulate_media(media="screen")
    assert {node.text_content() for node in page.locator(".to b").all()} == {"alpha (resnet50)"}
    page.get_by_label("Colour by difference to").select_option(label="random:resnet50")
    assert differences(page) == before and page.locator(".to b").first.inner_text() == "random:resnet50"


def test_differences_to_a_row_that_is_left_out_are_not_shown(visit, tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "_MOST", 0)
    page = visit(report.write(write_records(tmp_path)).as_uri())
    page.get_by_label("Colour by difference to").select_option(label="alpha (resnet50)")
    assert {tuple(words[::2]) for words in differences(page).values()} == {("", "")}
    assert page.locator("#matrix td[style]").count() > 0 and page.locator("#untested").is_visible()
    assert not page.locator("#made").is_visible()


@pytest.mark.parametrize("form", FORMS)
def test_a_copy_is_what_the_command_prints(page, written, form):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator(f"button[data-copy={form}]").click()
    page.locator("#said", has_text="copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == report.Report(written.parent).export(form)


def test_a_copy_holds_the_rows_and_columns_that_are_shown(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_label("sort by imagenet_knn top1_k20", exact=True).click()
    page.locator("#find").fill("a (")
    page.locator("button[data-copy=csv]").click()
    page.locator("#said", has_text="copied").wait_for()
    lines = page.evaluate("navigator.clipboard.readText()").splitlines()
    assert [line.partition(" ")[0] for line in lines[1:]] == ["beta", "alpha", "gamma"]
    assert lines[0].count(",") == len(shown_heads(page)) + 1, "and the average rank"


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_window(visit, written, width):
    page = visit(written.as_uri(), viewport={"width": width, "height": 900})
    page.get_by_label("all metrics").check()
    page.get_by_label("differences").check()
    open_all(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    area = page.locator(".scroll").first
    cut = area.evaluate("area => area.scrollWidth > area.clientWidth + 1")
    assert area.evaluate("area => area.classList.contains('is-cut')") == cut, "a table that goes on says so"
    if cut:
        area.evaluate("area => area.scrollTo(10000, 0)")
        page.locator(".scroll:not(.is-cut) > #matrix").wait_for()
        first, edge = page.locator("#matrix tbody th").first.bounding_box(), area.bounding_box()
        assert first["x"] - edge["x"] <= 2, "the names stay"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(visit, written, scheme):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="no axe-core: pip install 'backbench[browser]'"
    )
    page = visit(written.as_uri(), viewport={"width": 1400, "height": 900}, color_scheme=scheme, bypass_csp=True)
    page.get_by_label("differences").check()
    open_all(page)
    found = axe.Axe().run(page).response["violations"]
    told = [(v["id"], v["impact"], v["nodes"][0]["target"], v["nodes"][0]["failureSummary"]) for v in found]
    assert [one for one in told if one[1] in ("serious", "critical")] == []


def test_the_dark_has_its_own_colours(visit, written):
    back = {
        scheme: visit(written.as_uri(), color_scheme=scheme).evaluate("getComputedStyle(document.body).backgroundColor")
        for scheme in ("light", "dark")
    }
    assert back["light"] == "rgb(255, 255, 255)"
    assert max(map(int, re.findall(r"\d+", back["dark"]))) < 60


def test_ten_backbones_in_fifteen_cells_print_on_six_pages(visit, tmp_path):
    write_records(tmp_path, backbones=[f"backbone{n}" for n in range(8)], cells=13)
    page = visit(report.write(tmp_path).as_uri())
    pdf = page.pdf(prefer_css_page_size=True)
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 6
    page.emulate_media(media="print")
    assert page.locator("#matrix .difference").first.is_visible() and not page.locator("#controls").is_visible()


def test_everything_can_be_reached_by_keys(page):
    page.locator("#find").focus()
    page.keyboard.type("alpha")
    assert names(page) == ["alpha (resnet50)"]
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.dataset?.sort ?? document.activeElement.className"))
    assert "scroll" in {word.split()[0] for word in seen if word} and {"name", "0", "rank"} <= set(seen)
    page.locator("button[data-sort=name]").focus()
    page.keyboard.press("Enter")
    assert page.locator("th.name[aria-sort=ascending]").count() == 1


def test_it_reads_without_scripts(visit, written):
    page = visit(written.as_uri(), java_script_enabled=False)
    assert page.locator("#matrix tbody tr:visible").count() == 5 and not page.locator("#controls").is_visible()


def test_a_hostile_name_is_text(page):
    assert page.locator("img").count() == 0
    assert "<img src=x onerror=alert(1)>=1+1\\x1b[31m (resnet50)" in names(page)


def test_a_served_page_follows_the_records(visit, tmp_path):
    write_records(tmp_path)
    with server(Live(tmp_path, None, {}), 0) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        page = visit(f"http://127.0.0.1:{made.server_port}/")
        page.locator("#find").fill("e")
        store.write(tmp_path, make_record(77.7, name="newcomer", weights="e", cell="data0_linear", data="data0"))
        page.locator("#matrix th", has_text="newcomer (resnet50)").wait_for()
        assert page.locator("#find").input_value() == "e", "it comes back as it was"
        page.close()
        made.shutdown()
