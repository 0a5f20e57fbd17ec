"""Fixtures of the tests of the interactive figures: the numbers of the page, and the page in a browser."""

import build
import pictures
import pytest


@pytest.fixture(scope="module")
def data():
    """The numbers in the page."""
    return build.recorded()


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if pictures.chromium() is None:
        pytest.skip("Chromium is not installed")
    with api.sync_playwright() as playwright:
        browser = pictures.launch(playwright)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def shared(browser):
    """A page for tests that only call its functions."""
    return pictures.opened(browser)


@pytest.fixture
def page(browser):
    """A new page. At the end, asserts that its console is empty and that it has loaded no resources."""
    problems = []
    context = browser.new_context(viewport={"width": 900, "height": 800})
    context.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
    context.on("weberror", lambda error: problems.append(str(error.error)))
    context.on("request", lambda request: request.url.startswith(("file:", "data:")) or problems.append(request.url))
    page = pictures.opened(context)
    yield page
    context.close()
    assert problems == []
