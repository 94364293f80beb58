import base64
import re
from html.parser import HTMLParser

import pytest

from moco_d2.benchmark.html import Image, Section, write_report
from moco_d2.errors import UserError

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>'


def test_page_is_self_contained_and_escaped(tmp_path):
    picture = tmp_path / "a.svg"
    picture.write_bytes(SVG)
    page = tmp_path / "page.html"
    write_report(
        page,
        title="Runs <1>",
        sections=[
            Section(
                "One & all", text="first <b>\n\nsecond", images=[Image(picture, 'a "caption"')]
            ),
            Section("Two", html="<p>as is</p>", tables=["<table><tr><td>1</td></tr></table>"]),
        ],
    )
    text = page.read_text(encoding="utf-8")
    assert "<title>Runs &lt;1&gt;</title>" in text
    assert "<p>first &lt;b&gt;</p>" in text and "<p>second</p>" in text
    assert "<p>as is</p>" in text and "<td>1</td>" in text
    assert 'alt="a &quot;caption&quot;"' in text
    (data,) = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', text)
    assert base64.b64decode(data) == SVG
    assert not re.search(r'(?:src|href)="(?!data:|#)', text) and text.count("<script") == 1

    class Balanced(HTMLParser):
        stack: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "img", "br"):
                self.stack.append(tag)

        def handle_endtag(self, tag):
            assert self.stack.pop() == tag

    Balanced().feed(text)
    assert not Balanced.stack


def test_images_that_cannot_be_embedded(tmp_path):
    page = tmp_path / "page.html"
    for name, said in (("missing.png", "draw it first"), ("notes.txt", "must be an image")):
        with pytest.raises(UserError, match=said):
            write_report(page, title="", sections=[Section("", images=[Image(name, "")])])
    assert not page.exists()
