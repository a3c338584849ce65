"""Prompts as plain text and as chats, and the tokens that end a response."""

import shutil

import pytest
from transformers import AutoTokenizer

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.models.load import load_policy
from tokenshift_utils.records.requests import study_sampling
from tokenshift_utils.records.rollouts import Rollouts, get_rollouts
from tokenshift_utils.run.checks import check_inputs
from tokenshift_utils.store.store import artefact_key
from tokenshift_utils.study.schema import Prompt
from tokenshift_utils.study.study import load_study
from tokenshift_utils.tasks.prompts import prompt_text

TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def study(mini_root, tiny_pair):
    """The mini study with a tuned model whose tokenizer has a chat template."""
    made = mini_root / "chatty"
    shutil.copytree(tiny_pair.tuned, made)
    tokenizer = AutoTokenizer.from_pretrained(made)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(made)
    study = load_study("mini")
    return study.with_overrides(**{"models.tuned.path": str(made)})


def key(study):
    return artefact_key(Rollouts("base", "sums", 1, study_sampling(study)).parts(study))


def test_plain_text_is_the_template(study):
    other = study.with_overrides(**{"prompt.template": "so {{ {problem}"})
    assert prompt_text(other, "x {y}") == "so { x {y}"


def test_a_chat_wraps_the_text_in_one_models_template_for_both(study):
    chat = study.model_copy(update={"prompt": Prompt(template="{problem}?", chat="tuned")})
    assert prompt_text(chat, "1+1") == "<user>1+1?\n<assistant>"
    prompt = Prompt(template="{problem}", chat="tuned", system="be brief")
    told = study.model_copy(update={"prompt": prompt})
    assert prompt_text(told, "1+1") == "<system>be brief\n<user>1+1\n<assistant>"
    check_inputs(told)
    tokenizer = AutoTokenizer.from_pretrained(study.model_path("base"))
    for model in ("base", "tuned"):
        row = get_rollouts(told, model, samples=1).iloc[0]
        text = prompt_text(told, "question: what is 0+1?\n")
        assert list(row["prompt_ids"]) == tokenizer.encode(text, add_special_tokens=False)
    assert len({key(study), key(chat), key(told)}) == 3


def test_a_chat_template_that_is_not_there_is_refused(study):
    prompt = Prompt(template="{problem}", chat="base")
    with pytest.raises(TokenshiftError, match="has no chat template"):
        check_inputs(study.model_copy(update={"prompt": prompt}))
    with pytest.raises(TokenshiftError, match="'prompt.chat' names the model 'nobody'"):
        study.with_overrides(**{"prompt.chat": "nobody"})
    with pytest.raises(TokenshiftError, match="'system' is for a prompt with 'chat'"):
        study.with_overrides(**{"prompt.system": "be brief"})


def test_responses_end_on_the_studys_stop_tokens_too(study):
    tokenizer = AutoTokenizer.from_pretrained(study.model_path("base"))
    stops = {tokenizer.convert_tokens_to_ids(token) for token in ("7", "=")}
    other = study.with_overrides(stop_tokens=["7", "="])
    assert set(load_policy(other, "base").eos_ids) == {tokenizer.eos_token_id, *stops}
    assert load_policy(study, "base").eos_ids == (tokenizer.eos_token_id,)
    plain = get_rollouts(study, "base")
    ended = get_rollouts(other, "base")
    cut = 0
    for was, now in zip(plain["response_ids"], ended["response_ids"], strict=True):
        at = next((i + 1 for i, token in enumerate(was) if token in stops), len(was))
        assert list(now) == list(was[:at])
        cut += at < len(was)
    assert cut and key(other) != key(study)


def test_a_stop_token_that_is_none_is_refused(study):
    with pytest.raises(TokenshiftError, match="which is no token"):
        check_inputs(study.with_overrides(stop_tokens=["<|im_end|>"]))
