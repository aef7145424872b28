"""The chat templates that a recipe can name, for an environment with `trim_blocks` and `lstrip_blocks`.

In it the line end after a block is dropped, and so is what stands before a block on its line; all other white space is
part of the text.
"""

from __future__ import annotations

CHATML = """\
{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- endif %}
"""

LLAMA3 = """\
{% for message in messages %}
{% if loop.first %}
{{ bos_token }}
{%- endif %}
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
{{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

MISTRAL = """\
{% if messages and messages[0]['role'] == 'system' %}
{% set system = messages[0]['content'] + '\\n\\n' %}
{% set turns = messages[1:] %}
{% else %}
{% set system = '' %}
{% set turns = messages %}
{% endif %}
{{ bos_token }}
{%- for message in turns %}
{% if message['role'] != ('user' if loop.index0 is even else 'assistant') %}
{{ raise_exception('roles must alternate between user and assistant, beginning with user') }}
{% endif %}
{% if message['role'] == 'user' %}
{{ ' [INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' }}
{%- else %}
{{ ' ' + message['content'] + eos_token }}
{%- endif %}
{% endfor %}
"""

ALPACA = """\
{% set found = namespace(system='', role='') %}
{% for message in messages %}
{% if message['role'] == 'system' %}
{% set found.system = message['content'] | trim %}
{% endif %}
{% set found.role = message['role'] %}
{% endfor %}
{{ found.system }}
{%- set heads = {'user': 'Instruction', 'user_context': 'Input', 'assistant': 'Response'} %}
{% for message in messages if message['role'] in heads %}
{{ '\\n\\n' if found.system or not loop.first }}
{{- '### ' + heads[message['role']] + ':\\n' + message['content'] | trim }}
{%- endfor %}
{% if add_generation_prompt and found.role != 'assistant' %}
{{ '\\n\\n### Response:\\n' }}
{%- endif %}
"""

EXAONE = """\
{% for message in messages %}
{% if loop.first and message['role'] != 'system' %}
{{ '[|system|][|endofturn|]\\n' }}
{%- endif %}
{{ '[|' + message['role'] + '|]' + message['content'] }}
{{- '\\n' if message['role'] == 'user' else '[|endofturn|]\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '[|assistant|]' }}
{%- endif %}
"""

BUILT_IN = {
    "alpaca": ALPACA,
    "chatml": CHATML,
    "exaone": EXAONE,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
}
