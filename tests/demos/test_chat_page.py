"""The chat demo in a browser: type, stream, stop, retry, undo, edit, save, reload, load, at desktop and phone widths.

Slow: a browser and gradio take seconds to start.  Skipped where gradio, playwright or Chromium are not installed.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from tests.apps import tiny_bundle

pytestmark = pytest.mark.slow
TEMPLATE = "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"


@pytest.fixture(scope="module")
def chromium():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium here: apt install chromium")
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(repo, tmp_path_factory):
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'quamba-edge[demo]'")
    folder = tmp_path_factory.mktemp("page")
    # A model that never ends by itself and is wide, hence slow enough that there is time to press Stop.
    never = {"eos": [], "bos": 0}
    bundle = tiny_bundle.write(folder / "wide.qedge", d_model=512, tokenizer=never, chat_template=TEMPLATE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        str(repo / "demos" / "chat.py"),
        str(bundle),
        "--port",
        str(port),
        "--backend",
        "reference",
    ]
    process = subprocess.Popen(
        [*command, "--folder", str(folder / "talks")], env={**os.environ, "PYTHONPATH": str(repo)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}/"
    for _ in range(120):
        try:
            urllib.request.urlopen(url, timeout=5).close()
            break
        except OSError:
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.5)
    yield url
    process.terminate()
    assert process.wait(30) in (0, -2, 130), "it ends when it is told to"


@pytest.fixture(params=[(1280, 800), (390, 844)], ids=["desktop", "phone"])
def page(request, chromium, address):
    context = chromium.new_context(viewport=dict(zip(("width", "height"), request.param)))
    page = context.new_page()
    page.faults, page.elsewhere = [], []
    page.on("console", lambda m: page.faults.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: page.faults.append(str(e)))
    page.on("request", lambda r: page.elsewhere.append(r.url) if not _ours(r.url, address) else None)
    page.goto(address)
    page.wait_for_selector("#ask textarea")
    yield page
    context.close()


def _ours(url, address):
    return url.startswith((address, "data:", "blob:")) or url.startswith(address.replace("http", "ws"))


def answers(page):
    return [t.strip() for t in page.locator("#talk .bot .prose, #talk .bot.message").all_inner_texts()]


def note_of(page):
    return page.evaluate("document.querySelector('#note').innerText.trim()")


def idle(page, before=""):
    """The note under an answer once it is done; `before` is the note of the answer before it (times in it differ)."""
    return page.wait_for_function(
        """before => {
            const note = document.querySelector('#note').innerText.trim(), send = document.querySelector('#send');
            return send && send.offsetParent && note.includes('tokens') && note !== before && note;
        }""",
        arg=before,
        timeout=60_000,
    ).json_value()


def longest(page, tokens):
    field = page.get_by_label("number input for Longest answer, in tokens")
    if not field.is_visible():
        page.get_by_text("Model and sampling").click()
    slider = page.get_by_label("range slider for Longest answer, in tokens")
    # While the page still settles, it puts a control's first value back: what counts is what stays.
    for _ in range(20):
        field.fill(str(tokens))
        field.press("Tab")
        page.wait_for_timeout(250)
        if field.input_value() == slider.input_value() == str(tokens):
            return
    raise AssertionError(f"the page does not keep {tokens}: it shows {field.input_value()}, {slider.input_value()}")


# Presses Stop in the very moment in which some of the answer stands there; what stood there.
STOP_IN_THE_MIDDLE = """() => {
    const stop = document.querySelector('#stop'), said = [...document.querySelectorAll('#talk .bot .prose, #talk .bot.message')];
    const text = said.length ? said.at(-1).innerText.trim() : '';
    if (!stop || !stop.offsetParent || text.length < 2) return null;
    stop.click();
    return text;
}"""


def ask(page, text):
    """Ask; the note that stood there until then."""
    before = note_of(page)
    page.fill("#ask textarea", text)
    page.click("#send")
    return before


def test_a_whole_visit(page):
    longest(page, 20)
    note = idle(page, ask(page, "hi"))
    assert "20 tokens" in note
    first = answers(page)[-1]
    assert first and page.input_value("#ask textarea") == ""

    page.click("#retry")
    note = idle(page, note)
    assert "20 tokens" in note and "reused" in note

    longest(page, 2048)
    before = ask(page, "more")
    growing = page.wait_for_function(STOP_IN_THE_MIDDLE, timeout=30_000).json_value()
    note = idle(page, before)
    assert "stopped" in note and int(re.match(r"(\d+) tokens", note)[1]) < 2048
    assert len(answers(page)[-1]) >= len(growing) > 1

    count = len(answers(page))
    page.click("#undo")
    page.wait_for_function("document.querySelector('#ask textarea').value == 'more'")
    assert len(answers(page)) < count
    page.fill("#ask textarea", "")

    page.get_by_text("Conversations").click()
    page.fill("#name input, #name textarea", "a tale")
    page.click("#save")
    page.wait_for_function("document.querySelector('#done').innerText.includes('with its state')")
    said = answers(page)

    page.reload()
    page.wait_for_selector("#ask textarea")
    assert answers(page) == []
    page.get_by_text("Conversations").click()
    page.click("#kept input")
    page.get_by_role("option", name="a tale").click()
    page.click("#load")
    page.wait_for_function("document.querySelector('#done').innerText.includes('loaded')")
    assert answers(page) == said

    longest(page, 20)
    note = idle(page, ask(page, "and"))
    assert int(re.search(r"(\d+) of it reused", note)[1]) > 0
    page.wait_for_function("document.querySelector('#live').innerText.includes('not available')")
    assert page.faults == [] and page.elsewhere == []
    width = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert width <= 0, "the page is wider than the screen"


def test_an_example_and_an_edit(page):
    longest(page, 12)
    page.get_by_text("Tell me a story about a cat named Mia.").click()
    note = idle(page)
    before = page.inner_text("#talk")
    page.get_by_role("button", name=re.compile("edit", re.IGNORECASE)).first.click()
    field = page.locator("#talk textarea").first
    field.fill("Tell me of a dog")
    page.get_by_role("button", name=re.compile("submit", re.IGNORECASE)).first.click()
    page.wait_for_function("document.querySelector('#talk').innerText.includes('of a dog')")
    idle(page, note)
    assert "Mia" in before and "Mia" not in page.inner_text("#talk")
    longest(page, 2048)
    ask(page, "more")
    page.wait_for_selector("#stop", state="visible", timeout=30_000)
    page.click("#new")
    page.wait_for_function("!document.querySelector('#talk').innerText.includes('of a dog')")
    page.wait_for_selector("#send", state="visible")
    page.wait_for_timeout(1000)
    assert answers(page) == [], "what was being answered does not come back"
    assert page.faults == [] and page.elsewhere == []
