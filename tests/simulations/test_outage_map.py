"""The offline map of a forecast: what the page says, and what it does in a real browser."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape

import pytest
import torch

from graphcl.errors import DataError
from simulations.report.outage_map import DistrictTotal, MapData, write_outage_map

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--enable-logging=stderr",
    "--v=0",
    "--window-size=1200,1000",
    "--virtual-time-budget=2000",
)


def forecast(num_locations=6, names=("North", "South", "East"), **changes):
    """A storm over a diagonal of locations, whose districts take turns."""
    index = torch.arange(num_locations)
    district = [names[i % len(names)] for i in range(num_locations)]
    held = list(dict.fromkeys(district))
    data = MapData(
        title="Storm Ada",
        unit="customers",
        location=[f"village {i}" for i in range(num_locations)],
        district=district,
        latlon=torch.stack([24 + index / num_locations, 121 + index / num_locations], dim=1),
        expected=10.0 ** (index % 5) / 8,
        low=torch.zeros(num_locations),
        high=10.0 ** (index % 5),
        level=0.9,
        customers=500 + index,
        district_totals=[
            DistrictTotal(name, 1000.4 * (i + 1), 500.0 * (i + 1), 3000.0 * (i + 1))
            for i, name in enumerate(held)
        ],
        total=DistrictTotal("all districts", 12345.6, 9800, 15200),
        borders=torch.stack([index[:-1], index[1:]]),
    )
    return replace(data, **changes)


def replaced(values, row, value):
    values = values.clone()
    values[row] = value
    return values


@pytest.fixture
def page(tmp_path):
    """Return a writer of a forecast's page as text."""

    def write(data):
        path = write_outage_map(tmp_path / "map.html", data)
        assert path == tmp_path / "map.html"
        return path.read_text(encoding="utf-8")

    return write


def embedded(html):
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    return json.loads(text)


def rows(html):
    """The cells of the districts' table, from its body."""
    body = html[html.index("<tbody>") : html.index("</tbody>")]
    return [
        [unescape(cell) for cell in re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row)]
        for row in body.split("<tr>")[1:]
    ]


def test_the_total_and_its_interval_stand_in_the_page(page):
    html = page(forecast())
    assert "<h1>Storm Ada</h1>" in html
    assert "Expected customers, all districts" in html
    assert "12,346<small>90\N{NO-BREAK SPACE}% interval 9,800 to 15,200</small>" in html


def test_every_district_stands_in_the_table_largest_first(page):
    assert rows(page(forecast())) == [
        ["East", "3,001", "1,500", "9,000"],
        ["South", "2,001", "1,000", "6,000"],
        ["North", "1,000", "500", "3,000"],
    ]


def test_small_numbers_keep_their_decimals(page):
    totals = [DistrictTotal("North", 0.25, 0, 9.5), DistrictTotal("South", 3.0, 0.004, 10.2)]
    html = page(forecast(4, ("North", "South"), district_totals=totals))
    assert rows(html) == [["South", "3", "0", "10"], ["North", "0.25", "0", "9.5"]]


def test_the_data_hold_every_location_in_order(page):
    data = embedded(page(forecast(observed=torch.tensor([0, 2, 0, 4, 1, 1]))))
    assert data["location"] == [f"village {i}" for i in range(6)]
    assert [data["districts"][i] for i in data["district"]] == ["North", "South", "East"] * 2
    assert data["expected"] == [0.12, 1.25, 12.5, 125, 1250, 0.12]
    assert data["low"] == [0] * 6
    assert data["high"] == [1, 10, 100, 1000, 10000, 1]
    assert data["customers"] == [500, 501, 502, 503, 504, 505]
    assert data["observed"] == [0, 2, 0, 4, 1, 1]
    assert data["lat"] == [24, 24.1667, 24.3333, 24.5, 24.6667, 24.8333]
    assert data["lon"] == [121, 121.1667, 121.3333, 121.5, 121.6667, 121.8333]


def test_neighbours_in_both_directions_are_one_line(page):
    borders = torch.tensor([[0, 1, 3, 2, 2], [1, 0, 2, 3, 2]])
    html = page(forecast(borders=borders))
    assert embedded(html)["borders"] == [[0, 1], [2, 3]]
    assert "Lines join neighbouring locations." in html


def test_a_map_without_borders_does_not_speak_of_them(page):
    html = page(forecast(borders=torch.empty(2, 0, dtype=torch.int64)))
    assert embedded(html)["borders"] == []
    assert "neighbouring" not in html


def test_borders_that_are_too_many_are_left_out_and_counted(page):
    first = torch.arange(350).repeat_interleave(350)
    html = page(forecast(350, borders=torch.stack([first, torch.arange(350).repeat(350)])))
    assert embedded(html)["borders"] == []
    assert "The 61,075 borders between locations are too many to draw." in html


