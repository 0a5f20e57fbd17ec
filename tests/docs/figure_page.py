"""Helpers of the tests that read the page of interactive figures."""


def canvases(page, section):
    """The pixels of the canvases of a section."""
    return page.evaluate("id => [...document.querySelectorAll(`#${id} canvas`)].map(c => c.toDataURL())", section)


def call(page, name, *arguments):
    """The result of a function of window.figures.byName."""
    return page.evaluate(f"a => window.figures.byName.{name}(...a)", list(arguments))


def readings(page, section):
    return page.evaluate("id => window.figures.readings[id]", section)
