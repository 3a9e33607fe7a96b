"""The page of a study in a real browser: it loads alone, draws, answers the pointer and the keys, and fits a phone."""

import json

import made_up_study
import numpy as np
import pytest
from browser import browser

from tlcgcnn_jax.report import run_report
from tlcgcnn_jax.results import file_name

PHONE, DESK = (360, 740), (1280, 900)
RIGHT, ESCAPE = "\ue014", "\ue00c"
TARGET = "band_gap"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "study"
    made = made_up_study.write(folder, sizes=(50, 100), seeds=2, n_test=25, n_val=15)
    run_report(folder)
    return made


@pytest.fixture(scope="module")
def tab():
    with browser() as opened:
        yield opened


@pytest.fixture
def page(tab, study):
    """The page, loaded anew; whatever went wrong on it fails the test that did it."""
    address = (study.folder / "report.html").as_uri()
    tab.size(*DESK)
    for kind in ("browser", "performance"):
        tab.log(kind)
    tab.open(address)
    tab.settle()
    yield tab
    assert tab.log("browser") == []


def visible(page, selector):
    """Texts of the elements that take room on the page."""
    script = """return [...document.querySelectorAll(arguments[0])].filter((n) => n.getClientRects().length)
        .map((n) => n.textContent)"""
    return page.run(script, selector)


def tip(page):
    """Lines of the tip, None while there is none."""
    script = "const t = document.querySelector('.tip'); return t.hidden ? [] : [...t.children].map(n => n.textContent)"
    return page.run(script) or None


def panel(chart, target=TARGET):
    return f'[data-chart="{chart}"] [data-target="{target}"]'


def chosen(study, target=TARGET, size=100):
    """Errors of the way that is chosen by validation errors, as (row, seed, predicted, std), the largest first."""
    means = {}
    for row in study.select(target=target, size=size):
        means.setdefault((row.source, row.source_size, row.strategy), []).append(row)
    runs = min(means.values(), key=lambda rows: np.mean([row.val_mae for row in rows]))
    values, found = study.crystals(target).values, []
    for run in runs:
        made = study.predictions(run.run)
        found += zip(made.test_rows.tolist(), [run.seed] * len(made.test), made.test, made.test_std, strict=True)
    return sorted(found, key=lambda entry: -abs(entry[2] - values[entry[0]]))


def test_loads_nothing_but_itself(page, study):
    messages = [entry["message"] for entry in page.log("performance")]
    events = [json.loads(message)["message"] for message in messages]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert asked and set(asked) <= {(study.folder / "report.html").as_uri(), "data:,"}


def test_pictures_are_drawn(page):
    for chart, count in (("curves", 3), ("sources", 3), ("parity", 3), ("calibration", 6)):
        sizes = page.run(
            "return [...document.querySelectorAll(arguments[0])].map(n => [n.clientWidth, n.clientHeight])",
            f'[data-chart="{chart}"] .chart > svg',
        )
        assert len(sizes) == count and all(width > 200 and height > 200 for width, height in sizes), chart
    broken = page.run(
        "return [...document.querySelectorAll('svg *')].filter(n => /NaN|Infinity/.test(n.outerHTML)).length"
    )
    assert broken == 0
    assert visible(page, ".unscripted") == []


def test_legend_switches_lines(page):
    lines = f"{panel('curves')} g.series[data-way]"
    before = page.run("return [...document.querySelectorAll(arguments[0])].map(n => n.dataset.way)", lines)
    assert 3 <= len(before) <= 6 and "scratch" in before and "mean" not in before
    press = """for (const button of document.querySelectorAll(arguments[0]))
        if (button.textContent.startsWith(arguments[1])) button.click()"""
    for name in ("mean", "scratch"):
        page.run(press, f"{panel('curves')} .legend button", name)
    after = page.run("return [...document.querySelectorAll(arguments[0])].map(n => n.dataset.way)", lines)
    assert set(after) == {*before, "mean"} - {"scratch"}


