"""The controls of docs/figures/index.html in a real browser: sliders, keys, screen reader, themes, phone."""

import numpy as np
import pictures
import pytest
from exact_figures import COMPASS
from figure_page import call, canvases, readings

SECTIONS = ["forward", "reverse", "compass", "score", "paths", "schedules", "langevin", "digits", "network"]


@pytest.mark.parametrize("section", SECTIONS)
def test_each_control_changes_a_canvas_and_is_labelled(page, section):
    ids = page.evaluate("id => [...document.querySelectorAll(`#${id} input, #${id} select`)].map(c => c.id)", section)
    assert ids
    for name in ids:
        control = page.locator(f"#{name}")
        assert page.locator(f"label[for={name}]").inner_text().strip()
        before = canvases(page, section)
        if control.evaluate("c => c.tagName") == "SELECT":
            control.select_option(index=0 if control.evaluate("c => c.selectedIndex") else 1)
        else:
            text = page.locator(f"#{name}-value").inner_text()
            control.focus()
            at_end = control.evaluate("c => c.value === c.max")
            for _ in range(1 if "eta" in name or name == "network-steps" else 3):
                page.keyboard.press("ArrowLeft" if at_end else "ArrowRight")
            pictures.settle(page)
            assert page.locator(f"#{name}-value").inner_text() not in ("", text)
            assert control.get_attribute("aria-valuetext") == page.locator(f"#{name}-value").inner_text()
        pictures.settle(page)
        assert canvases(page, section) != before, name


def test_canvases_are_described_and_the_description_follows(page):
    labels = page.evaluate("[...document.querySelectorAll('canvas')].map(c => [c.getAttribute('role'), c.ariaLabel])")
    assert len(labels) == 12
    assert all(role == "img" and len(text) > 20 for role, text in labels)
    pictures.set_input(page, "forward-t", "90")
    assert "t = 0.90" in page.locator("#forward-canvas").get_attribute("aria-label")


def test_readings_are_beside_the_controls_and_are_announced(page):
    for section in SECTIONS:
        block = page.locator(f"#{section} .readings")
        assert block.get_attribute("aria-live") == "polite"
        assert all(text.strip() for text in block.locator("dd").all_inner_texts())


def test_arrow_keys_and_clicks_place_the_compass(page):
    position = lambda: page.evaluate("['x', 'y'].map(d => Number(document.getElementById(`compass-${d}`).value))")
    canvas = page.locator("#compass-canvas")
    canvas.focus()
    before = position()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert position() == [before[0] + 5, before[1] - 5]
    page.keyboard.press("Shift+ArrowLeft")
    assert position() == [before[0] - 20, before[1] - 5]
    box = canvas.bounding_box()
    canvas.click(position={"x": box["width"] * 0.8, "y": box["height"] * 0.7})
    pictures.settle(page)
    x, y = position()
    assert x > 150
    assert y < -30
    np.testing.assert_allclose(
        readings(page, "compass")["x0"],
        call(page, "compass.estimate", [x / 100, y / 100], float(COMPASS(0.75).sigma), 1)["x0"],
        atol=1e-6,
    )


def test_play_moves_the_slider_by_itself(page):
    page.locator("[data-play=forward-t]").click()
    page.wait_for_function("document.getElementById('forward-t').value > 33")
    assert page.locator("[data-play=forward-t]").inner_text() == "Pause"
    assert page.locator("#forward .readings").get_attribute("aria-live") == "off"
    page.locator("[data-play=forward-t]").click()
    value = page.locator("#forward-t").input_value()
    page.wait_for_timeout(200)
    assert page.locator("#forward-t").input_value() == value


def test_with_reduced_motion_a_press_is_one_step(browser):
    page = pictures.opened(browser, reduced_motion="reduce")
    button = page.locator("[data-play=forward-t]")
    assert button.inner_text() == "Step"
    button.click()
    page.wait_for_timeout(300)
    assert page.locator("#forward-t").input_value() == "35"
    page.close()


def test_dark_mode_changes_the_page_and_the_canvases(page):
    look = lambda: [page.evaluate("getComputedStyle(document.body).backgroundColor"), *canvases(page, "schedules")]
    light = look()
    page.emulate_media(color_scheme="dark")
    pictures.settle(page)
    dark = look()
    assert all(a != b for a, b in zip(light, dark, strict=True))


@pytest.mark.parametrize("width", [320, 360])
def test_a_phone_does_not_scroll_sideways(browser, width):
    page = pictures.opened(browser, viewport={"width": width, "height": 740}, device_scale_factor=2)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    edges = "[...document.querySelectorAll('canvas, input, button, select')].map(e => e.getBoundingClientRect().right)"
    assert max(page.evaluate(edges)) <= width
    size = page.evaluate("(c => [c.width, c.clientWidth])(document.getElementById('forward-canvas'))")
    assert size[0] == pytest.approx(2 * size[1], abs=1)
    page.close()
