"""Dirty pages and documents, seeded and marked, planted among the real ones: what filters are measured on.

Documentation is clean, so recall of the filters on it says nothing. Every kind of dirt is planted in all five flows
among sentences of real text, on web pages inside the furniture of forums, blogs, shops, news and question sites, for
extraction to matter. Marks go to `planted.jsonl` and to columns beside the verdicts; no filter reads them.

Sentences and word lists here were written for the generator alone: no filter, word list or classifier of the project
uses them, and nothing here imports one, else recall would measure a list against itself. Adult and unsafe texts name
their subject as such sites do and say nothing more. Numbers are random with right check digits: Luhn (ISO/IEC 7812-1)
for cards, mod 97 (ISO 13616) for IBANs; they belong to nobody but by chance. Part of the step `fetch`.
"""

import dataclasses
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lxml.html

from openafm.data.readers import UTF8, Document, Page, environment
from openafm.stage import Config

Benchmarks = Mapping[str, Sequence[Mapping[str, Any]]]
PII = ("email", "phone", "ip", "card", "iban", "ssn", "secret")
RUDE = ("profanity", "adult", "unsafe")
COPIES = ("near_copy", "exact_copy")
KINDS = (*PII, *RUDE, *COPIES, "benchmark")
TEMPLATES = ("forum", "blog", "shop", "news", "questions")
COMMENT = {"Python": "# ", "Ruby": "# ", "Perl": "# ", "Shell": "# "}
"""Line comments of the languages where they are not `// `."""


class DirtConfig(Config):
    """How much dirt of each kind."""

    web: int = 12
    """Web pages of each kind."""
    other: int = 4
    """Documents of each kind in each other flow."""


@dataclasses.dataclass
class Planted:
    """What to add to the real input."""

    pages: list[Page] = dataclasses.field(default_factory=list)
    documents: list[Document] = dataclasses.field(default_factory=list)
    marks: list[dict[str, str]] = dataclasses.field(default_factory=list)
    """{"url", "kind"}, and "of" for copies (the original's address) and benchmark items (their id)."""


def plant(
    pages: Sequence[Page], documents: Sequence[Document], benchmarks: Benchmarks, config: DirtConfig, seed: int
) -> Planted:
    """Dirt of every kind for the web and for each flow that has documents; `pages` are those a crawler may take."""
    done = Planted()
    english = [page for page in pages if _english(page)]
    flows = sorted({document.flow for document in documents})
    for kind in KINDS:
        if kind == "benchmark" and not benchmarks:
            continue
        rng = random.Random(f"{seed}/dirt/web/{kind}")
        _plant_web(kind, english, benchmarks, config.web if english else 0, rng, done)
        for flow in flows:
            rng = random.Random(f"{seed}/dirt/{flow}/{kind}")
            base = [d for d in documents if d.flow == flow and len(d.text) >= 400 and not d.planted]
            _plant_flow(kind, base, benchmarks, config.other if base else 0, rng, done)
    return done


def _english(page: Page) -> bool:
    language = re.search(rb'<html[^>]*\blang="(\w\w)', page.html[:2000])
    return language is None or language[1] == b"en"


def _group(kind: str) -> str:
    return "pii" if kind in PII else "copies" if kind in COPIES else kind


# ---------------------------------------------------------------- placing


def _plant_web(
    kind: str, pages: Sequence[Page], benchmarks: Benchmarks, count: int, rng: random.Random, done: Planted
) -> None:
    for number in range(count):
        url = f"https://planted-{_group(kind)}.web.example/{kind.replace('_', '-')}/{number}.html"
        original = _rich_page(pages, rng)
        if kind in COPIES:
            html = original.html if kind == "exact_copy" else _edited_html(original.html, rng)
            mark = {"url": url, "kind": kind, "of": original.url}
        else:
            dirt, of = _dirt(kind, benchmarks, rng)
            real = _paragraphs(original.html)[: rng.randint(2, 3) if kind in RUDE else rng.randint(3, 8)]
            html = _render(_mixed(real, dirt, rng), rng)
            mark = {"url": url, "kind": kind, **of}
        done.pages.append(Page(url, html, original.content_type if kind in COPIES else UTF8, "planted", "", kind))
        done.marks.append(mark)