def test_observed_counts_are_shown_only_where_given(page):
    assert "Observed" not in page(forecast())
    html = page(forecast(observed=torch.tensor([0, 2, 0, 4, 1, 1])))
    assert "Observed customers</dt>\n  <dd>8</dd>" in html
    assert [row[-1] for row in rows(html)] == ["1", "3", "4"]
    assert 'value="observed"' in html


def test_one_location_without_outages_is_a_map(page):
    one = forecast(1, expected=torch.zeros(1), high=torch.zeros(1))
    html = page(replace(one, district_totals=[DistrictTotal("North", 0, 0, 0)]))
    assert embedded(html)["expected"] == [0]
    assert rows(html) == [["North", "0", "0", "0"]]
    assert "1 district<" in html


@pytest.mark.parametrize(
    "name", ["</script><script>alert(1)</script>", '"><img src=x onerror=y> & {{ 7*7 }}', "<!--"]
)
def test_names_never_become_markup(page, name):
    data = forecast(4, (name, "South"), title=name, unit=name)
    html = page(replace(data, location=[name] * 4, total=DistrictTotal(name, 1, 0, 2)))
    assert name not in html
    assert len(re.findall("<script", html)) == len(re.findall("</script>", html)) == 2
    assert embedded(html)["location"] == [name] * 4
    assert name in embedded(html)["districts"]
    assert name in [row[0] for row in rows(html)]


def test_the_page_loads_nothing(page):
    html = page(forecast())
    assert not re.search(r"https?:|\bsrc=|\bhref=|@import|url\(", html)
    assert not re.search(r"<(link|img|iframe|object|embed|base)\b", html)