def expected_tip(study, entry):
    row, seed, predicted, _ = entry
    table = study.crystals(TARGET)
    return [
        f"{table.ids[row]}  {table.formulas[row]}",
        seed,
        table.values[row],
        predicted,
        predicted - table.values[row],
    ]


def check_tip(found, expected):
    name, true, predicted, error = found
    number = lambda text: float(text.split()[1].replace("−", "-").replace("+", ""))
    assert name == expected[0]
    assert error.endswith(f"eV, seed {expected[1]}")
    got = (number(true), number(predicted), number(error))
    np.testing.assert_allclose(got, expected[2:], rtol=6e-3, atol=2e-3)


def test_pointer_shows_crystal(page, study):
    dots = f"{panel('parity')} .cloud circle"
    entries = chosen(study)
    script = """const n = document.querySelectorAll(arguments[0]); n[0].scrollIntoView({block: "center"});
        const b = n[0].getBoundingClientRect(); return [n.length, b.left + b.width / 2, b.top + b.height / 2]"""
    count, x, y = page.run(script, dots)
    assert count == len(entries)
    assert tip(page) is None
    page.point_at(x, y)
    page.settle()
    check_tip(tip(page), expected_tip(study, entries[0]))
    page.point_at(2, 2)
    page.settle()
    assert tip(page) is None


def test_keys_step_through_crystals_by_error(page, study):
    page.run("document.querySelector(arguments[0]).focus()", f"{panel('parity')} svg")
    for entry in chosen(study)[:3]:
        page.press(RIGHT)
        check_tip(tip(page), expected_tip(study, entry))
    page.press(ESCAPE)
    assert tip(page) is None


def test_std_is_told_where_there_is_one(page, study):
    """Scratch is the first way of the list and has a standard deviation."""
    script = """const select = document.querySelector(arguments[0] + " select");
        select.value = "0"; select.dispatchEvent(new Event("change"));
        document.querySelector(arguments[0] + " svg").focus()"""
    page.run(script, panel("parity"))
    page.press(RIGHT)
    assert " ± " in tip(page)[2]
    runs = study.select(target=TARGET, strategy="scratch", size=100)
    mae = np.mean([run.test_mae for run in runs])
    assert visible(page, f"{panel('parity')} .facts")[0].startswith(f"MAE {mae:.3g}"[:7])


def test_filter_leaves_one_property_in_all_sections(page):
    buttons = '.filter button[data-value="{}"]'
    everything = len(visible(page, "[data-target]"))
    page.run("document.querySelector(arguments[0]).focus()", buttons.format(TARGET))
    page.press("\ue007")  # Enter
    page.settle()
    script = """const there = [...document.querySelectorAll('[data-target]')].filter(n => n.getClientRects().length);
        return [...new Set(there.map(n => n.dataset.target))]"""
    assert page.run(script) == [TARGET]
    for section in ("verdict", "curves", "sources", "gains", "parity", "calibration", "elements", "data", "results"):
        assert visible(page, f'#{section} [data-target="{TARGET}"]'), section
    pressed = page.run("return [...document.querySelectorAll('.filter [aria-pressed=true]')].map(n => n.textContent)")
    assert pressed == [TARGET]
    page.run("document.querySelector(arguments[0]).click()", buttons.format(""))
    assert len(visible(page, "[data-target]")) == everything


def test_gains_show_one_size_at_a_time(page):
    assert len(visible(page, "#gains [data-size]")) == 1
    assert all("100" in text for text in visible(page, "#gains caption"))
    page.run("""document.querySelector('#gains button[data-value="50"]').click()""")
    assert all("50" in text for text in visible(page, "#gains caption"))


def test_elements_hold_mean_errors(page, study):
    table, errors, crystals = study.crystals(TARGET), [], set()
    for row, _, predicted, _ in chosen(study):
        if "O" in table.formulas[row].replace("Os", ""):
            errors.append(abs(predicted - table.values[row]))
            crystals.add(row)
    cell = f'{panel("elements")} [data-element="O"]'
    shown = page.run("return document.querySelector(arguments[0] + ' small').textContent", cell)
    assert float(shown) == pytest.approx(np.mean(errors), rel=0.06)  # two digits
    script = """const n = document.querySelector(arguments[0]); n.scrollIntoView({block: "center"});
        const b = n.getBoundingClientRect(); return [b.left + 5, b.top + 5]"""
    page.point_at(*page.run(script, cell))
    page.settle()
    lines = tip(page)
    assert lines[:2] == ["O", f"{len(crystals)} test crystals"]
    assert any(f"MAE {np.mean(errors):.3g}"[:7] in line for line in lines)