def _plant_flow(
    kind: str, base: Sequence[Document], benchmarks: Benchmarks, count: int, rng: random.Random, done: Planted
) -> None:
    for number in range(count):
        original = rng.choice(base)
        url = f"https://planted-{_group(kind)}.{original.flow}.example/{kind.replace('_', '-')}/{number}"
        mark = {"url": url, "kind": kind}
        if kind in COPIES:
            text = original.text if kind == "exact_copy" else _edited(original.text, rng)
            mark["of"] = original.url
        else:
            dirt, of = _dirt(kind, benchmarks, rng)
            mark |= of
            lines = original.text[: 700 if kind in RUDE else 3_000].split("\n")[:-1] or [original.text[:700]]
            text = "\n".join(_mixed(lines, _as_comments(dirt, original.code_language), rng)) + "\n"
        done.documents.append(dataclasses.replace(original, url=url, source="planted", text=text, planted=kind))
        done.marks.append(mark)


def _as_comments(dirt: Sequence[str], code_language: str) -> list[str]:
    if not code_language:
        return ["", *dirt, ""]
    sign = COMMENT.get(code_language, "// ")
    return [sign + line for text in dirt for line in text.split("\n")]


def _mixed(real: Sequence[str], dirt: Sequence[str], rng: random.Random) -> list[str]:
    """Dirt in its order, as one block at a random place of the real text."""
    place = rng.randint(0, len(real))
    return [*real[:place], *dirt, *real[place:]]


def _rich_page(pages: Sequence[Page], rng: random.Random) -> Page:
    """A page with prose enough to copy or to quote; the richest of 30 where none is rich."""
    best, most = pages[0], -1
    for _ in range(30):
        page = rng.choice(pages)
        found = len(_paragraphs(page.html)) if len(page.html) < 120_000 else 0
        if found >= 6:
            return page
        if found > most:
            best, most = page, found
    return best


def _paragraphs(html: bytes) -> list[str]:
    """Texts of the page's <p> elements between 60 and 900 characters."""
    texts = (" ".join(p.text_content().split()) for p in lxml.html.document_fromstring(html).iter("p"))
    return [text for text in texts if 60 <= len(text) <= 900]


def _render(paragraphs: Sequence[str], rng: random.Random) -> bytes:
    template = environment().get_template(f"{rng.choice(TEMPLATES)}.html.jinja")
    words = re.findall(r"[A-Za-z]{4,}", " ".join(paragraphs)) or ["notes"]
    titles = [" ".join(rng.choices(words, k=rng.randint(3, 6))).capitalize() for _ in range(6)]
    site = rng.choice(words).capitalize() + rng.choice(["Hub", "Board", "Weekly", "Corner", "Depot"])
    names = [f"{rng.choice(FIRST)}{rng.choice(['', '_', '.'])}{rng.choice(LAST)}" for _ in range(4)]
    return template.render(
        title=titles[0], site=site, names=names, links=titles[1:], paragraphs=list(paragraphs)
    ).encode()  # fmt: skip


