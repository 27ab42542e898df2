"""Chat with a bundle in the browser, and watch tokens, watts and degrees while it answers.

python demos/chat.py [NAME.qedge ...] [--port 7860] [--host 127.0.0.1]

Several bundles can be picked from in the page.  Without any it takes the embedded story teller, which it packs the first time.  The
page needs nothing from elsewhere.  For a phone on the same network: --host 0.0.0.0 --password-file FILE (the user's name is quamba).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported: nothing is told to anybody

try:
    import gradio as gr
except ImportError:
    sys.exit("this demo needs gradio: pip install 'quamba-edge[demo]'")

import panel
from desk import Desk, Heard, Talk, default_folder

from quamba_edge.errors import BadUsage, Missing, QuambaError
from quamba_edge.runtime.sampling import Sampling
from quamba_edge.serve.server import is_loopback, read_key

ROOT = Path(__file__).resolve().parent.parent
STORYTELLER = ROOT / "demos" / "models" / "storyteller-mamba2-5m"
FONTS = [
    "system-ui",
    "-apple-system",
    "Segoe UI",
    "Roboto",
    "Ubuntu",
    "Cantarell",
    "sans-serif",
]  # those that are there
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
ASKS = [
    "Tell me a story about a cat named Mia.",
    "Tell me a story about a brave little boat.",
    "What did Lily find in the garden?",
]
CSS = """
.gradio-container {padding:0 !important}
.gradio-container .main.fillable {padding:0 !important}
.gradio-container main {width:100%; max-width:1280px !important; margin:0 auto !important; padding:.7rem 1rem !important}
.gradio-container main .row {gap:1rem}
#head > div, #live > div {padding:0 !important}
#head h1 {font-size:1.15rem; font-weight:650; margin:0; line-height:1.4}
#head p {margin:0; font-size:.8rem; color:var(--body-text-color-subdued)}
#talk {height:calc(100dvh - 13.6rem) !important; min-height:18rem; border:1px solid var(--border-color-primary); border-radius:12px}
#talk .example {border:1px solid var(--border-color-primary); border-radius:10px}
#note, #done {min-height:1.1rem; padding:0 .2rem}
#note *, #done * {font-size:.78rem !important; color:var(--body-text-color-subdued) !important; margin:0 !important}
#ask textarea {font-size:1rem; border:1px solid var(--border-color-primary); border-radius:10px}
.gr-accordion {border:1px solid var(--border-color-primary) !important; border-radius:12px !important}
.line {flex-wrap:nowrap !important; gap:.5rem !important}
.line > * {min-width:0 !important}
.line input {border:1px solid var(--border-color-primary) !important; border-radius:8px}
.line button {padding:.45rem .6rem; font-size:.85rem}
#verbs {gap:.5rem !important; flex-wrap:nowrap}
#verbs button {min-width:0; padding:.45rem .2rem; border:1px solid var(--border-color-primary)}
.gradio-container main .column {gap:.6rem}
@media (max-width: 768px) {
  .gradio-container main {padding:.4rem .5rem !important}
  #talk {height:calc(100dvh - 14.2rem) !important}
  #ask textarea {font-size:16px}
}
"""


def storyteller() -> Path:
    """The embedded model as a bundle, packed the first time: about a minute, and torch is needed for it."""
    bundle = ROOT / "build" / "storyteller.qedge"
    if not bundle.is_file():
        try:
            import torch  # noqa: F401
        except ImportError:
            raise Missing(
                "packing the story teller needs torch: pip install 'quamba-edge[pack]', or name a bundle"
            ) from None
        import quamba_edge
        from quamba_edge.apps.pack import Progress

        print(f"packing {STORYTELLER.name}, once: about a minute", flush=True)
        bundle.parent.mkdir(exist_ok=True)
        with Progress() as progress:
            quamba_edge.quantize(
                STORYTELLER, bundle, "w4a8", calib_samples=32, calib_len=256, eval_tokens=4096, progress=progress
            )
    return bundle


def plain(messages: list[dict[str, Any]] | None) -> Talk:
    """What the chat component holds, as roles and texts."""

    def text(content: Any) -> str:
        if isinstance(content, list):
            return "".join(text(part) for part in content)
        return str(content.get("text", "")) if isinstance(content, dict) else str(content or "")

    return [{"role": str(m["role"]), "content": text(m["content"])} for m in messages or []]


def look() -> gr.themes.Base:
    """Quiet: labels are text, not signs; fonts are those of the reader's machine."""
    quiet = {"block_title_background_fill": "transparent", "block_title_text_color": "*body_text_color_subdued"}
    dark = {f"{name}_dark": value for name, value in quiet.items()}
    sizes = {
        "input_border_width": "1px",
        "block_title_padding": "0",
        "block_title_text_weight": "400",
        "block_title_text_size": "*text_sm",
    }
    return gr.themes.Soft(font=FONTS, font_mono=MONO).set(**quiet, **dark, **sizes)


