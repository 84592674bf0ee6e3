"""Threads in the markup of forums' software, and pages that look like threads and are none."""

import time

import pytest

from openafm.data.extract import extract

TEXTS = [
    "I just bought a used bike and the chain slips under load on the two smallest cogs, what should I check first?",
    "Check the chain for stretch. If it is worn the cassette is worn as well, so replace both at the same time.",
    "thanks!",
    "Mine did the same, it turned out to be the derailleur hanger. A shop can straighten it in five minutes.",
    "Agreed with the above, look at the hanger first before you spend any money on new parts for that bike.",
]
NAMES = ["tom_h", "Sheila99", "oldrider", "bluebird", "zed"]
PAGE = """<html><head><title>Chain slips - Forum</title>{head}</head><body><div id="top"><ul><li><a href="/">Home</a>
<li><a href="/f">Forums</a><li><a href="/m">Members</a></ul></div>{body}<div id="end">You cannot post new topics in this
forum. <a href="/c">Contact us</a></div></body></html>"""
PHPBB3 = """<div class="post bg2"><div class="inner"><dl class="postprofile"><dt><a href="/u">{name}</a></dt><dd>Posts:
17</dd><dd>Joined: Tue Jan 01, 2013 4:11 pm</dd></dl><div class="postbody"><h3><a href="#p">Re: Chain slips</a></h3>
<p class="author">by <a href="/u">{name}</a> » Sun Feb 07, 2016 1:0{n} pm</p><div class="content">{text}</div>
<div class="signature">Life is like riding, to keep your balance you must keep moving</div></div></div></div>"""
PHPBB2 = """<tr><td><span class="name">{name}</span><br><span class="postdetails">Joined: 04 May 2004<br>Posts: 12
</span></td><td><table><tr><td>Posted: Mon Feb 0{n}, 2005 9:1{n} am</td></tr><tr><td><hr></td></tr><tr><td>
<span class="postbody">{text}</span></td></tr></table></td></tr><tr><td class="spaceRow"></td></tr>"""
VBULLETIN = """<div align="center"><table><tr><td>#<a href="/p">{n}</a> 02-07-2010, 10:1{n} AM</td></tr><tr><td><div>
<a href="/u">{name}</a></div><div>Senior Member</div><div>Join Date: Mar 2005</div><div>Posts: 1,023</div></td></tr><tr>
<td class="alt1"><div id="post_message_{n}">{text}</div><div>______<br>My other bike is a car</div></td></tr>
</table></div>"""
XENFORO = """<article class="message"><h4><a href="/u">{name}</a></h4><h5>Well-known member</h5><dl><dt>Joined</dt>
<dd>Feb 3, 2014</dd></dl><div><header class="message-attribution"><time>Feb 7, 2019</time>
<a href="#p">#{n}</a></header>
<article class="message-body"><div class="bbWrapper">{text}</div></article><aside class="message-signature"><div
class="bbWrapper">Ride more, work less, be happy with it</div></aside>
<footer><a href="/r">Report</a></footer></div></article>"""
HACKER_NEWS = """<table><tr><td></td><td><div><a href="/u">{name}</a> <a href="/i">{n} hours ago</a></div><br><div
class="comment"><div class="commtext">{text}</div><div class="reply"><p><a
href="/r">reply</a></div></div></td></tr></table>"""
ISSUE = """<div class="TimelineItem"><h3>{name} commented <a href="#c">on Mar {n}, 2020</a></h3><table><tr><td
class="comment-body">{text}</td></tr></table></div>"""
UNNAMED = """<li><div class="q7"><b>{name}</b> <i>Mar {n}, 2020 12:1{n}</i></div><div class="z3"><p>{text}</p></div>
<div><a href="/r">Reply</a> <a href="/l">Like</a></div></li>"""
AROUND = ("Joined", "Posts", "Senior", "Report", "Reply", "hours ago", "balance", "other bike", "be happy", *NAMES)