def test_the_policy_allows_the_pages_own_script_and_no_other(page):
    html = page(forecast())
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'"Content-Security-Policy" content="([^"]*)"', html)
    assert policy == (
        "default-src 'none'; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


def test_the_map_waits_for_javascript_and_says_so(page):
    html = page(forecast())
    assert '<figure id="figure" hidden>' in html
    assert "<noscript><p" in html


def test_the_same_forecast_gives_the_same_bytes_and_leaves_nothing_else(page, tmp_path):
    first = page(forecast())
    assert page(forecast()) == first
    assert [path.name for path in tmp_path.iterdir()] == ["map.html"]
    assert str(tmp_path) not in first


def test_a_whole_country_is_a_small_file(page):
    rng = torch.Generator().manual_seed(0)
    expected = 1000 * torch.rand(8000, generator=rng)
    neighbours = torch.randint(8000, (2, 20_000), generator=rng)
    data = forecast(8000, expected=expected, low=expected / 3, high=3 * expected)
    html = page(replace(data, borders=neighbours, observed=expected))
    assert len(embedded(html)["expected"]) == 8000
    assert len(html.encode()) < 1_000_000


@pytest.mark.parametrize("field", ["expected", "low", "high", "customers", "observed"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_a_count_that_is_none_is_named_with_its_location(field, value):
    counts = replaced(torch.ones(6), 4, value)
    with pytest.raises(DataError, match=rf"{field}\[4\] is .* at location village 4"):
        forecast(**{field: counts})


def test_a_place_that_is_none_is_named_with_its_location():
    latlon = forecast().latlon
    for place in ([121.0, 24.0], [24.0, 181.0], [float("nan"), 121.0]):
        with pytest.raises(DataError, match=r"latlon\[2\] is .* at location village 2"):
            forecast(latlon=replaced(latlon, 2, torch.tensor(place)))


def test_an_interval_whose_bounds_are_swapped_is_named():
    with pytest.raises(DataError, match=r"low\[0\] is 5.0 at location village 0 .*swap"):
        forecast(low=replaced(torch.zeros(6), 0, 5.0))
    with pytest.raises(DataError, match="total of North: low is 3, above high, 2"):
        DistrictTotal("North", 1, 3, 2)


@pytest.mark.parametrize("value", [float("nan"), -1.0])
def test_a_total_that_is_none_is_named(value):
    with pytest.raises(DataError, match="total of North: expected is"):
        DistrictTotal("North", value, 0, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expected": torch.ones(5)}, r"expected has shape \[5\], must be \[6\]"),
        ({"latlon": torch.ones(6, 3)}, r"latlon has shape \[6, 3\], must be \[6, 2\]"),
        ({"district": ["North"] * 5}, "district has 5 entries for 6 locations"),
        ({"borders": torch.ones(3, 2)}, r"borders has shape \[3, 2\], must be \[2, B\]"),
        ({"borders": torch.tensor([[0], [6]])}, r"borders\[1, 0\] is 6, .* 0 to 5"),
        ({"level": 90}, "level is 90, must lie between 0 and 1"),
        ({"location": []}, "location is empty"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    with pytest.raises(DataError, match=message):
        forecast(**changes)


def test_every_district_needs_one_total_and_every_total_a_district():
    totals = forecast().district_totals
    with pytest.raises(DataError, match="district East has a location but no total"):
        forecast(district_totals=totals[:2])
    with pytest.raises(DataError, match="district West has a total but no location"):
        forecast(district_totals=[*totals, DistrictTotal("West", 1, 0, 2)])
    with pytest.raises(DataError, match="South has several totals"):
        forecast(district_totals=[*totals, totals[1]])


@pytest.fixture
def browse(page, tmp_path):
    """Open a forecast's page and run a script in it; return its DOM and its console."""

    def browse(data, script=""):
        html = page(data)
        if script:
            html = re.sub(r"script-src '[^']*'", "script-src 'unsafe-inline'", html)
            html = html.replace("<script>", f"<script>{TIMERS}</script><script>")
            html = html.replace("</body>", f"<script>{script}</script></body>")
        (tmp_path / "map.html").write_text(html, encoding="utf-8")
        command = [BROWSER, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
        done = subprocess.run(
            [*command, (tmp_path / "map.html").as_uri()],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout, re.findall(r".*CONSOLE.*", done.stderr)

    if BROWSER is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the path")
    return browse


def test_the_page_renders_silently_in_a_browser(browse):
    dom, console = browse(forecast(location=["</script>"] * 6))
    assert console == []
    assert '<figure id="figure">' in dom
    assert '<span id="legend">expected customers</span>' in dom
    ticks = dom[dom.index('id="ticks"') : dom.index("</figcaption>")]
    assert re.findall("<span>(.*?)</span>", ticks) == [
        "≤ 1",
        "10",
        "100",
        "1,000",
        "10,000",
    ]


# A headless browser's virtual time does not wait for frames.
TIMERS = "window.requestAnimationFrame = (act) => setTimeout(act);"
USE = """
const said = [], say = (...words) => said.push(words.join(" "));
const key = (key) => map.dispatchEvent(new KeyboardEvent("keydown", { key, cancelable: true }));
const names = () => [...document.querySelectorAll("tbody th")].map((cell) => cell.textContent);
const map = document.getElementById("map");
const picture = () => new Promise((done) => setTimeout(() => done(map.toDataURL()), 50));
const at = (across, make) => {
  const box = map.getBoundingClientRect();
  const clientX = box.left + across * box.width, clientY = box.top + box.height / 2;
  map.dispatchEvent(make({ clientX, clientY, cancelable: true, isPrimary: true }));
};
const hover = (across) => at(across, (where) => new PointerEvent("pointermove", where));
const wheel = (across, deltaY) => at(
  across, (where) => new WheelEvent("wheel", { ...where, deltaY }));
(async () => {
  const blank = Object.assign(document.createElement("canvas"),
    { width: map.width, height: map.height });
  say("painted", blank.toDataURL() !== await picture());

  hover(0.1);
  say(document.getElementById("readout").textContent.split("\\n")[0]);
  hover(0.5);
  say(document.getElementById("readout").textContent.replaceAll("\\n", "; "));
  for (let i = 0; i < 9; i++) key("ArrowUp");
  say(document.getElementById("readout").textContent.split("\\n")[0]);
  key("0");

  const before = await picture();
  document.querySelector("tbody th button").click();
  say("pressed", document.querySelector("[aria-pressed=true]").textContent);
  say("highlight shows", before !== await picture());
  document.querySelector("tbody th button").click();
  say("and goes", before === await picture());

  document.querySelector("thead th button").click();
  say(names());
  document.querySelector("thead th button").click();
  say(names());
  document.querySelectorAll("thead th button")[1].click();
  document.querySelectorAll("thead th button")[1].click();
  say(names(), document.querySelectorAll("thead th")[1].getAttribute("aria-sort"));

  document.querySelector("[value=share]").click();
  say(document.getElementById("legend").textContent);
  say("view shows", before !== await picture());
  document.querySelector("[value=expected]").click();

  wheel(0.2, -100);
  say("wheel shows", before !== await picture());
  wheel(0.2, 100);
  document.getElementById("all").click();
  document.getElementById("in").click();
  say("zoom shows", before !== await picture());
  document.getElementById("all").click();
  say("and goes", before === await picture());
  document.body.append(Object.assign(
    document.createElement("pre"), { id: "said", textContent: said.join("\\n") }));
})();
"""


def test_the_controls_do_what_they_say(browse):
    latlon = torch.tensor([[24.0, 121.0], [24.5, 121.5], [25.0, 122.0]])
    dom, console = browse(forecast(3, latlon=latlon), USE)
    assert console == []
    (said,) = re.findall(r'<pre id="said">(.*?)</pre>', dom, re.S)
    assert unescape(said).splitlines() == [
        "painted true",
        "Point at a location,",
        "village 1 · South; expected 1.25 customers; 90\N{NO-BREAK SPACE}% interval 0 to 10; "
        "501 customers served, share 0.25 %",
        "village 2 · East",
        "pressed East",
        "highlight shows true",
        "and goes true",
        "South,North,East",
        "East,North,South",
        "North,South,East ascending",
        "expected customers in % of customers served",
        "view shows true",
        "wheel shows true",
        "zoom shows true",
        "and goes true",
    ]
