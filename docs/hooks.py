"""Hooks of the site: pages that live outside docs/, and links that work both on GitHub and on the site.

Pages link to files of the repository by relative paths. On the site, a link to another page goes to that page, and a
link to a file that is not on the site, such as a source file, becomes the name of the file. A label that is the path
of a page becomes its title. A link to nothing is left as it is, so that `mkdocs build --strict` reports it.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# Name on the site -> file of the repository.
OUTSIDE = {"commands.md": "experiments/README.md", "changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
FENCE = re.compile(r"^```.*?^```$", re.M | re.S)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def source_of(page: str) -> str:
    """The file of the repository, relative to its root, that a page of the site is made from."""
    return OUTSIDE.get(page, f"docs/{page}")


def page_of(source: str) -> str | None:
    """The name on the site of a file of the repository, or None for a file that is not there."""
    for page, path in OUTSIDE.items():
        if path == source:
            return page
    return source.removeprefix("docs/") if source.startswith("docs/") and not source.endswith(".py") else None


def target_of(source: str, link: str) -> tuple[str, str]:
    """(file relative to the root, anchor) that a relative link in a file points to."""
    path, _, anchor = link.partition("#")
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), path)) if path else source, anchor


def is_relative(link: str) -> bool:
    """Whether a link is one to a file of the repository."""
    return not re.match(r"[a-z]+:|//", link)


def relative_links(text: str) -> Iterator[str]:
    """The relative links of a page outside its code blocks."""
    for match in LINK.finditer(FENCE.sub("", text)):
        if is_relative(match[3]):
            yield match[3]


def title_of(source: str) -> str | None:
    """The first heading of a page, or None."""
    match = re.search(r"^# (.*)$", (ROOT / source).read_text(), re.M)
    return match and match[1]


def site_links(text: str, page: str) -> str:
    """The text of a page with the links that the site needs."""
    source = source_of(page)

    def replace(match: re.Match[str]) -> str:
        bang, label, link = match.groups()
        if not is_relative(link) or link.startswith("#"):
            return match[0]
        target, anchor = target_of(source, link)
        uri = page_of(target)
        if not (ROOT / target).exists():
            return match[0]
        if uri is None:
            return label
        if label.strip("`").endswith(".md"):
            label = title_of(target) or label
        path = posixpath.relpath(uri, posixpath.dirname(page) or ".")
        return f"{bang}[{label}]({path}{'#' * bool(anchor)}{anchor})"

    parts = re.split(r"(^```.*?^```$)", text, flags=re.M | re.S)
    return "".join(part if i % 2 else LINK.sub(replace, part) for i, part in enumerate(parts))


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """Add the pages that live outside docs/."""
    from mkdocs.structure.files import File  # only the site needs mkdocs

    for page, source in OUTSIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite the links of a page."""
    return site_links(markdown, page.file.src_uri)
