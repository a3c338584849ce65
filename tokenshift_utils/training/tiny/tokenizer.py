"""The tiny study's tokenizer: words with their leading space, single digits, one token for ``\\boxed{``.

Tokens carry their own white space and the decoder only joins them, so decoding gives ``\\boxed{17}``
and ``-4`` and encoding the decoded text of any corpus document returns its ids.
"""

import re
from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tokenshift_utils.training.tiny import corpus, problems

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
VOCABULARY_SIZE = 128
_PIECE = r"\\boxed\{| ?[a-z]+|[\s\S]"
_FIXED_TEXT = (
    "question: ones, carry borrow; tens gives makes wait check"
    " we are given step since products bind tighter the product of and equals sum difference digit"
    " by is with one carried borrowed less hence expression becomes therefore result"
    " let me compute now find so it right answer"
)


@cache
def vocabulary() -> tuple[str, ...]:
    """Every token, by id: specials, characters and ``\\boxed{``, words, then unused fillers."""
    words = set(_pieces(_FIXED_TEXT)) | set(_pieces(" ".join(corpus.GUESSES)))
    for wording in problems.WORDINGS:
        words.update(_pieces(" " + wording.replace("{}", "")))
    for table in corpus.PHRASES:
        for phrase in table:
            words.update(_pieces(phrase))
    words = {word for word in words if re.fullmatch(r" ?[a-z]+", word)}
    tokens = [PAD, EOS, UNK, *"0123456789", *"+-*=.,:;?} \n", "\\boxed{", *sorted(words)]
    if len(tokens) > VOCABULARY_SIZE:
        raise ValueError(f"{len(tokens)} tokens do not fit a vocabulary of {VOCABULARY_SIZE}")
    tokens += [f"<unused_{i}>" for i in range(len(tokens), VOCABULARY_SIZE)]
    return tuple(tokens)


def _pieces(text: str) -> list[str]:
    return re.findall(_PIECE, text)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The fast tokenizer; ids are positions in :func:`vocabulary`."""
    inner = Tokenizer(models.WordLevel({t: i for i, t in enumerate(vocabulary())}, unk_token=UNK))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECE), behavior="isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
    )
