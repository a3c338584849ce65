"""Tokenizers that differ, or that do not survive their own loading, are refused."""

import json
import shutil

import pytest
from conftest import WORDS, write_model, write_tokenizer

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.models.huggingface import HFPolicy
from tokenshift_utils.study.tokenizers import (
    check_same_tokenizer,
    check_tokenizer,
    load_tokenizer,
)


@pytest.fixture
def directory(tiny_pair, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_pair.base, copy)
    return copy


def edit(directory, name, change):
    file = directory / name
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def bpe(directory, merges, vocabulary="abcd", extra=()):
    """Save a byte-pair tokenizer with the given merges."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = ["<eos>", *vocabulary, *extra]
    model = models.BPE({w: i for i, w in enumerate(words)}, merges)
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), eos_token="<eos>").save_pretrained(
        directory
    )
    return directory


def test_the_pair_shares_one(tiny_pair):
    check_same_tokenizer(tiny_pair.base, tiny_pair.tuned)


def test_fault_12_vocabularies_of_one_size_that_differ(tiny_pair, directory):
    swapped = list(WORDS)
    i, j = swapped.index("7"), swapped.index("8")
    swapped[i], swapped[j] = swapped[j], swapped[i]
    write_tokenizer(directory, swapped)
    with pytest.raises(TokenshiftError, match=r"differ in their vocabulary \('7' is 31 .* 32"):
        check_same_tokenizer(tiny_pair.base, directory)


def test_merges_that_differ(tmp_path):
    extra = ["ab", "abc", "bc"]
    first = bpe(tmp_path / "a", [("a", "b"), ("ab", "c"), ("b", "c")], extra=extra)
    second = bpe(tmp_path / "b", [("b", "c"), ("a", "b"), ("ab", "c")], extra=extra)
    with pytest.raises(TokenshiftError, match="merges .*rule 0"):
        check_same_tokenizer(first, second)
    check_same_tokenizer(first, first)


def test_special_tokens_that_differ(tiny_pair, directory):
    def plain(content):
        for token in content["added_tokens"]:
            token["special"] &= token["content"] != "<unk>"

    edit(directory, "tokenizer.json", plain)
    edit(directory, "tokenizer_config.json", lambda content: content.pop("unk_token"))
    with pytest.raises(TokenshiftError, match="special tokens .*<unk>"):
        check_same_tokenizer(tiny_pair.base, directory)


def test_text_processing_that_differs(tiny_pair, directory):
    edit(directory, "tokenizer.json", lambda c: c.update(normalizer={"type": "Lowercase"}))
    with pytest.raises(TokenshiftError, match="text processing"):
        check_same_tokenizer(tiny_pair.base, directory)


def test_chat_templates_that_differ(tiny_pair, directory, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(directory, other)
    (directory / "chat_template.jinja").write_text("{{ messages[0].content }}")
    check_same_tokenizer(tiny_pair.base, directory)  # one of them has none
    (other / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    with pytest.raises(TokenshiftError, match="chat template"):
        check_same_tokenizer(directory, other)


def test_which_token_ends_a_response_may_differ(tiny_pair, directory):
    edit(directory, "tokenizer_config.json", lambda content: content.update(eos_token="<pad>"))
    check_same_tokenizer(tiny_pair.base, directory)


def test_ids_outside_the_models_vocabulary(directory):
    write_tokenizer(directory, [*WORDS, " zebra"])
    with pytest.raises(
        TokenshiftError, match="' zebra' 36, but the model's vocabulary has only 36"
    ):
        HFPolicy.load(directory, "copy")


def test_a_round_trip_that_changes_text(directory):
    def spaced(content):
        content["decoder"] = {
            "type": "Replace",
            "pattern": {"String": "1"},
            "content": "l",
        }

    edit(directory, "tokenizer.json", spaced)
    with pytest.raises(TokenshiftError, match="turns '.*' into '.*' by encoding and decoding"):
        HFPolicy.load(directory, "copy")


def test_reserved_markers_need_not_be_text(tmp_path):
    words = [*WORDS, "<unused_0>", "[unused1]"]
    write_model(tmp_path, words=words)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.encode("<unused_0>")) != "<unused_0>"
    check_tokenizer(tokenizer, len(words), tmp_path)


def test_a_tokenizer_that_loads_as_another(tmp_path):
    """As AutoTokenizer does to a word-level tokenizer beside a qwen2 configuration."""
    write_model(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    mangled = list(WORDS)
    i, j = mangled.index("3"), mangled.index("4")
    mangled[i], mangled[j] = mangled[j], mangled[i]
    write_tokenizer(tmp_path, mangled)
    with pytest.raises(TokenshiftError, match="that numbers '[34]' differently from its own"):
        check_tokenizer(tokenizer, len(WORDS), tmp_path)