def _edited(text: str, rng: random.Random) -> str:
    """The text with 5 to 10% of its words changed, in runs as an editor's rewording leaves them."""
    parts = re.split(r"(\s+)", text)
    words = [i for i, part in enumerate(parts) if part and not part.isspace()]
    wanted, run = int(len(words) * rng.uniform(0.05, 0.10)), 12
    starts = rng.sample(range(max(1, len(words) // run)), k=min(max(1, wanted // run), max(1, len(words) // run)))
    pool = [parts[i] for i in words]
    for start in sorted(starts):
        for i in words[start * run : start * run + min(run, wanted)]:
            parts[i] = rng.choice(pool)
    return "".join(parts)


def _edited_html(html: bytes, rng: random.Random) -> bytes:
    """The page with the words of its paragraphs edited; markup stays."""
    tree = lxml.html.document_fromstring(html)
    for paragraph in tree.iter("p", "li", "dd", "td"):
        if paragraph.text and len(paragraph.text.split()) >= 12:
            paragraph.text = _edited(paragraph.text, rng)
    notice = lxml.html.fragment_fromstring("<p>This page was mirrored with small corrections by the community.</p>")
    body = tree.find("body")
    (tree if body is None else body).append(notice)
    page: bytes = lxml.html.tostring(tree, encoding="utf-8", doctype="<!DOCTYPE html>")
    return page


# ---------------------------------------------------------------- what is planted


def _dirt(kind: str, benchmarks: Benchmarks, rng: random.Random) -> tuple[list[str], dict[str, str]]:
    """Dirty paragraphs, and for a benchmark item whose they are."""
    if kind == "benchmark":
        items = [item for name in sorted(benchmarks) for item in benchmarks[name] if len(item["text"].split()) >= 13]
        item = rng.choice(items)
        return [rng.choice(EXAM), item["text"].strip(), rng.choice(AFTER_EXAM)], {"of": item["id"]}
    if kind in RUDE:
        return rng.sample(SENTENCES[kind], k=rng.randint(4, 6)), {}
    sentences = rng.sample(SENTENCES[kind], k=rng.randint(1, 2))
    name = f"{rng.choice(FIRST)} {rng.choice(LAST)}"
    return [sentence.replace("NAME", name).replace("VALUE", MAKE[kind](rng)) for sentence in sentences], {}


def digits(rng: random.Random, count: int) -> str:
    """So many random decimal digits."""
    return "".join(rng.choices("0123456789", k=count))


def luhn_digit(body: str) -> str:
    """The digit that makes `body` a valid card number (ISO/IEC 7812-1, annex B)."""
    total = 0
    for place, char in enumerate(reversed(body)):
        doubled = int(char) * (2 if place % 2 == 0 else 1)
        total += doubled // 10 + doubled % 10
    return str(-total % 10)


def card(rng: random.Random) -> str:
    """A card number of one of four schemes, valid by Luhn, in one of three layouts."""
    prefix, length = rng.choice([("4", 16), (f"5{rng.randint(1, 5)}", 16), ("6011", 16), ("37", 15)])
    body = prefix + digits(rng, length - 1 - len(prefix))
    number = body + luhn_digit(body)
    separator = rng.choice([" ", "-", ""])
    groups = [number[:4], number[4:10], number[10:]] if length == 15 else [number[i : i + 4] for i in range(0, 16, 4)]
    return separator.join(groups)


def iban(rng: random.Random) -> str:
    """An IBAN of five countries with right check digits (ISO 13616: the number is 1 modulo 97)."""
    country, bank, account = rng.choice([("DE", 0, 18), ("GB", 4, 14), ("NL", 4, 10), ("ES", 0, 20), ("IT", 1, 22)])
    body = "".join(rng.choices("ABCDEFGHKLMNPRSTUVWXYZ", k=bank)) + digits(rng, account)
    number = int("".join(str(int(char, 36)) for char in f"{body}{country}00"))
    whole = f"{country}{98 - number % 97:02d}{body}"
    return rng.choice([whole, " ".join(whole[i : i + 4] for i in range(0, len(whole), 4))])


def ssn(rng: random.Random) -> str:
    """A US social security number of an area, group and serial that are given out."""
    area = rng.choice([number for number in range(1, 900) if number != 666])
    return f"{area:03d}-{rng.randint(1, 99):02d}-{rng.randint(1, 9999):04d}"


def phone(rng: random.Random) -> str:
    """A telephone number in one of five national layouts."""
    area, end = f"{rng.randint(2, 9)}{digits(rng, 2)}", digits(rng, 4)
    return rng.choice(
        [
            f"({area}) {rng.randint(2, 9)}{digits(rng, 2)}-{end}",
            f"+1 {area} {rng.randint(2, 9)}{digits(rng, 2)} {end}",
            f"{area}-{rng.randint(2, 9)}{digits(rng, 2)}-{end}",
            f"+44 20 7{digits(rng, 3)} {end}",
            f"+49 30 {rng.randint(2, 9)}{digits(rng, 6)}",
        ]
    )


def email(rng: random.Random) -> str:
    """An address of an invented person at an invented provider."""
    name = rng.choice(["{0}.{1}", "{0}_{1}", "{0}{2}", "{1}{0}"]).format(
        rng.choice(FIRST).lower(), rng.choice(LAST).lower(), rng.randint(1, 99)
    )
    return f"{name}@{rng.choice(PROVIDERS)}.{rng.choice(['com', 'net', 'org', 'co.uk', 'de'])}"


def ip(rng: random.Random) -> str:
    """A public IPv4 address, or one of IPv6."""
    if rng.random() < 0.25:
        return "2a02:" + ":".join(f"{rng.randint(0x100, 0xFFFF):x}" for _ in range(7))
    first = rng.choice([23, 45, 62, 81, 93, 104, 151, 178, 194, 203])
    return f"{first}.{rng.randint(1, 254)}.{rng.randint(1, 254)}.{rng.randint(1, 254)}"


def secret(rng: random.Random) -> str:
    """A credential as they leak: access keys of clouds and code hosts, private keys, tokens."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

    def text(count: int, alphabet: str = letters) -> str:
        """So many characters of the alphabet, drawn with replacement."""
        return "".join(rng.choices(alphabet, k=count))

    pem = "\n".join(text(64) for _ in range(4))
    return rng.choice(
        [
            "AKIA" + text(16, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"),
            "ghp_" + text(36),
            "sk_live_" + text(24),
            f"eyJhbGciOiJIUzI1NiJ9.eyJ{text(30)}.{text(43)}",
            f"-----BEGIN RSA PRIVATE KEY-----\n{pem}\n-----END RSA PRIVATE KEY-----",
        ]
    )


MAKE: dict[str, Callable[[random.Random], str]] = {
    "email": email, "phone": phone, "ip": ip, "card": card, "iban": iban, "ssn": ssn, "secret": secret,
}  # fmt: skip

FIRST = ("Marta", "Devon", "Ines", "Oskar", "Priya", "Tomas", "Leila", "Ruben", "Hanna", "Kofi", "Yuki", "Clara")
LAST = ("Vandermeer", "Okafor", "Lindqvist", "Marchetti", "Sorensen", "Abelard", "Kowalczyk", "Tanaka", "Whitcombe")
PROVIDERS = ("postwagon", "quickletter", "mailorchard", "bluepigeon", "inboxharbor", "letterforge")

SENTENCES: dict[str, list[str]] = {
    "email": [
        "You can reach me directly, just write to VALUE and I will answer within a day.",
        "Contact: NAME, VALUE",
        "NAME (VALUE) has the draft; please do not pass it on.",
        "Forwarded from VALUE: can somebody look at this before Monday?",
    ],
    "phone": [
        "Call NAME on VALUE if the door is locked.",
        "My new number is VALUE, please delete the old one.",
        "Tel.: VALUE (evenings), ask for NAME.",
        "Reservations under VALUE, no messages please.",
    ],
    "ip": [
        "Banned again, my home address VALUE is on the list for no reason.",
        "Last login of NAME from VALUE at 22:41.",
        "The poster's host was VALUE according to the moderators.",
    ],
    "card": [
        "I was charged twice, the card is VALUE, name on it NAME, please refund.",
        "Payment by NAME with VALUE, valid thru 09/27.",
        "Please put it on my card: VALUE.",
    ],
    "iban": [
        "Send the deposit to NAME, account VALUE, and write the date in the reference.",
        "Refunds go to VALUE within ten days.",
        "My account for the rent: VALUE (NAME).",
    ],
    "ssn": [
        "Applicant NAME, SSN VALUE, born in the spring of 1981.",
        "They asked for my social security number, it is VALUE, what now?",
        "Tax form of NAME: VALUE, single, no dependants.",
    ],
    "secret": [
        "It works when I use VALUE in the settings, so the key is fine.",
        "For the staging server: VALUE",
        "Do not commit this! VALUE",
    ],
    "profanity": [
        "What a load of bullshit, this fucking thing never worked for anybody.",
        "Shut the fuck up, you stupid asshole, nobody asked you.",
        "The support people are lying bastards and the manual is shit.",
        "I am so goddamn pissed off at this crap, screw all of them.",
        "You dumb son of a bitch, read the fucking thread before you post.",
        "Every motherfucker in that office should be ashamed of this shitty release.",
        "Holy shit, which dickhead wrote this?",
    ],
    "adult": [
        "Hot naked girls live on webcam, free XXX chat, must be 18 or older to enter.",
        "Watch uncensored porn videos of busty MILFs and horny amateur couples.",
        "Sexy escorts in your city tonight, erotic massage and no strings attached sex.",
        "The largest archive of nude pics, blowjob clips and hardcore sex tapes.",
        "Lonely housewives want to fuck, join our adult dating site without a credit card.",
        "New this week: fetish galleries, topless teens over 18, and x-rated movies.",
        "Click here to see her strip, explicit adult content, orgasm guaranteed.",
    ],
    "unsafe": [
        "This guide tells you how to build a pipe bomb at home and kill as many people as possible.",
        "We should exterminate those filthy immigrants, they are vermin and deserve to be shot.",
        "Learn to cook crystal meth in your kitchen and sell heroin to school kids.",
        "Nobody would miss you, so just kill yourself tonight, here is the least painful suicide method.",
        "Buy untraceable guns and stolen identities, hire a hitman, pay in coins, no questions.",
        "Join the holy war, brothers, behead the infidels and bomb their churches.",
        "How to poison your wife and get away with murder, explained in ten steps.",
    ],
}
EXAM = [
    "I was given this one in the test, does somebody know the answer?",
    "Next exercise of the collection:",
    "This was posted on the study board yesterday:",
]
AFTER_EXAM = ["Any hints welcome.", "The solution comes next week.", "Please explain how you did it."]