def thread(post: str, head: str = "", frame: str = "<div>{}</div>") -> str:
    posts = "".join(post.format(text=text, name=NAMES[n], n=n + 1) for n, text in enumerate(TEXTS))
    return PAGE.format(head=head, body=frame.format(posts))


@pytest.mark.parametrize(
    ("post", "head", "frame"),
    [
        (PHPBB3, "<!-- phpBB -->", "<div>{}</div>"),
        (PHPBB2, "<!-- phpBB -->", "<table><tr><th>Author</th><th>Message</th></tr>{}</table>"),
        (VBULLETIN, '<meta name="generator" content="vBulletin">', "<div>{}</div>"),
        (XENFORO, "<script>XenForo</script>", "<div>{}</div>"),
        (HACKER_NEWS, "", "<div>{}</div>"),
        (ISSUE, "", "<div>{}</div>"),
        (UNNAMED, "", "<ul>{}</ul>"),
    ],
    ids=["phpBB 3", "phpBB 2", "vBulletin", "XenForo", "Hacker News", "an issue", "unnamed"],
)
def test_of_a_thread_the_posts_are_kept_and_nothing_else(post, head, frame):
    text = extract(thread(post, head, frame).encode()).text
    for said in TEXTS:
        assert said in text
    assert not [word for word in AROUND if word in text]


def test_a_quotation_marked_as_an_aside_stays():
    quoting = XENFORO.replace("{text}", "<aside><p>A quotation of what somebody else had said.</p></aside>{text}")
    assert extract(thread(quoting, "XenForo").encode()).text.count("A quotation") == len(TEXTS)


def test_comments_below_an_article_are_no_thread():
    article = "".join(f"<p>{text}</p>" for text in TEXTS * 3)
    for comment in (UNNAMED, UNNAMED.replace('"z3"', '"comment-body"'), HACKER_NEWS):
        text = extract(thread(comment, frame=f"<h1>Chains</h1><div>{article}</div><ul>{{}}</ul>").encode()).text
        assert text.count(TEXTS[1]) >= 3


def test_a_list_of_titles_with_dates_is_no_thread():
    title = '<h3><a href="/{n}">Bicycle chains and how they wear, part {n}</a></h3>'
    entry = f"<div>{title}<i>Mar {{n}}, 2020</i><p>{{text}}</p></div>"
    text = extract(thread(entry).encode()).text
    assert text.count("how they wear") == len(TEXTS) and TEXTS[0] in text


def test_nesting_of_any_depth_takes_no_longer_than_its_length():
    deep = "<div>" * 20_000 + "said at 12:30 " + "</div><p>said at 12:31</p>" * 20_000
    start = time.process_time()
    extract(f"<body>{deep}</body>".encode())
    assert time.process_time() - start < 5


def test_a_manuals_signature_of_a_function_is_no_writers():
    entry = f'<h3>open_{{n}}</h3><div class="signature">open_{{n}}(path, mode)</div><p>{TEXTS[1]}</p>'
    body = "".join(entry.format(n=n) for n in range(4))
    text = extract(f"<body><div class='section'><h1>Files</h1>{body}</div></body>".encode()).text
    assert text.count("(path, mode)") == 4


def test_short_posts_that_read_like_a_forum_s_own_lines_are_kept() -> None:
    long = "A post that is long enough to be a paragraph, with some words on how to build the program from its source."
    said = [long, "I would like to report a bug", "Please quote me a price", long, "What did you ask? I answered", long]
    posts = "".join(
        f'<div class="post"><div class="user"><b>u{n}</b><br>Joined: 2019</div><div class="message"><p>{text}</p></div>'
        '<div class="signature">Quote | Reply | Report</div></div>'
        for n, text in enumerate(said)
    )
    assert extract(f"<html><body><h1>T</h1>{posts}</body></html>".encode()).text == "\n\n".join(said)
