"""Pages made from READMEs, for `benchmarks/extraction.py`: known text in the furniture of many layouts.

The reference is known because we make the pages: Markdown READMEs of the installed Python packages are rendered into
page layouts (the fetch step's five and the six below, from semantic tags to a table of 1999), and the truth is the
README's own text. These are template pages, made by the authors of one contestant, whose rules for short furniture were
written with some of them in view: they say how extractors cope with furniture around real text, no more.
"""

import re
from importlib.metadata import distributions

import jinja2
from markdown_it import MarkdownIt

from pages.labelled import Labelled, plain

LINKS = ["Getting started", "Release notes", "How we moved to the new office", "Ten tips for autumn", "Contact"]
LAYOUTS = {
    "semantic": """<header><nav><a href=/>Home</a> <a href=/x>Docs</a></nav></header>
<main><article><h1>{{title}}</h1>{{body}}</article></main>
<aside><h3>Popular</h3>{{links}}</aside><footer><p>Made with care. {{links}}</p></footer>""",
    "soup": """<div class='c1'><div class='c2'>{{links}}</div><div class='c3'><div class='c4'><h1>{{title}}</h1>
<div>{{body}}</div><div class='c5'>You may also like {{links}}</div></div></div>
<div class='c6'>Copyright 2021 Soup Ltd. {{links}}</div></div>""",
    "table": """<table width=100%><tr><td colspan=2><font size=5>Welcome to our site</font></td></tr>
<tr><td width=20%>{{links}}</td><td><h1>{{title}}</h1>{{body}}</td></tr>
<tr><td colspan=2>Last changed in 1999. Best viewed at 800x600.</td></tr></table>""",
    "sidebar": """<div id='header'>Docs <form><input><button>Search</button></form></div>
<div id='sidebar'><ul>{{links}}</ul>
<p>Sponsor this project to keep it alive for many years to come, it helps us a lot.</p></div><div id='content'>
<div class='breadcrumb'><a href=/>Docs</a> / <a href=/g>Guide</a></div><h1>{{title}}</h1>{{body}}
<div class='pager'><a href=/p>Previous: intro</a> <a href=/n>Next: outro</a></div></div>
<div class='footer'>{{links}}</div>""",
    "comments": """<div class='top'>{{links}}</div>
<div class='entry'><h2 class='entry-title'>{{title}}</h2>{{body}}</div>
<div id='comments'><h3>2 responses</h3><p>Great post, I learned a lot, thank you!</p><p>First!</p></div>
<div class='widget'><h4>Archive</h4>{{links}}</div>""",
    "cookies": """<div class='consent-layer'><p>We use cookies and similar technologies to improve your experience, to
measure traffic and to show you advertising. You can change your choice at any time.</p></div>
<section class='hero'><h1>{{title}}</h1></section><section class='page'>{{body}}</section><section class='newsletter'>
<p>Subscribe to our newsletter and never miss an update, we send it once a month.</p></section>
<section class='related'><h3>More stories</h3>{{links}}</section>""",
}


def readmes(count: int) -> list[tuple[str, str]]:
    """(title, Markdown) of the installed packages, one a name."""
    found: dict[str, str] = {}
    for package in distributions():
        body = package.metadata.get_payload() or package.metadata.get("Description") or ""  # type: ignore[attr-defined]
        markdown = "markdown" in (package.metadata.get("Description-Content-Type") or "")
        prose = re.findall(r"[a-z]{3,}", re.sub(r"\S*(?:://|\[!\[)\S*", "", body))  # many hold little but badges
        if markdown and len(prose) > 150 and len(body) < 40_000:
            found.setdefault(package.metadata["Name"], body)
    return sorted(found.items())[:count]


def corpus(count: int) -> list[Labelled]:
    """Pages of all layouts in turn, over the READMEs as often as needed."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    environment = jinja2.Environment(loader=jinja2.PackageLoader("openafm.data"), autoescape=True)
    plans: list[tuple[str, jinja2.Template | str]] = list(LAYOUTS.items())
    plans += [
        (name, environment.get_template(f"{name}.html.jinja"))
        for name in ("blog", "forum", "news", "questions", "shop")
    ]
    sources, pages = readmes(count), []
    for number in range(count):
        title, text = sources[number % len(sources)]
        layout, template = plans[(number + number // len(sources)) % len(plans)]
        body = markdown.render(text)
        links = "".join(f"<li><a href='/{n}'>{link}</a></li>" for n, link in enumerate(LINKS))
        if isinstance(template, str):
            inner = template.replace("{{title}}", title).replace("{{body}}", body).replace("{{links}}", links)
            html = f"<!doctype html><html><head><title>{title} | Site</title></head><body>{inner}</body></html>"
            truth = plain(body)
        else:
            paragraphs = [plain(part) for part in re.findall(r"<p>(.*?)</p>", body, re.S)]
            paragraphs = [part for part in paragraphs if len(part.split()) > 5][:12] or [plain(body)[:800]]
            names = ["Ana Diaz", "bob_77", "C. Meier", "dora"]
            html = template.render(title=title, site="Site", names=names, links=LINKS, paragraphs=paragraphs)
            truth = "\n".join(paragraphs)
        pages.append(Labelled(f"{layout}/{title}", "templates", layout, html, truth))
    return pages
