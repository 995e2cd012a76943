#!/usr/bin/env python3
"""Writes chat.json: chat templates, and what transformers 5.23 renders with them.

The templates have the constructs of well-known models' ones, not all of their text: ChatML with a default system prompt
(SmolLM2), trimming and method calls (Qwen), a beginning-of-text token and a date (Llama 3), alternation that is checked
(Mistral, Gemma), generation marks and loop controls (SmolLM3).
"""
import json
from pathlib import Path

from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

TEMPLATES = {
    "chatml": "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
              "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
              "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
              "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "qwen": """{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n' + (tools | tojson) + '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if message.role == 'user' and not(message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}
        {%- set ns.last_query_index = index %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message.role == 'user') or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set content = message.content %}
        {%- if '</think>' in content %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\\n' + content.strip('\\n') + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{{- ns.last_query_index }}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}""",
    "llama3": """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%Y")[:2] %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "mistral": """{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% if message['role'] == 'user' %}
{{ '[INST] ' + message['content'] + ' [/INST]' }}
{% else %}
    {{ ' ' + message['content'] | trim + eos_token }}
{% endif %}
{% endfor %}""",
    "marks": """{% for message in messages %}
{%- if message.role == "assistant" %}
{% generation %}
{{- message.content }}
{%- endgeneration %}
{% continue %}
{% endif %}
{{ message.role.upper() }}: {{ message.content.replace("  ", " ").lower() }}
{% endfor %}
{% for key, value in messages[0].items() | sort %}{{ key }}={{ value.strip() }};{% endfor %}
{{ messages[0].get("name", "nobody") }} {{ "%d of %s" | format(1, "a") }} {{ messages | map(attribute="role") | join("-") }}""",
}
USER = {"role": "user", "content": "Hello,  world! "}
ANSWER = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nGrüße & 'more'\n"}
SYSTEM = {"role": "system", "content": " Be <brief>. "}
CONVERSATIONS = {
    "user": [USER],
    "system": [SYSTEM, USER],
    "answered": [USER, ANSWER, {"role": "user", "content": "<tool>x</tool>"}],
}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def main() -> None:
    cases = []
    for name, template in TEMPLATES.items():
        for which, messages in CONVERSATIONS.items():
            case = {"name": f"{name}, {which}", "template": template, "messages": messages, "tokens": TOKENS}
            try:
                rendered, _ = render_jinja_template(
                    conversations=[messages], chat_template=template, add_generation_prompt=True, **TOKENS)
                case["rendered"] = rendered[0]
            except TemplateError as error:
                case["error"] = str(error)
            cases.append(case)
    path = Path(__file__).with_name("chat.json")
    path.write_text(json.dumps(cases, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
