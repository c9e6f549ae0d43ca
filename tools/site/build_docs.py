"""Build the site: nbs/ and docs/pages/ -> docs/_build/src (MyST notebooks) -> docs/_build/html.

    python tools/site/build_docs.py

Stored outputs are shown as they are and no network is needed. Nothing is imported but what `facts.py`
asks: the parser of the command line and the recipes. A warning of Sphinx fails the build.
"""

import base64
import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import launch_cells
from api_docs import (
    entry,
    escape,
    fold,
    is_generated,
    line,
    parameter_table,
    read_docstring,
    read_symbols,
)
from facts import LINKED, fill

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "docs" / "_build"
# Caption in the sidebar -> number of its first notebook.
GROUPS = {
    "Start here": 0,
    "Data and text": 1,
    "Diffusion": 3,
    "Networks": 7,
    "The whole system": 10,
    "Training and measuring": 12,
}
# Pages of docs/pages in the order of the sidebar; `start` comes before the tour.
TASKS = (
    *("own-pictures", "settings", "memory", "several-gpus"),
    *("resume", "noise", "encoder", "evaluate"),
)
SHORT = 3  # lines of a cell of constants that is shown
LOOK_UP = (
    *("commands", "numbers", "claims", "odd-files", "faq"),
    *("glossary", "notation", "licences", "versions"),
)
CHINESE = ("zh", "zh-tour")  # the home page and the tour, with the outputs of the English ones
API = "api"  # page of all names, and folder of the lessons' reference
DIRECTIVE = re.compile(r"^\s*#\|\s*([\w-]+):?[ \t]*(.*?)[ \t]*$\n?", re.M)
# {{cell NOTEBOOK LABEL-OR-ID | words for those who do not see it | caption}}, on a line of its own
CELL = re.compile(r"^\{\{cell (\S+) ([\w-]+)(?: \| (.*?) \| (.*?))?\}\}$", re.M)
FENCE = re.compile(r"(^```.*?^```$|^~~~.*?^~~~$)", re.M | re.S)
SEARCH = "searchtools|language_data|searchindex"  # scripts of the page of results alone
LINK = re.compile(r"\]\(([^)\s]+)\)")
PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+\.jpg)\)")
NAME = re.compile(r"(?<![\[`\w])`([A-Za-z_][\w.]*)(\(\))?`(?![\]`])")


