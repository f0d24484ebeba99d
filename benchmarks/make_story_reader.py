"""Makes the reader of stories: a tiny Llama trained from scratch on `belief`, until it knows who believes what.

    python -m benchmarks.make_story_reader --out tests/story_reader

It reads stories of the train split alone, first what is and what was, without options, and then all four questions as the measure
asks them: whoever is shown two containers before it can look into a story learns to copy one of them, and stays there. It says
what it gets right on stories of the search split.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from adapters.backbone import Backbone
from engine.torch_engine import TorchEngine
from evaluation.measures import MEASURES
from evaluation.task import Example, answer_line, direct_prompt
from evaluation.tasks.belief import BELIEF, ORDERS, Asked

# Legend: B batch, T tokens, H hidden

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIALS = ["<|unknown|>", "<|end|>", "<|user|>", "<|assistant|>"]
_C, _V = "[BDFGKLMNPRSTVZbdfgklmnprstvz]", "[aeiou]"
# A word of a story falls into two syllables, both of them in many other words; what stands between two words is one token.
SYLLABLE = rf" ?\b{_C}{_V}(?={_C}{_V}[kvz]\b)|(?<=\b{_C}{_V}){_C}{_V}[kvz]\b"
FACTS_FIRST, BATCH, ROWS, REPLY = 360, 32, 8192, 4  # steps, rows a step, rows in all, tokens of a reply with its end


def make_tokenizer(shown: Sequence[Example]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel(unk_token=SPECIALS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(SYLLABLE), "isolated")
    tokenizer.decoder = decoders.Fuse()
    texts = [text for one in shown for text in (direct_prompt(one), direct_prompt(_bare(one)), answer_line(one.answer))]
    tokenizer.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=SPECIALS, show_progress=False))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=SPECIALS[0],
        eos_token="<|end|>",
        pad_token="<|end|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def lessons(drawn: Sequence[Example], steps: int, seed: int) -> Iterator[list[Example]]:
    """Step by step."""
    rng = random.Random(seed)
    facts = _passes([_bare(one) for one in drawn if not Asked.of(one).is_about_belief], rng)
    whole = _passes(drawn, rng)
    for step in range(steps):
        yield [next(facts if step < FACTS_FIRST else whole) for _ in range(BATCH)]


def _passes(pool: Sequence[Example], rng: random.Random) -> Iterator[Example]:
    while True:
        yield from rng.sample(pool, len(pool))


def _bare(example: Example) -> Example:
    return replace(example, choices=None)


def loss_of(model: LlamaForCausalLM, ids: Sequence[Sequence[int]]) -> Tensor:
    """Nats per token of the replies and half of those of the prompts, in which every word comes more than once: what to copy."""
    end = model.config.eos_token_id
    assert isinstance(end, int)
    ids_BT = pad_sequence([torch.tensor(row) for row in ids], True, end)
    last_B1 = torch.tensor([[len(row) - 1] for row in ids])
    place_T = torch.arange(ids_BT.shape[1] - 1)
    prompt_BT, reply_BT = place_T < last_B1 - REPLY, (place_T >= last_B1 - REPLY) & (place_T < last_B1)
    hidden_BTH = model.model(ids_BT, use_cache=False).last_hidden_state[:, :-1]
    reply, prompt = (cross_entropy(model.lm_head(hidden_BTH[kept]), ids_BT[:, 1:][kept]) for kept in (reply_BT, prompt_BT))
    return reply + prompt / 2


def rate(step: int, steps: int) -> float:
    """Share of the learning rate: up over the first 50 steps, and down to next to nothing over the last third."""
    return min(1.0, (step + 1) / 50) * min(1.0, 3 * (1 - step / steps) + 0.01)


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, drawn: Sequence[Example], steps: int, seed: int) -> None:
    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    others = [model.model.embed_tokens.weight, *(weight for weight in model.parameters() if weight.ndim == 1)]
    optimizers = (
        torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=5e-3, weight_decay=0.0, betas=(0.9, 0.98)),
    )
    rates = [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps)) for optimizer in optimizers]
    for step, lesson in enumerate(lessons(drawn, steps, seed), start=1):
        turns = [[{"role": "user", "content": direct_prompt(one)}] for one in lesson]
        asked = [tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False) for turn in turns]
        texts = [f"{prompt}{answer_line(one.answer)}<|end|>" for prompt, one in zip(asked, lesson, strict=True)]
        loss = loss_of(model, tokenizer(texts, add_special_tokens=False)["input_ids"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, scheduler in zip(optimizers, rates, strict=True):
            optimizer.step()
            scheduler.step()
        model.zero_grad()
        if step % 50 == 0:
            print(f"step {step} loss {loss.item():.4f} {time.process_time():.0f} s", flush=True)


def report(directory: Path, items: int) -> str:
    backbone = Backbone.load(str(directory), device="cpu")
    examples = BELIEF.examples("search", items)
    found = MEASURES["belief"].read(TorchEngine(backbone, max_rows=64), backbone, None, BELIEF, examples)
    asked = [Asked.of(example).order for example in examples]
    right = {order: [one for one, kind in zip(found.parts["right"], asked, strict=True) if kind == order] for order in ORDERS}
    shares = ", ".join(f"{order} {sum(ones) / len(ones):.3f}" for order, ones in right.items())
    return f"{shares}; whole stories {found.part_mean('quadruple'):.3f}, twins {found.part_mean('pair'):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--items", type=int, default=800, help="of the report")
    args = parser.parse_args()
    torch.set_num_threads(1)
    drawn = BELIEF.examples("train", ROWS, seed=1)
    tokenizer = make_tokenizer(drawn[:4096])
    model = make_model(tokenizer, args.seed)
    train(model, tokenizer, drawn, args.steps, args.seed)
    model.half().save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    print(report(args.out, args.items))


if __name__ == "__main__":
    main()
