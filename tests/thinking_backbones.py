"""Tiny random backbones whose chat templates know a chain of thought between markers, and tools."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from tokenizers import AddedToken
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

# As Qwen3's: tools in the system turn, calls and chains of earlier turns in their own markup, `enable_thinking` false closes the
# chain in the prompt. `OPENS` stands where a template begins the chain itself, as DeepSeek-R1's.
_TEMPLATE = """\
{%- if tools %}<|im_start|>system
Tools:{% for tool in tools %}
{{ tool | tojson }}{% endfor %}
Call one as <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role not in ['system', 'user', 'assistant', 'tool'] %}{{ raise_exception('no role ' + message.role) }}{% endif %}
{{- '<|im_start|>' + message.role + (' ' + message.name if message.name else '') + '\\n' }}
{%- if message.reasoning_content %}{{ '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}{% endif %}
{{- message.content or '' }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{{ call.function.name }} {{ call.function.arguments | tojson }}
</tool_call>{% endfor %}
{{- '' if loop.last and not add_generation_prompt and message.role == 'assistant' and keep_open else '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% else %}OPENS{% endif %}{% endif %}"""


def thinking_template(*, opens: bool = False) -> str:
    return _TEMPLATE.replace("OPENS", "<think>\n" if opens else "")


def thinking_directory(plain: Path, directory: Path, *, opens: bool = False, special: bool = False) -> Path:
    """Of the tokenizer in `plain`. `special`: its markers are special tokens, which are left out of a decoded text as a rule."""
    shutil.copytree(plain, directory)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory)
    words = ("<think>", "</think>", "<tool_call>", "</tool_call>")
    tokenizer.add_tokens([AddedToken(word, special=special, normalized=False) for word in words], special_tokens=special)
    tokenizer.chat_template = thinking_template(opens=opens)
    tokenizer.save_pretrained(directory)
    torch.manual_seed(1)
    config = LlamaConfig.from_pretrained(directory)
    config.vocab_size = len(tokenizer)
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory
