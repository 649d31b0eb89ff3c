"""Pictures, the report's figures, and the cloud that turns, in a real browser."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from chromium import Browser
from PIL import Image

from pegboard.evaluation import join_rows
from pegboard.records import Batch, Evaluation, Figure
from pegboard.stages.report import picture
from pegboard_lidar import cloud_page, figures, metrics, pictures
from pegboard_lidar.average_precision import LEVELS
from pegboard_lidar.cloud_page import Cloud, cloud_html
from pegboard_lidar.settings import LidarSettings

Array = Any
Object = tuple[tuple[float, ...], str, int]
Found = tuple[tuple[float, ...], float, int]

SIZES = ((4.0, 1.8, 1.5), (0.8, 0.6, 1.8), (1.8, 0.6, 1.7))
CAR, PEDESTRIAN, CYCLIST = range(3)
NASTY = '<b>&"$x_1$</script>\u5212\u75d5'
NOTHING = np.zeros((0, 3))


def settings(**data: Any) -> LidarSettings:
    """72 m ahead and 40 m to either side, whatever is usual."""
    data = {"range": (0.0, -40.0, -3.0, 72.0, 40.0, 1.0)} | data
    return LidarSettings.model_validate({"data": data, "model": {"objects": 10, "pillar": 0.25}})


def box(x: float, y: float = 0.0, yaw: float = 0.0, *, label: int = CAR) -> tuple[float, ...]:
    return (x, y, -0.8, *SIZES[label], yaw)


def boxes(*some: tuple[float, ...]) -> Array:
    return np.array(some)


def is_color(picture: Array, color: tuple[int, int, int], tolerance: int = 30) -> Array:
    return (np.abs(picture.astype(int) - color) <= tolerance).all(axis=-1)


def middle(mask: Array) -> tuple[float, float]:
    """Row and column about which a mask lies."""
    rows, columns = np.nonzero(mask)
    return (rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2


# --- From above -----------------------------------------------------------------------------------


def test_ahead_is_up_left_is_left_and_a_metre_is_as_long_either_way() -> None:
    one = settings()
    picture = pictures.birds_eye(one, NOTHING, boxes(box(36, 20, label=CAR)))
    assert picture.shape == (576, 640, 3) and picture.dtype == np.uint8
    row, column = middle(is_color(picture, pictures.TRUE))
    assert column == pytest.approx(160, abs=3)
    assert row == pytest.approx(288, abs=8)  # Its nose makes it longer ahead.
    turned = pictures.birds_eye(one, NOTHING, boxes(box(36, 20, np.pi / 2, label=CAR)))
    heights, widths = zip(
        *[np.ptp(np.nonzero(is_color(seen, pictures.TRUE)), axis=1) for seen in (picture, turned)],
        strict=True,
    )
    assert heights[0] == pytest.approx(widths[1], abs=2) and heights[0] > 1.5 * widths[0]


def test_a_line_leads_from_the_front_of_a_box() -> None:
    places = {}
    for name, yaw in (("ahead", 0.0), ("left", np.pi / 2)):
        picture = pictures.birds_eye(settings(), NOTHING, boxes(box(36, 0, yaw)))
        places[name] = middle(is_color(picture, pictures.TRUE))
    assert places["ahead"][0] < 288 - 2 and abs(places["ahead"][1] - 320) < 2
    assert places["left"][1] < 320 - 2 and abs(places["left"][0] - 288) < 2


def test_true_and_found_boxes_have_a_colour_each() -> None:
    nothing = pictures.birds_eye(settings(), NOTHING)
    assert not is_color(nothing, pictures.TRUE).any()
    assert not is_color(nothing, pictures.FOUND).any()
    both = pictures.birds_eye(settings(), NOTHING, boxes(box(20, 10)), boxes(box(20, -10)))
    assert middle(is_color(both, pictures.TRUE))[1] < 320
    assert middle(is_color(both, pictures.FOUND))[1] > 320


def test_points_lie_where_they_are_and_the_high_ones_are_brighter() -> None:
    low, high = np.array([[50.0, 20.0, -1.9]]), np.array([[50.0, 20.0, 0.9]])
    nothing = pictures.birds_eye(settings(), NOTHING).astype(int)
    brightness = []
    for point in (low, high):
        changed = pictures.birds_eye(settings(), point).astype(int) - nothing
        assert middle(changed.any(axis=-1)) == pytest.approx((176, 160), abs=1.5)
        brightness.append(changed.sum())
    assert brightness[1] > brightness[0] > 0


def test_what_is_not_finite_or_out_of_range_is_not_drawn() -> None:
    nothing = pictures.birds_eye(settings(), NOTHING)
    points = np.array([[np.nan, 0, 0], [np.inf, 0, 0], [10, 50, 0], [10, 0, 9], [-4, 0, 0]])
    broken = boxes(box(np.nan), box(10, np.inf))
    picture = pictures.birds_eye(settings(), points, broken, broken, true_names=["one", "two"])
    assert np.array_equal(picture, nothing)


def test_names_stay_with_their_boxes_and_none_lies_over_another() -> None:
    crowd = boxes(*[box(30, 0)] * 3)

    def drawn(*names: str) -> int:
        picture = pictures.birds_eye(settings(), NOTHING, None, crowd, found_names=names)
        return int(is_color(picture, pictures.FOUND, 120).sum())

    letters = drawn("0.88") - drawn()
    assert letters > 30
    assert drawn("0.88", "0.88", "0.88") - drawn() == pytest.approx(3 * letters, rel=0.2)
    # The first box is nowhere: its name must not go to the second.
    picture = pictures.birds_eye(
        settings(), NOTHING, boxes(box(np.nan), box(30)), true_names=["long name", ""]
    )
    alone = pictures.birds_eye(settings(), NOTHING, boxes(box(30)))
    assert np.array_equal(picture, alone)


def test_heat_of_the_hottest_class_is_laid_where_it_is() -> None:
    heat = np.zeros((3, 144, 160), dtype=np.float32)
    heat[1, 100:104, 120:124] = 1.0  # 50 to 52 m ahead, 20 to 22 m to the left.
    nothing = pictures.birds_eye(settings(), NOTHING).astype(int)
    changed = pictures.birds_eye(settings(), NOTHING, heat=heat).astype(int) - nothing
    assert middle(np.abs(changed).sum(axis=-1) > 100) == pytest.approx((168, 152), abs=2)


# --- As the scanner sees it, and in space ---------------------------------------------------------


def wall(x: float, left: float, right: float) -> Array:
    """Points of a wall across, as beams would meet it."""
    azimuth, elevation = np.meshgrid(
        np.arctan2(np.linspace(right, left, 300), x), np.linspace(-0.2, 0.1, 40)
    )
    return np.stack(
        [
            np.full(azimuth.size, x),
            x * np.tan(azimuth).ravel(),
            x / np.cos(azimuth).ravel() * np.tan(elevation).ravel(),
        ],
        axis=1,
    )


def test_in_a_range_image_left_is_left_and_near_is_bright() -> None:
    points = np.concatenate([wall(10, 10, 1), wall(50, -5, -50), [[np.nan, 0, 0]]])
    picture = pictures.range_image(points).astype(int)
    assert picture.shape == (256, 1024, 3)
    left, right = picture[128, 100:400].sum(axis=-1), picture[128, 700:1000].sum(axis=-1)
    assert left.min() > right.max() + 100
    # Between them nothing came back.
    assert is_color(picture, pictures.BACKGROUND, 3)[128, 512]


def test_a_thinned_scan_leaves_few_holes_in_its_range_image() -> None:
    points = wall(20, 20, -20)
    kept = np.random.default_rng(0).choice(len(points), 1500, replace=False)
    holes = is_color(pictures.range_image(points[kept]), pictures.BACKGROUND, 3)
    assert holes[32:-32, 64:-64].mean() < 0.03
    fine = is_color(pictures.range_image(points[kept], coarser=1.0), pictures.BACKGROUND, 3)
    assert fine[32:-32, 64:-64].mean() > 0.1


def test_in_space_what_is_far_is_small_and_what_is_behind_is_cut() -> None:
    def drawn(*some: tuple[float, ...]) -> Array:
        return is_color(pictures.perspective(settings(), NOTHING, boxes(*some)), pictures.TRUE, 60)

    near, far = drawn(box(8, 3)), drawn(box(40, 3))
    assert near.sum() > 2 * far.sum() > 0
    assert middle(far)[0] < middle(near)[0] and middle(near)[1] < 480
    assert not drawn(box(-60)).any()
    through = (-14.0, 0.0, 9.0, 20.0, 1.0, 1.0, 0.0)  # From behind the eye to before it.
    assert pictures.perspective(settings(), NOTHING, boxes(through)).shape == (480, 960, 3)


def test_an_empty_scan_has_pictures() -> None:
    assert pictures.range_image(NOTHING).shape == (256, 1024, 3)
    assert pictures.perspective(settings(), NOTHING).shape == (480, 960, 3)
    file = pictures.png_bytes(pictures.birds_eye(settings(), NOTHING))
    assert Image.open(io.BytesIO(file)).size == (640, 576)


def test_a_real_car_is_drawn_where_its_points_are(test_data: Path) -> None:
    path = test_data / "lidar" / "kitti_object_mini"
    if not path.is_dir():
        pytest.skip(f"no KITTI frames at {path}")
    from pegboard_lidar.boxes import points_in_boxes
    from pegboard_lidar.layouts import read_frame_labels, read_frames, read_points

    one = LidarSettings.model_validate({"data": {"path": path}})
    frame = next(frame for frame in read_frames(one.data) if frame.key == "000003")
    points, labels = read_points(frame, one.data), read_frame_labels(frame, one.data)
    car = labels.boxes[[name == "Car" for name in labels.names]][:1]
    nothing = pictures.birds_eye(one, NOTHING)
    inside = points_in_boxes(points, car)[0]
    dots = (pictures.birds_eye(one, points[inside]) != nothing).any(axis=-1)
    outline = is_color(pictures.birds_eye(one, NOTHING, car), pictures.TRUE)
    assert dots.sum() > 100
    rows, columns = np.nonzero(outline)
    frame_of_it = np.zeros_like(dots)
    frame_of_it[rows.min() - 1 : rows.max() + 2, columns.min() - 1 : columns.max() + 2] = True
    assert not (dots & ~frame_of_it).any()


# --- Figures --------------------------------------------------------------------------------------


def row(
    true: Sequence[Object] = (),
    found: Sequence[Found] = (),
    *,
    key: str = "k",
    points: Array | None = None,
    one: LidarSettings | None = None,
) -> dict[str, Array]:
    """One frame: objects (box, name, difficulty) and what is found (box, score, label)."""
    one = one or settings()
    places = {name: place for place, name in enumerate(one.data.classes)}
    listed = np.full((1, max(1, len(found)), 9), -1.0, dtype=np.float32)
    for place, (shape, score, label) in enumerate(found):
        listed[0, place] = (*shape, score, label)
    batch = Batch(
        inputs={"points": torch.from_numpy(np.zeros((1, 5, 4)) if points is None else points)},
        targets={
            "boxes": torch.tensor([[shape for shape, _, _ in true]]).reshape(1, -1, 7),
            "labels": torch.tensor([[places.get(name, -1) for _, name, _ in true]]),
            "names": [[name for _, name, _ in true]],
            "difficulty": [np.array([level for *_, level in true], dtype=np.int64)],
        },
        keys=[key],
    )
    return metrics.tabulate(one, batch, {"found": listed})


def evaluation(rows: dict[str, Array], **thresholds: float) -> Evaluation:
    return Evaluation(name="model", split="test", rows=rows, thresholds=thresholds, metrics=[])


def street() -> dict[str, Array]:
    """Three frames: all right; a miss; a miss and two false ones. Cars at 5, 15 and 25 m."""
    cars = [(box(x), "Car", 0) for x in (5, 15, 25)]
    hits = [(box(x + 0.3), 0.9, CAR) for x in (5, 15, 25)]
    false = [(box(40, 10), 0.8, CAR), (box(40, -10), 0.7, PEDESTRIAN)]
    return join_rows(
        [
            row(cars, hits, key="right"),
            row(cars, hits[:2], key="missed"),
            row(cars, [*hits[:2], *false], key="worst"),
        ]
    )


@pytest.fixture(scope="module")
def drawn_street() -> dict[str, str]:
    """Its figures by their names; a baseline that is as good stands beside the model."""
    model = evaluation(street())
    every = figures.draw(settings(), replace(model, baselines=[replace(model, name="clusters")]))
    return {figure.name: str(figure.content) for figure in every}


def found(one: LidarSettings, rows: dict[str, Array], **thresholds: float) -> dict[str, Figure]:
    every = figures.draw(one, evaluation(rows, **thresholds))
    return {figure.name: figure for figure in every}


def pair(rows: dict[str, Array], frame: int = 0, **thresholds: float) -> figures.Pairs:
    return figures.pair(settings().data.classes, rows, thresholds, frame)


def counts(one: figures.Pairs) -> tuple[int, int]:
    return len(one.missed), len(one.false)


def test_misses_and_false_objects_are_counted() -> None:
    assert [counts(pair(street(), frame)) for frame in range(3)] == [(0, 0), (1, 0), (1, 2)]


def test_what_is_below_the_chosen_score_is_not_reported() -> None:
    assert counts(pair(street(), 2, score_Car=0.85, score_Pedestrian=0.85)) == (1, 0)
    assert counts(pair(street(), 2, score_Car=0.95)) == (3, 1)


def test_one_found_object_is_not_two_and_two_are_not_one() -> None:
    near = [(box(10), "Car", 0), (box(10.6), "Car", 0)]
    assert counts(pair(row(near, [(box(10.3), 0.9, CAR)]))) == (1, 0)
    assert counts(pair(row(near[:1], [(box(10.3), 0.9, CAR), (box(10), 0.8, CAR)]))) == (0, 1)


def test_a_van_is_no_miss_and_whoever_finds_it_is_not_false() -> None:
    assert counts(pair(row([(box(10), "Van", -1)]))) == (0, 0)
    assert counts(pair(row([(box(10), "Van", -1)], [(box(10), 0.9, CAR)]))) == (0, 0)
    # Too hard to be missed, and yet there.
    assert counts(pair(row([(box(10), "Car", 2)]))) == (0, 0)
    assert counts(pair(row([(box(10), "Car", 2)], [(box(10), 0.9, CAR)]))) == (0, 0)
    # Another class that is looked for is another thing.
    assert counts(pair(row([(box(10), "Car", 0)], [(box(10), 0.9, CYCLIST)]))) == (1, 1)


def test_frames_are_shown_by_their_mistakes(drawn_street: dict[str, str]) -> None:
    content = drawn_street["frames"]
    keys = re.findall(r"<small>(\w+)</small>", content)
    assert keys == ["worst", "missed", "right"]
    assert "1 missed, 2 false, of 3" in content
    encoded = re.findall(r"base64,([^\"]+)", content)
    picture = np.array(Image.open(io.BytesIO(base64.b64decode(encoded[0]))))
    assert is_color(picture, pictures.TRUE).any() and is_color(picture, pictures.FOUND).any()


def test_recall_is_counted_by_distance() -> None:
    there, hits = figures._by_distance(("Car", "Pedestrian"), evaluation(street()))
    assert there.tolist() == [[3, 3, 3], [0, 0, 0]]
    assert hits.tolist() == [[3, 3, 1], [0, 0, 0]]


def test_the_table_says_what_the_metrics_say(drawn_street: dict[str, str]) -> None:
    rows, content = street(), drawn_street["difficulties"]
    cells = re.search(r"Car, BEV 0.5</td>(.*?)</tr>", content)
    assert cells is not None
    expected = [
        f"{100 * metrics.kitti('Car', 'bev', 0.5, rows, level=level):.1f}"
        for level in range(len(LEVELS))
    ]
    assert re.findall(r">([\d.]+)<", cells[1]) == expected * 2
    assert "Pedestrian" not in content  # There are none.


def test_errors_are_those_of_found_objects() -> None:
    backwards = (10.3, 0.4, -0.7, 4.2, 1.8, 1.5, np.pi - 0.1)
    model = evaluation(row([(box(10), "Car", 0)], [(backwards, 0.9, CAR)]))
    figure = figures.errors(settings(), model, [pair(dict(model.rows))])
    assert figure is not None
    line = str(figure.content).split("<td>Car</td>")[1]
    told = re.findall(r">([^<>]+)</td>", line)
    assert told == ["1", "0.50", "0.10", "0.20", "0.00", "0.00", "5.7\u00b0", "100 %"]


def test_baselines_stand_beside_the_model(drawn_street: dict[str, str]) -> None:
    for name in ("precision_recall", "recall_by_distance", "difficulties"):
        assert "clusters" in drawn_street[name]
    alone = figures.precision_recall(settings(), evaluation(street()))
    assert alone is not None and "clusters" not in str(alone.content)


def test_frames_without_objects_have_pictures_and_no_curves() -> None:
    assert set(found(settings(), row())) == {"frames", "as_seen", "turning"}


def test_a_strange_class_name_breaks_no_figure() -> None:
    one = settings(classes=(NASTY,))
    rows = row([(box(10), NASTY, 0)], [(box(10), 0.9, 0)], key=NASTY, one=one)
    for figure in found(one, rows).values():
        content = str(figure.content)
        # The one script ends once.
        assert content.count("</script>") == (figure.name == "turning")
        assert "<b>" not in content
        if content.startswith("<svg"):
            ElementTree.fromstring(content)


def test_a_report_of_many_frames_stays_small() -> None:
    generator = np.random.default_rng(0)
    points = generator.uniform((0, -40, -2, 0), (70, 40, 1, 1), (1, 20_000, 4))
    rows = join_rows([row(key=str(number), points=points) for number in range(12)])
    every = found(settings(), rows)
    assert len(re.findall('"key":', str(every["turning"].content))) == figures.WORST + 2
    assert sum(len(figure.content) for figure in every.values()) < 2.5e6


# --- The cloud ------------------------------------------------------------------------------------


def test_points_are_told_in_centimetres() -> None:
    points = np.array([[1.234, -5.5, 0.25, 7], [np.nan, 0, 0, 0], [400, 0, 0, 0], [-2, 3, 1, 0]])
    told = json.loads(
        re.findall(r"const clouds = (.*);\n", cloud_html([Cloud(key="k", points=points)]))[0]
    )
    packed = np.frombuffer(base64.b64decode(told[0]["points"]), dtype="<i2").reshape(-1, 3)
    assert packed.tolist() == [[123, -550, 25], [-200, 300, 100]]
    assert told[0]["true"] == told[0]["found"] == []


def test_no_name_ends_the_script() -> None:
    one = Cloud(key=NASTY, points=NOTHING, true=boxes(box(9)), true_names=[NASTY])
    content = cloud_html([one])
    assert content.count("</script>") == 1
    told = json.loads(re.findall(r"const clouds = (.*);\n", content)[0])
    assert told[0]["key"] == told[0]["true"][0]["name"] == NASTY


def test_nothing_is_fetched_from_anywhere() -> None:
    page = cloud_page.page([Cloud(key="k", points=NOTHING)], "title")
    assert not re.search(r"https?:|src=|href=|@import|fetch\(|import\(", page)


def test_the_report_takes_the_script_as_it_is() -> None:
    content = cloud_html([Cloud(key="k", points=NOTHING)])
    assert str(picture(content)) == content


# --- In a browser ---------------------------------------------------------------------------------

COUNT = """(([canvas, red, green, blue]) => {
    const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    let count = 0;
    for (let i = 0; i < data.length; i += 4)
        count += Math.abs(data[i] - red) + Math.abs(data[i + 1] - green)
            + Math.abs(data[i + 2] - blue) < 30;
    return count;
})"""


def problems(browser: Browser) -> list[str]:
    # Only the tests read pixels back.
    return [message for message in browser.problems() if "willReadFrequently" not in message]


def shown(browser: Browser, number: int = 0) -> str:
    """Return what a canvas shows once all that waits for the next frame is drawn."""
    browser.wait_for_frame()
    return str(browser.run(f"document.querySelectorAll('.cloud canvas')[{number}].toDataURL()"))


def pixels(browser: Browser, color: tuple[int, int, int]) -> int:
    """Count the pixels of a colour in the first canvas."""
    browser.wait_for_frame()
    asked = f"[document.querySelector('.cloud canvas'), {list(color)}].flat()"
    return int(browser.run(f"{COUNT}({asked})"))


def drag(browser: Browser, across: int, down: int) -> None:
    browser.act(
        "pointer",
        {"type": "pointerMove", "x": 400, "y": 300},
        {"type": "pointerDown", "button": 0},
        {"type": "pointerMove", "x": 400 + across, "y": 300 + down, "duration": 50},
        {"type": "pointerUp", "button": 0},
    )


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """Two pieces in one page: of two frames, and of one."""
    points = np.random.default_rng(0).uniform((2, -15, -2), (40, 15, 1), (3000, 3))
    one = Cloud(
        key="first",
        points=points,
        true=boxes(box(12, 3), box(20, -4)),
        true_names=["Car", NASTY],
        found=boxes(box(12.2, 3)),
        found_names=["Car 0.90"],
    )
    other = Cloud(key="second", points=points[:50], found=boxes(box(15)))
    file = tmp_path / "page.html"
    file.write_text(
        cloud_page.page([one, other], NASTY).replace("</html>", cloud_html([other]) + "</html>"),
        encoding="utf-8",
    )
    return file


def test_a_cloud_turns_when_it_is_dragged_and_only_that_one(browser: Browser, page: Path) -> None:
    browser.open(page.as_uri())
    first, second = shown(browser, 0), shown(browser, 1)
    assert first != second
    drag(browser, 120, 0)
    turned = shown(browser, 0)
    assert turned != first
    drag(browser, -120, 0)
    assert shown(browser, 0) == first  # And back.
    drag(browser, 0, 60)
    assert shown(browser, 0) not in (first, turned)
    assert shown(browser, 1) == second
    assert browser.run("document.title") == NASTY
    assert problems(browser) == []


def test_the_wheel_brings_it_nearer_and_keys_do_the_same(browser: Browser, page: Path) -> None:
    browser.open(page.as_uri())
    first = shown(browser)
    before = pixels(browser, pictures.TRUE)
    wheel = {"type": "scroll", "x": 400, "y": 300, "deltaX": 0, "deltaY": -100}
    browser.act("wheel", wheel, wheel)
    assert pixels(browser, pictures.TRUE) > before
    assert browser.run("window.scrollY") == 0
    browser.run("document.querySelector('.cloud canvas').focus()")
    for key in ("\ue00c", "\ue012"):  # Escape, arrow to the left.
        browser.act("key", {"type": "keyDown", "value": key}, {"type": "keyUp", "value": key})
        assert (shown(browser) == first) == (key == "\ue00c")
    assert problems(browser) == []


def test_two_fingers_that_part_bring_it_nearer(browser: Browser, page: Path) -> None:
    browser.open(page.as_uri())
    lines = pixels(browser, pictures.TRUE)
    for kind, apart in (("touchStart", 40), ("touchMove", 120), ("touchEnd", None)):
        fingers = [] if apart is None else [(400 - apart, 300, 0), (400 + apart, 300, 1)]
        points = [{"x": x, "y": y, "id": number} for x, y, number in fingers]
        browser.command("Input.dispatchTouchEvent", type=kind, touchPoints=points)
    assert pixels(browser, pictures.TRUE) > 1.3 * lines
    assert problems(browser) == []


def test_boxes_are_lines_of_two_colours_that_can_be_hidden(browser: Browser, page: Path) -> None:
    browser.open(page.as_uri())
    assert pixels(browser, pictures.TRUE) > 100 and pixels(browser, pictures.FOUND) > 100
    browser.run("document.querySelector('input[name=true]').click()")
    assert pixels(browser, pictures.TRUE) == 0 and pixels(browser, pictures.FOUND) > 100
    browser.run("document.querySelector('input[name=found]').click()")
    assert pixels(browser, pictures.FOUND) == 0


def test_another_frame_is_chosen_from_a_list(browser: Browser, page: Path) -> None:
    browser.open(page.as_uri())
    options = "[...document.querySelectorAll('.cloud select')].map(s => [...s].map(o => o.text))"
    assert browser.run(options) == [["first", "second"], ["second"]]
    shown = "[...document.querySelectorAll('.cloud select')].map(s => s.checkVisibility())"
    assert browser.run(shown) == [True, False]
    browser.run(
        "(select => { select.value = '1'; select.dispatchEvent(new Event('change', "
        "{bubbles: true})) })(document.querySelector('.cloud select'))"
    )
    assert pixels(browser, pictures.TRUE) == 0 and pixels(browser, pictures.FOUND) > 100


def test_where_no_script_runs_the_page_says_so(browser: Browser, page: Path) -> None:
    browser.command("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(page.as_uri())
        assert "turns where scripts may run" in browser.run("document.body.innerText")
        visible = "[...document.querySelectorAll('form, canvas')].some(e => e.checkVisibility())"
        assert browser.run(visible) is False
    finally:
        browser.command("Emulation.setScriptExecutionDisabled", value=False)


def test_a_narrow_window_has_all_of_it(browser: Browser, page: Path) -> None:
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.command("Emulation.setDeviceMetricsOverride", **phone)
    try:
        browser.open(page.as_uri())
        shown(browser)
        assert browser.run("document.documentElement.scrollWidth") <= 390
        assert browser.run("document.querySelector('canvas').width") == 780
    finally:
        browser.command("Emulation.clearDeviceMetricsOverride")
