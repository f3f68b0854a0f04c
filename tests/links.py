"""The links of the documentation: that pages, headings and pictures they lead to are there.

`python tests/links.py` looks at the links within the repository, from its files alone;
`--external` asks the hosts of all others.
"""

from __future__ import annotations

import re
import sys
import unicodedata
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parents[1]
CODE = re.compile(r"^( *)(```+|~~~+).*?^\1\2 *$|<!--.*?-->", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
LINK = re.compile(
    r"\]\(\s*<?([^\s()<>]+(?:\([^\s()]*\))?[^\s()<>]*)>?(?:\s+\"[^\"]*\")?\s*\)"
    r"|^\[[^\]]+\]:\s+(\S+)|(?:href|src)=[\"']([^\"']+)[\"']",
    re.MULTILINE,
)
HEADING = re.compile(r"^#{1,6} +(.+?)(?: +#+)? *$", re.MULTILINE)
OBJECT = re.compile(r"^::: +(\S+)", re.MULTILINE)
OWN_ID = re.compile(r"(?:id|name)=[\"']([^\"']+)[\"']|\{ *#([\w.-]+)")
USER_AGENT = "Mozilla/5.0 (compatible; flextopo-links)"


def pages(root: Path = ROOT) -> list[Path]:
    """Return every page: those that code hosts show, and those of the site."""
    return sorted(
        [*root.glob("*.md"), *(root / ".github").glob("*.md"), *root.glob("docs/**/*.md")]
    )


def links(page: str) -> Iterator[str]:
    """Yield where the links and pictures of a page lead to; code has none."""
    for match in LINK.finditer(SPAN.sub("``", CODE.sub("", page))):
        yield match[1] or match[2] or match[3]


def host_slug(heading: str) -> str:
    """Return what code hosts make of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def site_slug(heading: str) -> str:
    """Return what the site makes of a heading (Python-Markdown, extension toc)."""
    plain = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def anchors(page: str, slug: Callable[[str], str]) -> set[str]:
    """Return the places of a page that a link may name."""
    text = CODE.sub("", page)
    found = {first or second for first, second in OWN_ID.findall(text)} | set(OBJECT.findall(text))
    for match in HEADING.finditer(text):
        heading = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", match[1]).replace("`", "")
        name, number = slug(heading), 0
        while name in found:
            number += 1
            name = f"{slug(heading)}{'-' if slug is host_slug else '_'}{number}"
        found.add(name)
    return found


def broken_links(root: Path = ROOT) -> list[str]:
    """Return a sentence for every link of a page that leads nowhere within the repository."""
    said = []
    for page in pages(root):
        of_site = root / "docs" in page.parents
        for link in links(page.read_text()):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            name, where = page.relative_to(root), unquote(parts.path)
            target = (page.parent / where).resolve() if where else page
            if where.startswith("/") or not target.is_relative_to(root.resolve()):
                said.append(f"{name}: {link} leads out of the repository")
            elif not target.exists():
                said.append(f"{name}: {link} leads to no file")
            elif of_site and not target.is_relative_to((root / "docs").resolve()):
                said.append(f"{name}: {link} is no page of the site")
            elif parts.fragment and target.suffix == ".md":
                slug = site_slug if of_site else host_slug
                if not _names(parts.fragment, target.read_text(), slug):
                    said.append(f"{name}: {link} names no heading")
    return said


def _names(fragment: str, page: str, slug: Callable[[str], str]) -> bool:
    """Return whether a page has a place; what is in a module that it shows may be one."""
    shown = OBJECT.findall(CODE.sub("", page))
    return fragment in anchors(page, slug) or fragment.startswith(tuple(f"{o}." for o in shown))


def broken_in_site(site: Path) -> list[str]:
    """Return a sentence for every link of built pages that leads nowhere or loads from a host."""
    texts = {page.resolve(): page.read_text() for page in site.rglob("*.html")}
    places = {page: set(re.findall(r"\bid=[\"']?([^\"'\s>]+)", t)) for page, t in texts.items()}
    said = set()
    for page, text in texts.items():
        for tag, name, link in re.findall(
            r"<(\w+)\b[^>]*?\b(href|src)=[\"']?([^\"'\s>]+)", re.sub(r"<!--.*?-->", "", text)
        ):
            parts, shown = urlsplit(link), page.relative_to(site.resolve())
            if parts.scheme or parts.netloc:
                if name == "src" or tag == "link":
                    said.add(f"{shown}: loads {link}")
            elif page.name != "404.html":  # its links are of the root of a host
                target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
                if not target.is_file():
                    said.add(f"{shown}: {link} leads to no file")
                elif parts.fragment and unquote(parts.fragment) not in places.get(target, set()):
                    said.add(f"{shown}: {link} names no place")
    return sorted(said)


def external_links(root: Path = ROOT) -> dict[str, str]:
    """Return the links to other hosts, each with the first page that has it."""
    found: dict[str, str] = {}
    for page in pages(root):
        for link in links(page.read_text()):
            if urlsplit(link).scheme in ("http", "https"):
                found.setdefault(link.partition("#")[0], str(page.relative_to(root)))
    return found


def unanswered(link: str, timeout_s: float = 20) -> str | None:
    """Return why a link to another host cannot be followed, or None if it can."""
    request = urllib.request.Request(link, headers={"User-Agent": USER_AGENT})
    try:
        with urllib.request.urlopen(request, timeout=timeout_s):
            return None
    except urllib.error.HTTPError as error:
        # Hosts that let no program in are there all the same.
        return None if error.code in (401, 403, 429) else f"status {error.code}"
    except (urllib.error.URLError, OSError, ValueError) as error:
        return str(getattr(error, "reason", error))


def main() -> int:
    """Print what is broken; the status is 1 if anything is."""
    if "--external" in sys.argv[1:]:
        answers = ((link, page, unanswered(link)) for link, page in external_links().items())
        said = [f"{page}: {link}: {why}" for link, page, why in answers if why]
    else:
        said = broken_links()
    print("\n".join(said) or "no broken link")
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
