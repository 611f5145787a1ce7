"""Give the site the layout of the repository, so that one relative link works on GitHub and on the site.

A link to a source file leads to a page that shows the file.
"""

import re
from pathlib import Path

from docutils.core import publish_parts
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("*.md", "docs/**/*.md", "benchmarks/*/README.md", "results/measured/*/README.md")
ASSETS = ("docs/*.css", "docs/*.jpg", "docs/*.png", "docs/*.svg")
SOURCES = (
    "CITATION.cff",
    "workflow/config/recipes.yaml",
    "workflow/paper/claims.py",
    "workflow/report/workflow.rst",
)
LANGUAGES = {".cff": "yaml", ".yaml": "yaml", ".py": "python"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Return the pages of the repository, what they show, and a page for each source file."""
    shown = {path for pattern in PAGES + ASSETS for path in ROOT.glob(pattern)}
    pages = [
        File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)) for path in sorted(shown)
    ]
    pages += [File.generated(config, f"{path}.md", content=page_of(ROOT / path)) for path in SOURCES]
    theme = [file for file in files if file.src_dir != config.docs_dir]
    return Files(theme + pages)


def page_of(source: Path) -> str:
    """Return a source file as a page, reStructuredText as HTML."""
    text = source.read_text()
    if source.suffix == ".rst":
        return publish_parts(text, writer="html5", settings_overrides={"initial_header_level": 2})["html_body"]
    return f"# {source.relative_to(ROOT)}\n\n````{LANGUAGES[source.suffix]}\n{text}````\n"


def on_page_markdown(markdown: str, **_) -> str:
    """Let links to source files lead to their pages."""
    names = "|".join(re.escape(Path(path).name) for path in SOURCES)
    return re.sub(rf"(\]\([^)\s]*(?:{names}))\)", r"\1.md)", markdown)