def test_table_sorts_by_number(page):
    script = """const head = [...document.querySelectorAll(".sortable thead th")];
        const i = head.findIndex((n) => n.textContent === "test MAE"); head[i].querySelector("button").click();
        const rows = [...document.querySelectorAll(".sortable tbody tr")];
        return [head[i].getAttribute("aria-sort"), rows.map((n) => n.cells[i].textContent)]"""
    for order, sign in (("ascending", 1), ("descending", -1)):
        said, cells = page.run(script)
        values = [float(cell.replace(",", "")) for cell in cells]
        assert said == order and values == sorted(values, reverse=sign < 0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_a_phone(page, scheme):
    page.devtools("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    page.size(*PHONE)
    page.settle()
    assert page.run("return document.documentElement.scrollWidth") <= PHONE[0]
    wide = """return [...document.querySelectorAll(".chart svg, article, .periodic, select")]
        .filter((n) => n.getBoundingClientRect().right > innerWidth + 0.5).length"""
    assert page.run(wide) == 0
    ground = page.run("return getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")


ODD = {
    "one run": {"targets": ("band_gap",), "seeds": 1, "sizes": (50,), "ways": made_up_study.WAYS[:1]},
    "no scratch, no std": {"ways": (made_up_study.WAYS[5], made_up_study.WAYS[7])},
    "unfinished": {"missing": 0.7},
    "not begun": {"missing": 1.0},
}


@pytest.mark.parametrize("changes", ODD.values(), ids=ODD)
def test_odd_studies_load_without_an_error(tab, tmp_path, changes):
    folder = tmp_path / "study"
    made_up_study.write(folder, **{"sizes": (50, 100), "seeds": 2, "n_test": 15, "n_val": 9, **changes})
    address = run_report(folder).as_uri()
    tab.log("browser")
    tab.open(address)
    tab.settle()
    assert tab.log("browser") == []
    links = tab.run("return [...document.querySelectorAll('.contents a')].map((a) => a.hash.slice(1))")
    assert links == tab.run("return [...document.querySelectorAll('section')].map((s) => s.id)")
    assert tab.run("return [...document.querySelectorAll('svg *')].filter(n => /NaN/.test(n.outerHTML)).length") == 0


def test_names_cannot_break_the_page(tab, tmp_path):
    name, folder = """'"]</script><img src="http://x.y/z">$`\\""", tmp_path / "study"
    made = made_up_study.write(folder, targets=("band_gap",), sizes=(50, 100), seeds=2, n_test=15, n_val=9)
    table = made.crystals("band_gap")
    for path in (folder / "study.json", folder / "results.csv"):
        quoted = json.dumps(name) if path.suffix == ".json" else '"' + name.replace('"', '""') + '"'
        path.write_text(path.read_text().replace('"band_gap"', quoted).replace(",band_gap,", f",{quoted},"))
    rows = ["id,formula,value", *(f'"<b>{i}","<i>O",{v}' for i, v in zip(table.ids, table.values, strict=True))]
    (folder / "crystals" / f"{file_name(name)}.csv").write_text("\n".join(rows) + "\n")
    tab.log("browser")
    tab.open(run_report(folder).as_uri())
    tab.settle()
    assert tab.log("browser") == []
    assert tab.run("return document.querySelectorAll('img, i:not([class]), h3 *, .tip *').length") == 0
    assert tab.run("return document.querySelector('.panel h3').textContent") == name
    tab.run("document.querySelector('[data-chart=\"parity\"] svg').focus()")
    tab.press(RIGHT)
    assert tip(tab)[0].startswith("<b>mp-") and tip(tab)[0].endswith("<i>O")
