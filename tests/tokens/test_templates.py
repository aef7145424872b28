"""The built-in chat templates: their output, character by character."""

from __future__ import annotations

import pytest

from jmerge.recipe.tokens import TEMPLATES
from jmerge.tokens.templates import BUILT_IN
from jmerge.tokens.trial import environment

TALK = [("user", " Hi "), ("assistant", " Yo "), ("user", "Bye")]
WITH_SYSTEM = [("system", " Be kind "), *TALK]

WANTED = {
    ("chatml", True): (
        "<|im_start|>system\n Be kind <|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n"
        "<|im_start|>assistant\n Yo <|im_end|>\n<|im_start|>user\nBye<|im_end|>\n",
        "<|im_start|>assistant\n",
    ),
    ("chatml", False): (
        "<|im_start|>user\n Hi <|im_end|>\n<|im_start|>assistant\n Yo <|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n",
        "<|im_start|>assistant\n",
    ),
    ("llama3", True): (
        "B<|start_header_id|>system<|end_header_id|>\n\nBe kind<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nYo<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    ("llama3", False): (
        "B<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nYo<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    ("mistral", True): ("B [INST]  Be kind \n\n Hi  [/INST]  Yo E [INST] Bye [/INST]", ""),
    ("mistral", False): ("B [INST]  Hi  [/INST]  Yo E [INST] Bye [/INST]", ""),
    ("alpaca", True): (
        "Be kind\n\n### Instruction:\nHi\n\n### Response:\nYo\n\n### Instruction:\nBye",
        "\n\n### Response:\n",
    ),
    ("alpaca", False): (
        "### Instruction:\nHi\n\n### Response:\nYo\n\n### Instruction:\nBye",
        "\n\n### Response:\n",
    ),
    ("exaone", True): (
        "[|system|] Be kind [|endofturn|]\n[|user|] Hi \n[|assistant|] Yo [|endofturn|]\n[|user|]Bye\n",
        "[|assistant|]",
    ),
    ("exaone", False): (
        "[|system|][|endofturn|]\n[|user|] Hi \n[|assistant|] Yo [|endofturn|]\n[|user|]Bye\n",
        "[|assistant|]",
    ),
}  # fmt: skip


def rendered(name: str, talk: list[tuple[str, str]], prompt: bool) -> str:
    """What a built-in template makes of a dialogue."""
    messages = [{"role": role, "content": content} for role, content in talk]
    template = environment().from_string(BUILT_IN[name])
    values = {"messages": messages, "bos_token": "B", "eos_token": "E"}
    return str(template.render(**values, add_generation_prompt=prompt))


def test_names() -> None:
    """Recipes know just the built-in ones."""
    assert tuple(BUILT_IN) == TEMPLATES
    assert {name for name, _ in WANTED} == set(BUILT_IN)


@pytest.mark.parametrize(("name", "system"), WANTED)
@pytest.mark.parametrize("prompt", [False, True])
def test_output(name: str, system: bool, prompt: bool) -> None:
    """With and without a system text, with and without the beginning of an answer."""
    text, tail = WANTED[name, system]
    assert rendered(name, WITH_SYSTEM if system else TALK, prompt) == text + tail * prompt


def test_an_answer_ends_the_dialogue() -> None:
    """Alpaca begins none after one; the input of an instruction has a head of its own."""
    talk = [("user", "Sum"), ("user_context", " 1 2 "), ("assistant", "3")]
    wanted = "### Instruction:\nSum\n\n### Input:\n1 2\n\n### Response:\n3"
    assert rendered("alpaca", talk, True) == wanted
    assert (
        rendered("alpaca", [("system", "a"), ("system", "b"), ("user", "c")], False)
        == "b\n\n### Instruction:\nc"
    )


@pytest.mark.parametrize("talk", [[("assistant", "a")], [("user", "a"), ("user", "b")], [("tool", "a")],
                                  [("user", "a"), ("system", "b")]])  # fmt: skip
def test_mistral_wants_turns(talk: list[tuple[str, str]]) -> None:
    """Roles that do not alternate, and others, are its exception."""
    with pytest.raises(Exception, match="roles must alternate"):
        rendered("mistral", talk, True)
