"""An engine without vLLM: it draws inside and lists log-probs, over a policy of transformers.

A study whose backend is ``engines`` runs on it.
"""

import torch

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.measures.nucleus import log_softmax32, truncate
from tokenshift_utils.measures.top_logprobs import Listed, join
from tokenshift_utils.models.huggingface import HFPolicy


class Listing:
    """``policy.Engine`` on an ``HFPolicy``; ``asked`` counts the tokens of its answers."""

    draws_inside = True
    keeps_states = False
    positions = None

    def __init__(self, policy, top_logprobs=-1):
        self.policy, self.top_logprobs, self.asked = policy, top_logprobs, 0
        for name in ("name", "vocab_size", "eos_ids", "tokenizer"):
            setattr(self, name, getattr(policy, name))

    @property
    def fingerprint(self):
        return self.policy.fingerprint

    def open(self, rows):
        return self.policy.open(rows)

    def sample(self, *given, **named):
        return self.policy.sample(*given, **named)

    def check(self, sampling):
        if self.top_logprobs != -1 and (sampling.temperature != 1.0 or sampling.top_p == 1.0):
            raise TokenshiftError("takes the log-probs of the whole vocabulary")

    def forget(self):
        pass

    def _listed(self, logits, tokens, count, top_p):
        """Lists [n] of logits [n, V] at the tokens given."""
        logp, ids = log_softmax32(logits), torch.tensor(tokens)[:, None]
        own = logp.gather(1, ids)
        rank = (logp > own).sum(1) + 1
        while True:
            k = self.vocab_size if count == -1 else min(count, self.vocab_size)
            best = logp.topk(k)
            lists = Listed(
                *(self.vocab_size, torch.cat([ids, best.indices], 1)),
                *(torch.cat([own, best.values], 1), rank),
            )
            if top_p is None or bool(lists.covers(top_p).all()):
                return lists
            count *= 2

    def draft(self, texts, row_keys, positions, tokens, sampling, stops):
        made = []
        for text, key, position, most in zip(texts, row_keys, positions, tokens, strict=True):
            assert most >= 1
            session, ids, seen = self.policy.open(1), [], []
            session.enter(torch.tensor([0]), [text[:-1]])
            token = text[-1]
            while len(ids) < most and (not ids or ids[-1] not in stops):
                seen.append(session.read(torch.tensor([[token]]))[0, 0])
                p = truncate(log_softmax32(seen[-1][None], sampling.temperature), sampling.top_p)
                at = torch.tensor([position + len(ids)])
                token = int(p.draw(torch.tensor([key]), at))
                ids.append(token)
            self.asked += len(ids)
            lists = [self._listed(torch.stack(seen), ids, self.top_logprobs, sampling.top_p)]
            made.append((ids, join(lists)))
        return made

    def read(self, texts, tokens, top_p=None, count=None):
        count = self.top_logprobs if count is None else count
        self.asked += sum(map(len, tokens))
        found = []
        for text, given in zip(texts, tokens, strict=True):
            [(_, logits)] = self.policy.score([text], [given], block=len(given))
            found.append(self._listed(logits[0], given, count, top_p))
        return found

    def score_listed(self, prompts, responses, top_p=None):
        return self.read(prompts, responses, top_p)


def load(study, model):
    return Listing(HFPolicy.load(study.model_path(model), model, study.dtype), 12)