def page(desk: Desk) -> gr.Blocks:
    """The page and what its buttons do."""

    def told(error: Exception) -> None:
        gr.Warning(str(error), title="That did not work")

    def reply(talk: Talk, *settings: Any, who: str) -> Iterator[tuple[Any, ...]]:
        """The answer to the last message, into (talk, note, session, send, stop)."""
        if not talk or talk[-1]["role"] != "user":
            yield talk, gr.skip(), gr.skip(), gr.skip(), gr.skip()
            return
        busy, idle = (
            (gr.Button(visible=False), gr.Button(visible=True)),
            (gr.Button(visible=True), gr.Button(visible=False)),
        )
        heard, blank = Heard(), ([], "", None)
        yield [*talk, {"role": "assistant", "content": "…"}], "", gr.skip(), *busy
        try:
            system, temperature, top_p, top_k, min_p, repetition, longest, seed = settings
            sampling = Sampling(
                temperature=temperature,
                top_p=top_p,
                top_k=int(top_k),
                min_p=min_p,
                repetition_penalty=repetition,
                seed=int(seed) if seed is not None and seed >= 0 else None,
            )
            for heard in desk.answer(who, talk, system or "", sampling, int(longest)):
                if heard.left:
                    # gradio sends an event's last outputs twice, the second time after whatever came between.
                    yield *blank, *idle
                    return
                yield [*talk, {"role": "assistant", "content": heard.text or "…"}], heard.note, heard.session, *busy
        except Exception as e:  # whatever it is, the buttons must come back
            told(e)
        said = [{"role": "assistant", "content": heard.text}] if heard.text else []
        yield [*talk, *said], heard.note, heard.session, *idle

    def say(request: gr.Request, text: str, messages: Any, *settings: Any) -> Iterator[tuple[Any, ...]]:
        talk = plain(messages)
        if text.strip():
            talk.append({"role": "user", "content": text.strip()})
        for out in reply(talk, *settings, who=str(request.session_hash)):
            yield "", *out

    def retry(request: gr.Request, messages: Any, *settings: Any) -> Iterator[tuple[Any, ...]]:
        talk = plain(messages)
        while talk and talk[-1]["role"] == "assistant":
            talk.pop()
        yield from reply(talk, *settings, who=str(request.session_hash))

    def edit(request: gr.Request, change: gr.EditData, messages: Any, *settings: Any) -> Iterator[tuple[Any, ...]]:
        at = change.index if isinstance(change.index, int) else change.index[0]
        talk = [*plain(messages)[:at], {"role": "user", "content": str(change.value)}]
        yield from reply(talk, *settings, who=str(request.session_hash))

    def undo(messages: Any) -> tuple[Any, ...]:
        talk, text = plain(messages), ""
        while talk and talk[-1]["role"] == "assistant":
            talk.pop()
        if talk:
            text = talk.pop()["content"]
        return text, talk, "taken back"

    def example(chosen: gr.SelectData) -> str:
        return str(chosen.value["text"])

    def stop(request: gr.Request) -> None:
        desk.stop(str(request.session_hash))

    def anew(request: gr.Request) -> tuple[Any, ...]:
        desk.leave(str(request.session_hash))
        return [], "", None, gr.Button(visible=True), gr.Button(visible=False)

    def choose(path: str) -> str:
        try:
            return head(desk.open(Path(path)))
        except QuambaError as e:
            told(e)
            return head("no bundle is open")

    def conversations(done: Callable[[], str], value: str | None) -> tuple[Any, str]:
        try:
            note = done()
        except QuambaError as e:
            told(e)
            note = ""
        names = desk.saved()
        return gr.Dropdown(choices=names, value=value if value in names else None), note

    def save(name: str, messages: Any, session: str | None, *settings: Any) -> tuple[Any, str]:
        name = (name or "").strip()
        return conversations(lambda: desk.save(name, plain(messages), dict(zip(KEYS, settings)), session), name)

    def take(name: str | None, *settings: Any) -> tuple[Any, ...]:
        try:
            if not name:
                raise BadUsage("pick a saved conversation first")
            talk, kept, note = desk.load(name)
        except QuambaError as e:
            told(e)
            return gr.skip(), gr.skip(), gr.skip(), *[gr.skip() for _ in KEYS]
        return talk, note, name, *[kept.get(key, value) for key, value in zip(KEYS, settings)]

    def head(about: str) -> str:
        return f"<h1>quamba_edge</h1><p>{desk.path.stem} · {about}</p>"

    KEYS = "system temperature top_p top_k min_p repetition longest seed".split()
    with gr.Blocks(title="quamba_edge chat", analytics_enabled=False, fill_width=True) as blocks:
        session = gr.State(None)
        title = gr.HTML(head(desk.about()), elem_id="head")
        with gr.Row():
            with gr.Column(scale=5, min_width=320):
                talk = gr.Chatbot(
                    elem_id="talk", show_label=False, editable="user", feedback_options=None, buttons=["copy"], layout="bubble",
                    examples=[{"text": a} for a in ASKS], placeholder="Say something, or take one of these.",
                    group_consecutive_messages=False, allow_tags=False,
                )  # fmt: skip
                note = gr.Markdown("", elem_id="note")
                with gr.Row(equal_height=True):
                    ask = gr.Textbox(
                        show_label=False, placeholder="Message", lines=1, max_lines=6, scale=8, elem_id="ask", container=False,
                        autofocus=True,
                    )  # fmt: skip
                    send = gr.Button("Send", variant="primary", scale=1, min_width=72, elem_id="send")
                    end = gr.Button("Stop", variant="stop", scale=1, min_width=72, elem_id="stop", visible=False)
                with gr.Row(elem_id="verbs"):
                    again = gr.Button("Retry", size="sm", elem_id="retry")
                    back = gr.Button("Undo", size="sm", elem_id="undo")
                    new = gr.Button("New", size="sm", elem_id="new")
            with gr.Column(scale=3, min_width=320):
                with gr.Accordion("Live", open=True):
                    live = gr.HTML(desk.panel.html(), elem_id="live")
                with gr.Accordion("Model and sampling", open=False):
                    choices = [(p.stem, str(p)) for p in desk.bundles]
                    bundle = gr.Dropdown(choices, value=str(desk.path), label="Bundle", visible=len(choices) > 1)
                    settings = [
                        gr.Textbox("", label="System prompt", lines=2),
                        gr.Slider(0, 2, 0.7, step=0.05, label="Temperature", info="0 always takes the likeliest word"),
                        gr.Slider(0.05, 1, 0.95, step=0.01, label="Top p"),
                        gr.Slider(0, 200, 0, step=1, label="Top k", info="0 for all"),
                        gr.Slider(0, 0.5, 0, step=0.01, label="Min p"),
                        gr.Slider(1, 2, 1, step=0.01, label="Repetition penalty"),
                        gr.Slider(1, 2048, 400, step=1, label="Longest answer, in tokens"),
                        gr.Number(-1, label="Seed", info="-1 for another answer each time", precision=0),
                    ]
                with gr.Accordion("Conversations", open=False):
                    with gr.Row(equal_height=True, elem_classes="line"):
                        name = gr.Textbox(
                            show_label=False, placeholder="Name", container=False, scale=3, elem_id="name"
                        )
                        keep = gr.Button("Save", scale=1, min_width=72, elem_id="save")
                    with gr.Row(equal_height=True, elem_classes="line"):
                        kept = gr.Dropdown(
                            [], show_label=False, container=False, scale=3, elem_id="kept", interactive=True
                        )
                        fetch = gr.Button("Load", scale=1, min_width=72, elem_id="load")
                        drop = gr.Button("Delete", scale=1, min_width=72, elem_id="delete")
                    done = gr.Markdown("", elem_id="done")

        outputs = [talk, note, session, send, end]
        quiet = {"show_progress": "hidden"}
        gr.on([ask.submit, send.click], say, [ask, talk, *settings], [ask, *outputs], **quiet)
        gr.on([again.click, talk.retry], retry, [talk, *settings], outputs, **quiet)
        gr.on([back.click, talk.undo], undo, [talk], [ask, talk, note], **quiet)
        talk.edit(edit, [talk, *settings], outputs, **quiet)
        talk.example_select(example, None, ask, **quiet).then(say, [ask, talk, *settings], [ask, *outputs], **quiet)
        end.click(stop, None, None, queue=False, **quiet)
        gr.on([new.click, talk.clear], anew, None, outputs, **quiet)
        bundle.input(choose, [bundle], [title])
        keep.click(save, [name, talk, session, *settings], [kept, done], **quiet)
        fetch.click(take, [kept, *settings], [talk, done, name, *settings], **quiet)
        drop.click(lambda n: conversations(lambda: desk.delete(n or ""), None), [kept], [kept, done], **quiet)
        gr.Timer(1.0).tick(desk.panel.html, None, live, queue=False, **quiet)
        blocks.load(lambda: (gr.Dropdown(choices=desk.saved()), head(desk.about())), None, [kept, title], **quiet)
        blocks.unload(stop)
    return blocks


