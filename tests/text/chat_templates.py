"""Chat templates in the styles that are common, written for these tests."""

CHATML = """\
{%- if messages[0]['role'] != 'system' -%}
    {{ '<|im_start|>system\\nBe of help.<|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
    {{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""

HEADERS = """\
{% set loop_messages = messages %}
{% for message in loop_messages %}
    {% set content = '<|start|>' + message['role'] + '<|end|>\\n\\n' + message['content'] | trim + '</s>' %}
    {% if loop.index0 == 0 %}
        {% set content = bos_token + content %}
    {% endif %}
{{ content }}{% endfor %}
{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\\n\\n' }}{% endif %}"""

NO_SYSTEM = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}\
{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Roles must alternate user/assistant/user') }}
{% endif %}
{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{ '<|im_start|>' + role + '\\n' + message['content'] | trim + '<|im_end|>\\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>model\\n' }}{% endif %}"""

INSTRUCTIONS = """\
{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}\
{% else %}{% set rest = messages %}{% set system = false %}{% endif %}\
{% for message in rest %}\
{% if loop.index0 == 0 and system %}\
{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}\
{% else %}{% set content = message['content'] %}{% endif %}\
{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""

PLAIN = """\
{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'].strip() }}

{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"""

TOOLS = """\
{%- if tools is not none and tools | length > 0 %}{{ tools | tojson(indent=2) }}{% endif -%}
{%- if not date_string is defined %}{% set date_string = strftime_now('%Y') %}{% endif -%}
{%- set ns = namespace(seen=0) -%}
{{- bos_token + '<|start|>' + date_string + '<|end|>' }}
{%- for message in messages -%}
    {%- if message.role == 'tool' %}{% continue %}{% endif -%}
    {%- if message.tool_calls is defined and message.tool_calls %}{{ message.tool_calls | tojson }}{% endif -%}
    {%- set ns.seen = ns.seen + 1 -%}
    {%- if message.role == 'assistant' -%}
        {{- '<|start|>assistant<|end|>' -}}{%- generation -%}{{- message.content + '</s>' -}}{%- endgeneration -%}
    {%- else -%}
        {{- '<|start|>' + message.role + '<|end|>' + message.content | tojson + '</s>' -}}
    {%- endif -%}
    {%- if ns.seen > 90 %}{% break %}{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|start|>assistant<|end|>' }}{% endif -%}
"""

FAITHFUL = {
    "chatml": CHATML,
    "headers": HEADERS,
    "no system": NO_SYSTEM,
    "instructions": INSTRUCTIONS,
    "plain": PLAIN,
    "tools": TOOLS,
}
"""Templates that only ever add to what they wrote before."""

FORGETS_THOUGHTS = """\
{%- for message in messages -%}
    {%- if message.role == 'assistant' and not loop.last -%}
        {{ '<|im_start|>assistant\\n' + message.content.split('</think>')[-1].strip() + '<|im_end|>\\n' }}
    {%- else -%}
        {{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}
"""

SYSTEM_LAST = """\
{%- set system = messages[0].content + ' ' if messages[0].role == 'system' else '' -%}
{{- bos_token }}
{%- for message in messages -%}
    {%- if message.role == 'user' -%}
        {{- '[INST]' + (system if loop.last else '') + message.content + '[/INST]' -}}
    {%- elif message.role == 'assistant' %}{{ message.content + eos_token }}{% endif -%}
{%- endfor -%}
"""

FORGETS_REPLIES = """\
{%- for message in messages if message.role == 'user' -%}
    {{ bos_token + '[INST]' + message.content + '[/INST]' }}
{%- endfor -%}
"""


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
