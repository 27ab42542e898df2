"""Templates render as transformers renders them, and a hostile one ends in one clear error."""

import time

import pytest

from quamba_edge.errors import BadBundle, BadUsage
from quamba_edge.runtime.chat_template import MAX_TEXT, render

TALK = [
    {"role": "system", "content": "You are <b>brief</b>."},
    {"role": "user", "content": " Tell me of a dog named Tim.\n"},
    {"role": "assistant", "content": 'He "ran" — né à Paris.'},
    {"role": "user", "content": "And then?"},
]
STORYTELLER = (
    "{{ bos_token }}{% for message in messages %}\n"
    "    {% if message.role == 'user' %}\n"
    "User: {{ message.content | trim }}\n"
    "    {% elif message.role == 'assistant' %}\n"
    "Assistant: {{ message.content | trim }}\n"
    "    {% else %}\n"
    "{{ message.content }}\n"
    "    {% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
CHATML = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LOOPS = (
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{% set ns.n = ns.n + 1 %}"
    "{{ loop.index0 }}{{ ns.n ~ ':' ~ m.content.strip() }}{% if ns.n == 2 %}{% break %}{% endif %}{% endfor %}"
    "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}{{ messages | map(attribute='role') | join('/') }}"
    "{{ tools is none }}{{ 'a-b'.replace('-', '+') }}{{ ['x', 'y'] | join(', ') | indent(2) }}{{ '%s!' % 'q' }}{{ '-' * 3 }}"
    "{% generation %}kept{% endgeneration %}{{ eos_token }}"
)


@pytest.mark.parametrize("template", [STORYTELLER, CHATML, LOOPS], ids=["storyteller", "chatml", "loops"])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_it_renders_as_transformers_does(template, add_generation_prompt):
    oracle = pytest.importorskip("transformers.utils.chat_template_utils").render_jinja_template
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    expected, _ = oracle([TALK], chat_template=template, add_generation_prompt=add_generation_prompt, **names)
    assert render(template, TALK, add_generation_prompt=add_generation_prompt, **names) == expected[0]


def test_further_variables_reach_the_template():
    assert render("{{ tools[0].name }}", TALK, tools=[{"name": "clock"}]) == "clock"


def test_raise_exception_is_the_users_error():
    with pytest.raises(BadUsage, match="rejects this conversation: roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}", TALK)


def test_an_empty_conversation_is_refused():
    with pytest.raises(BadUsage, match="no messages"):
        render(CHATML, [])


GROW = "{%% set ns = namespace(x=%s) %%}{%% for i in range(99) %%}{%% set ns.x = %s %%}{%% endfor %%}{{ ns.x %s }}"
HOSTILE = {
    "attributes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.system('true') }}",
    "globals by filter": "{{ (raise_exception | attr('__globals__')).os }}",
    "changes its input": "{{ messages.append(messages[0]) }}",
    "endless loop": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "endless recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "range": "{{ range(10 ** 9) | list }}",
    "too much text": "{% for i in range(9999) %}{{ 'many words ' * 99 }}{% endfor %}",
    "concatenation": GROW % ("'ab'", "ns.x ~ ns.x", ""),
    "addition": GROW % ("'ab'", "ns.x + ns.x", ""),
    "product": "{{ 'ab' * 10 ** 10 }}",
    "list product": "{{ [0] * 10 ** 10 }}",
    "power": "{{ 9 ** (9 ** 81) }}",
    "padding": "{{ 'a'.ljust(10 ** 10) }}",
    "tabs": "{{ ('\\t' * 1000).expandtabs(tabsize=10 ** 6) }}",
    "format width": "{{ '{:9999999999}'.format(1) }}",
    "nested format width": "{{ '{:{}}'.format(1, 10 ** 10) }}",
    "percent width": "{{ '%9999999999d' % 1 }}",
    "percent star": "{{ '%*d' % (10 ** 10, 1) }}",
    "format filter": "{{ '%*d' | format(10 ** 10, 1) }}",
    "replace": GROW % ("'aa'", "ns.x.replace('a', ns.x)", ""),
    "replace filter": GROW % ("'aa'", "ns.x | replace('a', ns.x)", ""),
    "join": GROW % ("'aa'", "ns.x.join([ns.x, ns.x, ns.x])", ""),
    "join filter": GROW % ("'aa'", "[ns.x, ns.x] | join(ns.x)", ""),
    "nested list printed": GROW % ("[1]", "[ns.x, ns.x]", ""),
    "nested list as json": GROW % ("[1]", "[ns.x, ns.x]", "| tojson | length"),
    "nested list as string": GROW % ("[1]", "[ns.x, ns.x]", "| string | length"),
    "indent": "{{ 'a\\nb' | indent(10 ** 10) }}",
    "json indent": "{{ messages | tojson(indent=10 ** 9) }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_one_error(name):
    start = time.monotonic()
    with pytest.raises(BadBundle, match="^chat template") as caught:
        render(HOSTILE[name], TALK)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert time.monotonic() - start < 20  # not a measurement: an endless one would take hours


@pytest.mark.parametrize("template", ["{% for", "{{ nothing.at.all }}", "{{ 1 / 0 }}", "{{ messages | nofilter }}"])
def test_a_broken_template_is_one_error(template):
    with pytest.raises(BadBundle, match="^chat template"):
        render(template, TALK)


def test_long_conversations_fit_the_budget():
    talk = TALK + TALK[2:] * 200
    assert render(CHATML, talk).count("<|im_start|>") == len(talk) + 1
    assert len(render("{{ messages[0].content }}", [{"content": "a" * (MAX_TEXT - 1)}])) == MAX_TEXT - 1
