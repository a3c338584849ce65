"""Shifts from the most probable tokens' log-probs, where an engine gives no more than these."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from tokenshift_utils.measures.table import MEASURES
from tokenshift_utils.measures.top_logprobs import Aligned, align, join
from tokenshift_utils.models.policy import Engine, Sampling
from tokenshift_utils.pairs.compare import compare


@torch.inference_mode()
def score_pair(
    base: Engine,
    tuned: Engine,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    sampling: Sampling,
    top_k: int,
    batch_size: int,
) -> Iterator[tuple[np.ndarray, dict]]:
    """Compare two policies on given responses. See ``compare.score_pair``.

    Nuclei are covered, so that what is measured between them is exact; measures of whole
    distributions are those of ``measures.top_logprobs``.
    """
    for policy in (base, tuned):
        policy.check(sampling)
        policy.forget()
    some = [i for i, response in enumerate(responses) if len(response)]
    for start in range(0, len(some), batch_size):
        rows = some[start : start + batch_size]
        given = [prompts[i] for i in rows], [responses[i] for i in rows]
        lists = [policy.score_listed(*given, sampling.top_p) for policy in (base, tuned)]
        for i, of_base, of_tuned in zip(rows, *lists):
            pair = align(of_base, of_tuned, sampling.temperature)
            tokens = torch.tensor(responses[i], dtype=torch.long)
            columns = compare(pair.p, pair.q, pair.columns(tokens), sampling.top_p, top_k)
            _name(columns, pair, base, prompts[i], responses[i])
            columns["position"] = np.arange(len(tokens))
            yield np.full(len(tokens), i), columns


def _name(
    columns: dict, pair: Aligned, base: Engine, prompt: Sequence[int], response: Sequence[int]
) -> None:
    """Give tokens their ids, and measures of whole distributions what is known of these."""
    names = pair.names.numpy()
    best = torch.from_numpy(columns["top_ids_tuned"][:, :1])
    for name in ("token", "top_ids_base", "top_ids_tuned"):
        at = columns[name].reshape(len(names), -1)
        columns[name] = np.take_along_axis(names, at, axis=1).reshape(columns[name].shape)
    if not pair.partial:
        return
    whole = pair.whole_measures()
    for m in MEASURES:
        if m.whole != "listed":
            known = whole[m.whole].numpy() if m.whole else np.full_like(columns[m.name], np.nan)
            columns[m.name] = known
    columns["unknown_mass"] = pair.unknown_mass.numpy()
    # Tuned's first choice may be on no list of base, which is asked about it then.
    unknown = (pair.p.gather(1, best) == -torch.inf).squeeze(1).nonzero().squeeze(1).tolist()
    if unknown:
        asked = join(
            base.read(
                [[*prompt, *response[:i]] for i in unknown],
                [[int(columns["top_ids_tuned"][i, 0])] for i in unknown],
                None,
                1,
            )
        )
        columns["logp_base_of_tuned_top1"][unknown] = asked.logp[:, 0].numpy()
        columns["rank_base_of_tuned_top1"][unknown] = asked.rank.numpy()