def read_settings(root: Path = ROOT):
    "The values of settings.ini."
    parser = configparser.ConfigParser(delimiters=["="])
    parser.read(root / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def directives(source: str) -> dict:
    "The `#| name: value` lines of a cell."
    return {name: value.strip("\"'") for name, value in DIRECTIVE.findall(source)}


def page_name(path: Path) -> str:
    "03_diffusion.ipynb -> diffusion, experiments/01_w.ipynb -> experiments/w."
    return path.with_name(re.sub(r"^\d+[a-z]?_", "", path.stem)).as_posix()


def title_and_promise(text: str, file: Path) -> tuple[str, str]:
    "The heading of a page, and the line that says what it is about."
    title, promise = re.search(r"^# (.+)$", text, re.M), re.search(r"^> (.+)$", text, re.M)
    if not (title and promise):
        raise ValueError(
            f"{file}: got no title or no promise, expected '# Title'"
            " and '> What it is about.' in the first cells"
        )
    return title[1].strip(), promise[1].strip()


class Document:
    "A page that is written in Markdown: docs/pages/NAME.md."

    def __init__(self, path: Path, root: Path):
        self.path, self.file, self.page = path, path.relative_to(root), path.stem
        self.text = path.read_text(encoding="utf-8")
        self.title, self.promise = title_and_promise(self.text, self.file)


class Notebook:
    "A notebook of the checkout: its place, its cells, its module, its title."

    def __init__(self, path: Path, folder: Path):
        self.path, self.file = path, path.relative_to(folder)
        self.page = page_name(self.file)
        self.cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for cell in self.cells:
            cell["source"] = "".join(cell["source"])
        text = "\n".join(c["source"] for c in self.cells if c["cell_type"] == "markdown")
        self.title, self.promise = title_and_promise(text, self.file)

    @property
    def module(self) -> str | None:
        "What it exports to: diffusion, or nothing."
        for cell in self.cells:
            if "default_exp" in (found := directives(cell["source"])):
                return found["default_exp"]
        return None

    @property
    def number(self) -> int | None:
        "3 for 03_diffusion; only notebooks at the top have one."
        digits = re.match(r"\d+", self.file.name)
        return int(digits[0]) if digits and self.file.parent == Path() else None


class Site:
    "All notebooks and modules of a checkout, and what links them."

    def __init__(self, root: Path = ROOT):
        self.root, self.settings = root, read_settings(root)
        self.folder, self.library = (
            root / self.settings["nbs_path"],
            root / self.settings["lib_path"],
        )
        self.blob, self.edit = (
            f"{self.settings['git_url']}/{o}/{self.settings['branch']}" for o in ("blob", "edit")
        )
        paths = (
            p
            for p in sorted(self.folder.rglob("*.ipynb"))
            if not any(part[0] in "._" for part in p.relative_to(self.folder).parts)
        )
        self.notebooks = [Notebook(p, self.folder) for p in paths]
        self.documents = [Document(p, root) for p in sorted(root.glob("docs/pages/*.md"))]
        self.pages = {o.path: o.page for o in [*self.notebooks, *self.documents]}
        self.plain = {
            p.relative_to(self.library).with_suffix("").as_posix(): p
            for p in sorted(self.library.rglob("*.py"))
            if not p.name.startswith("_") and not is_generated(p.read_text(encoding="utf-8"))
        }
        self.folders = list(dict.fromkeys(p.split("/")[0] for p in self.plain if "/" in p))
        modules = {
            n.page: self.library / f"{n.module.replace('.', '/')}.py"
            for n in self.notebooks
            if n.module
        }
        self.lessons = modules.copy()  # page -> module
        modules |= self.plain
        self.symbols = {page: read_symbols(path, root, page) for page, path in modules.items()}

    def find(self, name: str, page: str, is_call: bool = False):
        "The symbol that `name` means on `page`, or None."
        found = [s for symbols in self.symbols.values() for s in symbols if s.name == name]
        here = [s for s in found if s.page == page]
        if here or len(found) != 1:
            return here[0] if here else None
        # elsewhere a plain word may well be a parameter of the same name
        return found[0] if is_call or re.search(r"[A-Z_.]", name) else None

    def linkify(self, text: str, page: str) -> str:
        "Names of our symbols in backticks become links to their entries."

        def link(match):
            symbol = self.find(match[1], page, bool(match[2]))
            return f"[{match[0]}](#{symbol.label})" if symbol else match[0]

        lines = text.split("\n")
        return "\n".join(line if line.startswith("#") else NAME.sub(link, line) for line in lines)

    def embed(self, text: str, page: Notebook | Document) -> str:
        "Pictures of the checkout become part of the page."

        def picture(match):
            data = base64.b64encode((page.path.parent / match[2]).read_bytes()).decode()
            return f'<img alt="{escape(match[1])}" src="data:image/jpeg;base64,{data}">'

        return PICTURE.sub(picture, text)

    def relink(self, text: str, notebook: Notebook | Document) -> str:
        "Links to notebooks and documents become links to pages, to other files links to the repository."

        def link(match):
            path, hash, fragment = match[1].partition("#")
            if not path or re.match(r"[a-z]+:", path):
                return match[0]
            target = Path(os.path.normpath(notebook.path.parent / path))
            if target in self.pages:
                start = os.path.dirname(notebook.page) or "."
                page = Path(os.path.relpath(self.pages[target], start)).as_posix()
                return f"]({page}.ipynb{hash}{fragment})"
            if not (target.exists() and target.is_relative_to(self.root)):
                raise ValueError(
                    f"{notebook.file}: link to {path}, expected a file of this checkout"
                )
            return f"]({self.blob}/{target.relative_to(self.root).as_posix()}{hash}{fragment})"

        return LINK.sub(link, text)

    def reference(self, symbol) -> str:
        "Label of the full entry of a symbol; that of a lesson's is not the lesson's line."
        is_told = symbol.page in self.lessons and "." not in symbol.name
        return f"{API}.{symbol.label}" if is_told else symbol.label

    def entry(self, symbol, level: int) -> str:
        "The API entry of a symbol; methods are one heading deeper."
        level += "." in symbol.name
        link = partial(self.linkify, page=symbol.page)
        return entry(symbol, level, self.blob, link, self.reference(symbol))

    def line(self, symbol) -> str:
        "The line of a symbol in its lesson."
        link = partial(self.linkify, page=symbol.page)
        return line(symbol, self.reference(symbol), link)

    def prose(self, text: str, page: Notebook | Document) -> str:
        "Markdown with its links and names as the site has them; code stays as it is."
        parts = FENCE.split(text)
        parts[::2] = [
            self.linkify(self.relink(self.embed(p, page), page), page.page) for p in parts[::2]
        ]
        return "".join(parts)


# ---------------------------------------------------------------- cells


def markdown_cell(source: str) -> dict:
    "A cell of text."
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def code_cell(cell: dict, source: str, tags=(), **mystnb) -> dict:
    "A cell of code with the outputs that were stored with it."
    outputs = [
        {**o, **({"execution_count": None} if "execution_count" in o else {})}
        for o in cell.get("outputs", [])
    ]
    metadata = {"tags": list(tags), "mystnb": mystnb}
    return {
        "cell_type": "code",
        "execution_count": None,
        "metadata": metadata,
        "outputs": outputs,
        "source": source,
    }


def prompts(text: str) -> dict:
    "The two labels of a fold."
    return {"code_prompt_show": text, "code_prompt_hide": text}


def definitions(source: str) -> list[str]:
    "Names that a cell defines at its left edge."
    found = re.findall(
        r"^(?:class|def) (\w+)|^([A-Za-z_][\w, ]*?)(?::[^=\n]+)?\s*=[^=]", source, re.M
    )
    return [name or value for name, value in found]


def exported(body: str, site: Site, page: str) -> list[dict]:
    "A line for each public symbol of an exported cell, then tables and code in one fold."
    names = definitions(body)
    symbols = [s for s in site.symbols[page] if s.name in names]
    tables = [f"`{s.name}`\n\n{t}" for s in symbols if (t := parameter_table(s.parameters))]
    code = f"```python\n{body}\n```"
    if not symbols and body.count("\n") < SHORT:  # constants
        return [markdown_cell(code)]
    label = "Code of " + ", ".join(names)
    return [markdown_cell("\n".join([*map(site.line, symbols), fold(label, *tables, code)]))]


def is_aside(body: str) -> bool:
    "Does a cell hold imports or helpers alone?"
    return all(name.startswith("_") for name in definitions(body))


def shown(cell: dict, body: str, found: dict) -> list[dict]:
    "A lesson cell: its code, folded if it says so, its outputs, the caption of its figure."
    tags, mystnb = [], {}
    if found.get("echo") == "false":
        tags.append("remove-input")
    if "code-fold" in found:
        tags.append("hide-input")
        mystnb |= prompts(found.get("code-summary", "Solution"))
    if "fig-alt" in found:
        mystnb["image"] = {"alt": found["fig-alt"]}
    caption = found.get("fig-cap")
    after = [markdown_cell(f"{{.nb-caption}}\n{escape(caption)}")] if caption else []
    return [code_cell(cell, body, tags, **mystnb), *after]


def convert(notebook: Notebook, site: Site) -> dict:
    "The notebook as the site shows it; imports and helpers stand in one fold at its end."
    cells, aside = [], []
    for cell in notebook.cells:
        source = cell["source"]
        if cell["cell_type"] == "markdown":
            cells.append(markdown_cell(site.prose(source, notebook)))
        elif cell["cell_type"] == "code":
            found, body = directives(source), DIRECTIVE.sub("", source).strip("\n")
            if not body or "hide" in found or found.get("include") == "false":
                continue
            if "export" not in found and "exports" not in found:
                cells += shown(cell, body, found)
            elif is_aside(body):
                aside.append(body)
            else:
                cells += exported(body, site, notebook.page)
    if aside:
        code = "```python\n" + "\n\n\n".join(aside) + "\n```"
        cells.append(markdown_cell(fold("Imports and helpers of this page", code)))
    put_links(cells, notebook, site)
    return page_of(cells, notebook.promise)


def document_page(document: Document, site: Site) -> dict:
    "A page from Markdown, with the facts and the cells of notebooks that it asks for."
    text = fill(document.text, site.root, LINKED)  # before links become links of the site
    first, *others = CELL.split(site.prose(text, document))
    cells = [markdown_cell(fill(first, site.root))]
    for file, key, alt, caption, text in zip(*(others[k::5] for k in range(5))):
        cells += borrowed(file, key, alt, caption, site)
        cells += [markdown_cell(fill(text, site.root))] if text.strip() else []
    edit = f"{{.nb-links}}\n[Edit this page on GitHub]({site.edit}/{document.file.as_posix()})"
    return page_of([*cells, markdown_cell(edit)], document.promise)


def borrowed(file: str, key: str, alt: str | None, caption: str | None, site: Site) -> list[dict]:
    "A cell of a notebook, found by its label or id, in the words of the page that shows it."
    cells = next(n.cells for n in site.notebooks if n.file.stem == file)
    for cell in cells:
        found = directives(cell["source"]) if cell["cell_type"] == "code" else {}
        if cell["cell_type"] == "code" and key in (found.get("label"), cell["id"]):
            words = {"fig-alt": alt, "fig-cap": caption} if alt else {}
            body = DIRECTIVE.sub("", cell["source"]).strip("\n")
            return shown(cell, body, found | words)
    raise ValueError(f"borrowed: cell, got {key!r}, expected a label or an id of {file}")


def put_links(cells: list, notebook: Notebook, site: Site):
    "Below the title: where the notebook itself is, and where it can be run if its first cell sees to that."
    path = f"{site.settings['nbs_path']}/{notebook.file.as_posix()}"
    colab = site.blob.replace("https://github.com", "https://colab.research.google.com/github")
    links = f"[Notebook on GitHub]({site.blob}/{path})"
    if any(cell["id"] == launch_cells.ID for cell in notebook.cells):
        links += f" · [Open in Colab]({colab}/{path})"
    links += f" · [Edit]({site.edit}/{path})"
    title = f"# {notebook.title}"
    first = next(c for c in cells if title in c["source"].split("\n"))
    first["source"] = first["source"].replace(title, f"{title}\n\n{{.nb-links}}\n{links}\n", 1)


def page_of(cells: list, description: str) -> dict:
    "A notebook file whose page carries a description for search engines."
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)|[`*$]", r"\1", description)
    python = {"name": "python3", "display_name": "python3", "language": "python"}
    metadata = {
        "kernelspec": python,
        "language_info": {"name": "python"},
        "myst": {"html_meta": {"description": plain}},
    }
    return {
        "cells": [{"id": f"c{i}", **c} for i, c in enumerate(cells)],
        "metadata": metadata,
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def module_head(page: str, path: Path, site: Site) -> tuple[str, str]:
    "Title, link to the source and docstring of a plain module or a folder, and the docstring alone."
    name = ".".join([site.library.name, *page.split("/")])
    url = f"{site.blob}/{path.relative_to(site.root).as_posix()}"
    text = read_docstring(path)
    intro = site.linkify(escape(text), page)
    return f"# `{name}`\n\n{{.nb-links}}\n[Source on GitHub]({url})\n\n{intro}", text


def module_page(page: str, site: Site) -> dict:
    "A page for a module that no notebook writes."
    head, text = module_head(page, site.plain[page], site)
    cells = [head, *(site.entry(s, 2) for s in site.symbols[page])]
    return page_of([markdown_cell(c) for c in cells], text.split("\n")[0])


def lesson_page(page: str, site: Site) -> dict:
    "The reference of a lesson: every public name of its module."
    path = site.lessons[page]
    name, source = f"{site.library.name}.{page}", f"{site.blob}/{path.relative_to(site.root)}"
    lesson = next(n for n in site.notebooks if n.page == page)
    links = f"[The chapter](../{page}.ipynb) · [Source on GitHub]({source})"
    head = f"# `{name}`\n\n{{.nb-links}}\n{links}\n\n{lesson.promise}"
    cells = [head, *(site.entry(s, 2) for s in site.symbols[page])]
    return page_of([markdown_cell(c) for c in cells], lesson.promise)


def folder_page(folder: str, site: Site) -> dict:
    "A page for a folder of modules: its promise, and that of each module in it."
    head, text = module_head(folder, site.library / folder / "__init__.py", site)
    inside = {p: path for p, path in site.plain.items() if p.startswith(f"{folder}/")}
    rows = [f"- [`{path.stem}`]({page}.ipynb): {promise(path)}" for page, path in inside.items()]
    lines = [f"{path.stem} <{page}>" for page, path in inside.items()]
    cells = [head, "\n".join(rows), contents(lines)]
    return page_of([markdown_cell(c) for c in cells], text)


def promise(path: Path) -> str:
    "The first line of a module's docstring."
    return escape(read_docstring(path).split("\n")[0])


def api_page(site: Site) -> dict:
    "Every module with its promise, then every public name in the order of letters."
    lessons = [
        f"- [`{page}`]({API}/{page}.ipynb): {next(n.promise for n in site.notebooks if n.page == page)}"
        for page in site.lessons
    ]
    doors = [f"- [`{p}`]({p}.ipynb): {promise(site.plain[p])}" for p in doors_of(site)]
    folders = [
        f"- [`{f}`]({f}.ipynb): {promise(site.library / f / '__init__.py')}" for f in site.folders
    ]
    parts = ["# Reference", "> Every public name of the package, and what each module is for."]
    for title, rows in (("Lessons", lessons), ("Doors", doors), ("Folders", folders)):
        parts += [f"## {title}", "\n".join(rows)] if rows else []
    parts += ["## All names", "\n".join(index_rows(site))]
    lines = [f"{page} <{API}/{page}>" for page in site.lessons]
    lines += [f"{page} <{page}>" for page in [*doors_of(site), *site.folders]]
    return page_of([markdown_cell(c) for c in [*parts, contents(lines)]], parts[1][2:])


def index_rows(site: Site) -> list[str]:
    "A line for each public name, methods aside."
    found = [s for symbols in site.symbols.values() for s in symbols if "." not in s.name]
    found.sort(key=lambda s: (s.name.lower(), s.page))
    return [
        f"- [`{s.name}`](#{site.reference(s)}) ({s.page.replace('/', '.')}): {escape(s.promise)}"
        for s in found
    ]


def doors_of(site: Site) -> list[str]:
    "Plain modules at the top of the package."
    return [page for page in site.plain if "/" not in page]


# ---------------------------------------------------------------- sidebar


def groups(site: Site) -> dict:
    "Caption -> lines of its table of contents, in the order of the sidebar."
    found = {caption: [] for caption in [*GROUPS, "Experiments", "How to", "Look up", "中文"]}
    titles = {d.page: f"{d.title} <{d.page}>" for d in site.documents}
    if "start" in titles:
        found["Start here"].append(titles.pop("start"))
    for n in site.notebooks:
        if n.number is not None:
            caption = [c for c, first in GROUPS.items() if first <= n.number][-1]
            found[caption].append(f"{n.number:02} {n.title} <{n.page}>")
        elif n.page != "index":
            found["Experiments"].append(n.page)
    found["How to"] = [titles.pop(page) for page in TASKS if page in titles]
    found["Look up"] = [titles.pop(page) for page in LOOK_UP if page in titles]
    found["中文"] = [titles.pop(page) for page in CHINESE if page in titles]
    found["Look up"] += [*titles.values(), f"Reference <{API}>"]
    return {caption: lines for caption, lines in found.items() if lines}


def contents(lines: list, *options) -> str:
    "A hidden table of contents: it fills the sidebar only."
    return "\n".join(["```{toctree}", ":hidden:", *options, "", *lines, "```"])


# ---------------------------------------------------------------- build


def write_sources(folder: Path, site: Site):
    "Everything that Sphinx reads, into a new `folder`."
    shutil.rmtree(folder, ignore_errors=True)
    pages = {n.page: convert(n, site) for n in site.notebooks}
    pages |= {page: module_page(page, site) for page in site.plain}
    pages |= {folder: folder_page(folder, site) for folder in site.folders}
    pages |= {d.page: document_page(d, site) for d in site.documents}
    pages |= {f"{API}/{page}": lesson_page(page, site) for page in site.lessons}
    pages[API] = api_page(site)
    sidebar = "\n\n".join(
        contents(lines, f":caption: {caption}") for caption, lines in groups(site).items()
    )
    pages["index"]["cells"].append({"id": "sidebar", **markdown_cell(sidebar)})
    for name, page in pages.items():
        path = folder / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(page, ensure_ascii=False, indent=1), encoding="utf-8")


def run_sphinx(source: Path, out: Path) -> int:
    "Build the pages; the exit status is not 0 if there was a warning."
    for folder in (out, BUILD / "jupyter_execute"):
        shutil.rmtree(folder, ignore_errors=True)
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "sphinx",
            "-b",
            "html",
            "-W",
            "--keep-going",
            "-q",
            "-E",
            "-c",
            ROOT / "docs",
            "-d",
            BUILD / "doctrees",
            source,
            out,
        ]
    ).returncode


# What the theme calls by another name than it shows, or by none; figures, which a tap shows as large as they are.
MENDED = (
    (r'<summary aria-label="Toggle hidden content">', "<summary>"),  # its words say what it holds
    (r'(<button class="[^"]*search-button-field[^>]*) aria-label="Search"', r"\1"),
    (
        r'>([^<>]+)(</a><details[^>]*>)<summary>(?=<span class="toctree-toggle")',
        r'>\1\2<summary aria-label="Pages of \1">',
    ),
    (
        r'(?<=container">\n)(<img alt="[^"]+" src="((?:\.\./)*_images/[^"]+)" />)',
        r'<a class="nb-zoom" href="\2">\1</a>',
    ),
)


def mended(text: str) -> str:
    "The HTML of a page, in which everything that can be pressed has the name that it shows."
    for pattern, right in MENDED:
        text = re.sub(pattern, right, text)
    return text


def tidy(out: Path):
    "Drop what no page needs: source maps, templates, translations, a script that draws icons anew."
    for pattern in ("**/*.map", "_static/*.html", ".buildinfo", "_static/scripts/fontawesome*"):
        for path in out.glob(pattern):
            path.unlink()
    for name in ("_static/locales", "_sources"):
        shutil.rmtree(out / name, ignore_errors=True)
    for path in out.rglob("*.html"):
        left_out = "fontawesome" if path.name == "search.html" else "fontawesome|" + SEARCH
        script = rf"\s*<script[^>]*/?(?:{left_out})\.js[^>]*></script>"
        text = re.sub(script, "", path.read_text(encoding="utf-8"))
        path.write_text(mended(text), encoding="utf-8")
    (out / ".nojekyll").touch()  # GitHub Pages would leave out folders like _static


def main() -> int:
    "Build it all and say where it is."
    start, out = time.time(), BUILD / "html"
    write_sources(BUILD / "src", Site())
    status = run_sphinx(BUILD / "src", out)
    tidy(out)
    pages = len(list(out.rglob("*.html")))
    print(f"{pages} pages in {time.time() - start:.0f} s: {(out / 'index.html').relative_to(ROOT)}")
    return status


if __name__ == "__main__":
    sys.exit(main())
