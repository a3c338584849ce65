"""Prompts as plain text and as chats, and the tokens that end a response."""

import json
import shutil
from datetime import datetime

import pytest
from transformers import AutoTokenizer

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.models.load import load_policy
from tokenshift_utils.records.fetch import fetch
from tokenshift_utils.records.requests import study_sampling
from tokenshift_utils.records.rollouts import Rollouts
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
        row = fetch(told, Rollouts.of(told, model, samples=1)).iloc[0]
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
    plain = fetch(study, Rollouts.of(study, "base"))
    ended = fetch(other, Rollouts.of(other, "base"))
    cut = 0
    for was, now in zip(plain["response_ids"], ended["response_ids"], strict=True):
        at = next((i + 1 for i, token in enumerate(was) if token in stops), len(was))
        assert list(now) == list(was[:at])
        cut += at < len(was)
    assert cut and key(other) != key(study)


def test_a_stop_token_that_is_none_is_refused(study):
    with pytest.raises(TokenshiftError, match="which is no token"):
        check_inputs(study.with_overrides(stop_tokens=["<|im_end|>"]))


def with_template(study, template):
    """The study as a chat by a template of the tuned model's."""
    directory = study.model_path("tuned")
    (directory / "chat_template.jinja").unlink(missing_ok=True)
    file = directory / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
    return study.model_copy(update={"prompt": Prompt(template="{problem}", chat="tuned")})


REFUSAL = "{% if messages[0].role == 'system' %}{{ raise_exception('No system turns') }}{% endif %}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (REFUSAL.replace("system", "user", 1) + TEMPLATE, r"makes no prompt: No system turns \("),
        ("{% for m in messages %}{{ m.content }", "makes no prompt: unexpected '}'"),
        ("{{ messages[0].content.nothing.more }}", "no attribute 'nothing'"),
        ("{{ tools | length }}" + TEMPLATE, "NoneType"),
        ("{{ 1 / 0 }}", "makes no prompt: division by zero"),
        ("{% for i in range(10**9) %}{% endfor %}", "makes no prompt: Range too big"),
        ("{{ messages[0].role }}", "leaves the problem out"),
        ("{{ messages[0].content[0] }}", "leaves the problem out"),
        ("{{ messages[0].content | upper }}", "or writes it otherwise"),
        ("{{ '\\ud800' }}" + TEMPLATE, "makes no prompt: .*surrogates not allowed"),
        ("{{ range(10**4) | random }}" + TEMPLATE, "something else every time"),
        ("{{ strftime_now('%H:%M:%S') }}" + TEMPLATE, "writes the time of day"),
    ],
)
def test_a_chat_template_that_makes_no_prompt_is_one_sentence(study, template, message):
    with pytest.raises(TokenshiftError, match=f"chat template of the model 'tuned'.*{message}"):
        check_inputs(with_template(study, template))


def test_a_model_with_another_template_is_said(study, tmp_path, capsys):
    base = shutil.copytree(study.model_path("base"), tmp_path / "base")
    (base / "chat_template.jinja").write_text("{{ messages[0].content }}")
    study = study.with_overrides(**{"models.base.path": str(base)})
    chat = with_template(study, TEMPLATE)
    check_inputs(chat)
    said = capsys.readouterr().err
    assert said.startswith("warning: the chat template of 'base' is not that of 'tuned'")
    check_inputs(study)
    assert capsys.readouterr().err == ""


def test_a_byte_order_mark_of_a_template_is_no_prompt(study):
    chat = with_template(study, TEMPLATE)
    directory = study.model_path("tuned")
    (directory / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8-sig")
    assert prompt_text(chat, "1+1") == "<user>1+1\n<assistant>"


def test_a_template_without_system_turns(study, capsys):
    chat = with_template(study, REFUSAL + TEMPLATE)
    check_inputs(chat)
    assert capsys.readouterr().err == ""
    prompt = Prompt(template="{problem}", chat="tuned", system="be brief")
    with pytest.raises(TokenshiftError, match="No system turns.*leave 'prompt.system' out"):
        check_inputs(chat.model_copy(update={"prompt": prompt}))


def test_a_date_in_a_prompt_is_said_and_makes_other_records(study, monkeypatch, capsys):
    from transformers.utils import chat_template_utils

    def on(year):
        class Clock:
            now = staticmethod(lambda: datetime(year, 5, 6, 7, 8, 9))

        monkeypatch.setattr(chat_template_utils, "datetime", Clock)
        return key(dated), prompt_text(dated, "1+1")

    dated = with_template(study, "Today is {{ strftime_now('%d %b %Y') }}. " + TEMPLATE)
    check_inputs(dated)
    assert "warning: the chat template of the model 'tuned' writes the date" in (
        capsys.readouterr().err
    )
    first, text = on(2024)
    assert text == "Today is 06 May 2024. <user>1+1\n<assistant>"
    assert on(2024)[0] == first and on(2025)[0] != first
