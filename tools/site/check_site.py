"""Is the built site whole? Prints what is not, and exits 1 if there is anything.

    python tools/site/check_site.py docs/_build/html

Every link, picture, script and style sheet of ours exists, so does every #fragment; ids are
unique; no page loads anything from another host; KaTeX understood every formula.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ADDRESSES = ("href", "src", "data", "poster")
LINKS_THAT_LOAD_NOTHING = {
    "canonical",
    "author",
    "license",
    "me",
    "next",
    "prev",
    "search",
    "index",
}
# A syntax error leaves the class, an unknown macro only its red.
BAD_TEX = re.compile(r'class="katex-error"|mathcolor="#cc0000"')
CSS_ADDRESS = re.compile(r"""(?:@import\s+(?:url\()?|url\()\s*["']?([^"')\s;]+)""")
INLINE = ("data:", "mailto:", "javascript:", "blob:")


class Page(HTMLParser):
    "What one page names, and what it points to."

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.names, self.addresses, self.styles = [], set(), [], []
        self._in_style = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        "Called by the parser for each tag."
        found = {name: value or "" for name, value in attributes}
        self._in_style = tag == "style"
        self.styles.append(found.get("style", ""))
        if "id" in found:
            self.ids.append(found["id"])
        if tag == "a" and "name" in found:
            self.names.add(found["name"])
        loads = tag != "a" and not (
            tag == "link" and set(found.get("rel", "").split()) <= LINKS_THAT_LOAD_NOTHING
        )
        for name in ADDRESSES:
            if name in found:
                self.addresses.append((found[name], loads))
        for part in found.get("srcset", "").split(", "):
            if part.strip():
                self.addresses.append((part.split()[0], True))

    def handle_data(self, data):
        "Called by the parser for text."
        if self._in_style:
            self.styles.append(data)

    def handle_endtag(self, tag):
        "Called by the parser for each end of a tag."
        self._in_style = False


def is_foreign(address: str) -> bool:
    "Does it name a host?"
    parts = urlsplit(address)
    return bool(parts.netloc or parts.scheme in ("http", "https"))


def find_target(path: Path, root: Path, address: str) -> Path:
    "The file that a relative address means."
    name = unquote(urlsplit(address).path)
    target = path if not name else root / name[1:] if name[0] == "/" else path.parent / name
    target = target.resolve()
    return target / "index.html" if target.is_dir() else target


def check_address(path: Path, root: Path, address: str, loads: bool, pages: dict):
    "What is wrong with an address of a page, or None."
    if address.startswith(INLINE):
        return None
    if is_foreign(address):
        return f"loads from elsewhere: {address}" if loads else None
    target, fragment = find_target(path, root, address), unquote(urlsplit(address).fragment)
    if not (target.is_file() and target.is_relative_to(root)):
        return f"missing: {address}"
    if fragment and target in pages and fragment not in {*pages[target].ids, *pages[target].names}:
        return f"no such fragment: {address}"
    return None


def check_styles(path: Path, root: Path, text: str) -> list[str]:
    "What is wrong with the addresses of a style sheet."
    found = []
    for address in CSS_ADDRESS.findall(text):
        if is_foreign(address):
            found.append(f"style loads from elsewhere: {address}")
        elif (
            not address.startswith((*INLINE, "#"))
            and not find_target(path, root, address).is_file()
        ):
            found.append(f"style misses: {address}")
    return found


def check_page(path: Path, root: Path, pages: dict) -> list[str]:
    "What is wrong with one page."
    page, text = pages[path], path.read_text(encoding="utf-8")
    found = [f"duplicate id: {i}" for i in sorted({i for i in page.ids if page.ids.count(i) > 1})]
    found += ["bad TeX"] * bool(BAD_TEX.search(text))
    found += filter(
        None, (check_address(path, root, a, loads, pages) for a, loads in page.addresses)
    )
    for style in page.styles:
        found += check_styles(path, root, style)
    return found


def check(root: Path) -> list[str]:
    "What is wrong with the site below `root`, a line each."
    root = Path(root).resolve()
    pages = {p: Page(p.read_text(encoding="utf-8")) for p in sorted(root.rglob("*.html"))}
    if root / "index.html" not in pages:
        return [f"check: got no index.html in {root}, expected a built site"]
    faults = [(p, fault) for p in pages for fault in check_page(p, root, pages)]
    for sheet in sorted(root.rglob("*.css")):
        text = sheet.read_text(encoding="utf-8", errors="replace")
        faults += [(sheet, fault) for fault in check_styles(sheet, root, text)]
    return [f"{path.relative_to(root).as_posix()}: {fault}" for path, fault in faults]


def main(arguments) -> int:
    "Check the site that is named, print its faults and how many there are."
    root = Path(arguments[0]) if arguments else Path("docs/_build/html")
    faults = check(root)
    for fault in faults:
        print(fault)
    print(f"{len(list(root.rglob('*.html')))} pages, {len(faults)} problems")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