def main() -> None:
    parser = argparse.ArgumentParser(description="Chat with a bundle in the browser.")
    parser.add_argument(
        "bundles", nargs="*", type=Path, metavar="NAME.qedge", help="without any: the embedded story teller"
    )
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets the local network in (127.0.0.1)")
    parser.add_argument("--password-file", type=Path, help="the password of the user quamba, in its first line")
    parser.add_argument("--folder", type=Path, default=default_folder(), help="where conversations are saved")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--share", action="store_true", help="a public address by gradio's own service; never without being asked"
    )
    args = parser.parse_args()
    try:
        desk = Desk([p.resolve() for p in args.bundles] or [storyteller()], args.folder, args.backend, args.threads)
        password = read_key(args.password_file) if args.password_file else None
    except QuambaError as e:
        sys.exit(f"chat.py: {e}")
    if password is None and (args.share or not is_loopback(args.host)):
        print("anybody who reaches this page can use it: --password-file FILE asks for a password", file=sys.stderr)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    page(desk).queue(default_concurrency_limit=8).launch(
        server_name=args.host,
        server_port=args.port,
        share=args.share,
        auth=("quamba", password) if password else None,
        theme=look(),
        css=CSS + panel.CSS,
        footer_links=[],
        ssr_mode=False,
        enable_monitoring=False,
    )
    desk.close()


if __name__ == "__main__":
    main()
