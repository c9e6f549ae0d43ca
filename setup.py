"All settings live in settings.ini; nothing to edit here."

import re
import shlex
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
c = parser["DEFAULT"]
lib, assets = c["lib_path"], c["lib_path"] + ".assets"
pythons = "3.11 3.12 3.13 3.14".split()
statuses = (
    "1 - Planning,2 - Pre-Alpha,3 - Alpha,4 - Beta,5 - Production/Stable,6 - Mature,7 - Inactive"
).split(",")
licenses = {"apache2": "Apache-2.0", "mit": "MIT", "bsd3": "BSD-3-Clause"}
extras = "nb emoji eval track bench witness docs dev".split()

# On PyPI there is no checkout beside the README: links go to the repository, pictures come from there.
readme = (here / "README.md").read_text(encoding="utf-8")
where = {"![": f"{c['git_url']}/raw/{c['branch']}/", "[": f"{c['git_url']}/blob/{c['branch']}/"}
readme = re.sub(r"(!?\[)([^]]*\]\()(?!https?:|#)", lambda m: f"{m[1]}{m[2]}{where[m[1]]}", readme)

setup(
    name=c["lib_name"],
    version=c["version"],
    description=c["description"],
    keywords=c["keywords"],
    author=c["author"],
    author_email=c["author_email"],
    url=c["git_url"],
    license=licenses[c["license"]],
    license_files=["LICENSE"],
    classifiers=[
        f"Development Status :: {statuses[int(c['status']) - 1]}",
        f"Intended Audience :: {c['audience']}",
        f"Natural Language :: {c['language']}",
        "Programming Language :: Python :: 3",
        *[
            f"Programming Language :: Python :: {p}"
            for p in pythons[pythons.index(c["min_python"]) :]
        ],
    ],
    # data/ of the checkout is imagen_nb/assets of an installed package
    package_dir={lib: lib, assets: "data"},
    packages=[*find_packages(include=[lib, f"{lib}.*"]), assets],
    package_data={assets: ["*", "**/*"]},
    include_package_data=False,
    python_requires=f">={c['min_python']}",
    install_requires=shlex.split(c["requirements"]),
    extras_require={e: shlex.split(c[f"{e}_requirements"]) for e in extras},
    long_description=readme,
    long_description_content_type="text/markdown",
    zip_safe=False,
    entry_points={
        "console_scripts": shlex.split(c["console_scripts"]),
        "nbdev": [f"{lib}={lib}._modidx:d"],
    },
)
