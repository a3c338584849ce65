"""The Policy protocol on vLLM: engines that keep many requests in flight.

A response is one request, drawn with the package's noise inside the engine (``vllm_sampler``). Given
responses are scored by prompt log-probs; drafts that another engine made are read by putting them,
token by token, behind a text that the engine has cached already. Of long vocabularies only the
most probable tokens' log-probs are asked for: ``measures.top_logprobs`` says what that gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.measures.nucleus import GROWTH, log_softmax32
from tokenshift_utils.measures.top_logprobs import Listed, join
from tokenshift_utils.models import vllm_engine
from tokenshift_utils.models.adapters import adapter_rank, check_adapter
from tokenshift_utils.models.decoding import check_prompts, check_rows
from tokenshift_utils.models.policy import Continuation, Sampling
from tokenshift_utils.models.sessions import UncachedSession
from tokenshift_utils.models.vllm_engine import Ask, Setup
from tokenshift_utils.study.checkpoints import directory_fingerprint, is_adapter, load_config
from tokenshift_utils.study.study import Study
from tokenshift_utils.study.tokenizers import check_tokenizer, load_tokenizer, model_ends
from tokenshift_utils.study.weights import check_weights

LONG = 2**14  # vocabularies above it are not returned whole at every position


class VLLMPolicy:
    """A model of a study behind a vLLM engine, which is started when it is first asked.

    ``top_logprobs`` is how many log-probs are asked for at a position, -1 for all. ``adapter`` is a
    PEFT adapter on the model in ``directory``: policies with and without share one engine.
    """

    device = torch.device("cpu")  # where its answers are
    draws_inside = True
    keeps_states = False

    def __init__(
        self, setup: Setup, name: str, top_logprobs: int = -1, adapter: Path | None = None
    ) -> None:
        directory = setup.directory
        config = load_config(directory, setup.trusted)
        check_weights(directory, setup.trusted)
        if adapter is not None:
            check_adapter(adapter, directory, setup.trusted, vllm=True)
        self.setup, self.name, self.adapter = setup, name, adapter
        self.top_logprobs = top_logprobs
        self.vocab_size = int(config.get_text_config(decoder=True).vocab_size)
        if top_logprobs == -1 and self.vocab_size > LONG:
            raise TokenshiftError(
                f"{name} has a vocabulary of {self.vocab_size} tokens, too many to return whole at "
                "every position: set the study's vllm.top_logprobs, for instance to 64"
            )
        self.tokenizer = load_tokenizer(directory)
        check_tokenizer(self.tokenizer, self.vocab_size, directory)
        self.eos_ids = model_ends(directory)
        own = [setup.fingerprint] + ([directory_fingerprint(adapter)] if adapter else [])
        self.fingerprint = "+".join(own)

    @cached_property
    def _lora(self) -> Any:
        if self.adapter is None:
            return None
        from vllm.lora.request import LoRARequest

        number = 1 + int(self.fingerprint[-7:], 16)  # the same adapter has the same number
        return LoRARequest(str(self.adapter), number, str(self.adapter))

    def _run(self, asks: Sequence[Ask]) -> Iterator[Any]:
        vllm_engine.engine(self.setup)  # (its environment comes before the first import of vllm)
        return vllm_engine.run_requests(self.setup, asks, self._lora, self.vocab_size)

    def check(self, sampling: Sampling) -> None:
        """Refuse distributions that a list of the most probable tokens does not give."""
        if self.top_logprobs == -1 or (sampling.temperature == 1.0 and sampling.top_p < 1.0):
            return
        raise TokenshiftError(
            f"temperature {sampling.temperature:g} with top-p {sampling.top_p:g} takes the log-probs "
            "of the whole vocabulary: set vllm.top_logprobs to -1, or temperature 1 and top-p below 1"
        )

    @property
    def positions(self) -> int | None:
        """How many tokens a text may have, where the study says; else the engine refuses more."""
        return self.setup.max_model_len

    def forget(self) -> None:
        """Drop cached texts, so that what comes does not depend on what was."""
        vllm_engine.engine(self.setup).reset_prefix_cache()

    def open(self, rows: int) -> EngineSession:
        """A session of so many rows without text."""
        return EngineSession(self, rows)

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        row_keys: Sequence[int],
        sampling: Sampling,
        stop_ids: Sequence[int] | None = None,
        batch_size: int | None = None,
        first: Sequence[int] | None = None,
    ) -> list[Continuation]:
        """One response a prompt, in the order given. See ``policy.Policy``.

        All are given to the engine at once, which batches them itself (``batch_size`` is of no
        use). ``logprobs`` are empty at a temperature other than 1 where only the most probable
        tokens' are returned.
        """
        check_rows(prompts, row_keys, sampling, first)
        if not len(prompts):
            return []
        self.forget()
        stops = self.eos_ids if stop_ids is None else tuple(stop_ids)
        begin = [0] * len(prompts) if first is None else first
        plain = sampling.temperature == 1.0
        wanted = 0 if plain else -1 if self.top_logprobs == -1 else None
        asks = [
            Ask(text, sampling.max_new_tokens - start, _draw(key, start, sampling), stops, wanted)
            for text, key, start in zip(prompts, row_keys, begin)
        ]
        made = []
        for answer in self._run(asks):
            [written] = answer.outputs
            ids, values = list(written.token_ids), []
            if wanted is not None:
                found = vllm_engine.listed(written.logprobs, self.vocab_size)
                logp = found.logp[:, 0] if plain else self._tempered(found, sampling.temperature)
                values = logp.to(torch.float64).tolist()
            made.append(Continuation(ids, values, "eos" if ids[-1] in stops else "length"))
        return made

    def _tempered(self, found: Listed, temperature: float) -> Tensor:
        logp = log_softmax32(_spread(found), temperature)
        return logp.gather(1, found.ids[:, :1]).squeeze(1)

    def draft(
        self,
        texts: Sequence[Sequence[int]],
        row_keys: Sequence[int],
        positions: Sequence[int],
        tokens: Sequence[int],
        sampling: Sampling,
        stops: Sequence[int],
    ) -> list[tuple[list[int], Listed]]:
        """Up to so many ``tokens`` behind each text, from response position ``positions``, and the lists
        that they come from."""
        self.check(sampling)
        asks = [
            Ask(text, most, _draw(key, position, sampling), stops, self.top_logprobs)
            for text, key, position, most in zip(texts, row_keys, positions, tokens)
        ]
        made = []
        for text, answer in zip(texts, self._run(asks)):
            [written] = answer.outputs
            ids = list(written.token_ids)
            found = vllm_engine.listed(written.logprobs, self.vocab_size)
            made.append((ids, self._covered(found, text, ids, sampling.top_p)))
        return made

    def read(
        self,
        texts: Sequence[Sequence[int]],
        tokens: Sequence[Sequence[int]],
        top_p: float | None = None,
        count: int | None = None,
    ) -> list[Listed]:
        """The lists from which ``tokens`` behind each text would come.

        ``count`` log-probs a place, ``top_logprobs`` where None, and more where they do not cover
        the nucleus at ``top_p``.
        """
        count = self.top_logprobs if count is None else count
        asks = [
            Ask(text, len(given), {"forced": list(map(int, given))}, (), count)
            for text, given in zip(texts, tokens)
        ]
        found = []
        for text, given, answer in zip(texts, tokens, self._run(asks)):
            lists = vllm_engine.listed(answer.outputs[0].logprobs, self.vocab_size)
            found.append(lists if top_p is None else self._covered(lists, text, given, top_p))
        return found

    def score_listed(
        self,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        top_p: float | None = None,
    ) -> list[Listed]:
        """The lists at every position of given responses, by prompt log-probs.

        More are asked for where they do not cover the nucleus at ``top_p``. vLLM 0.32 fails at prompt
        log-probs where adapters can be put on, so that there responses are read token by token.
        """
        if self.setup.lora_rank:
            return self.read(prompts, responses, top_p)
        asks = [
            Ask([*prompt, *response], 1, {"forced": [0]}, (), None, self.top_logprobs)
            for prompt, response in zip(prompts, responses)
        ]
        found = []
        for prompt, response, answer in zip(prompts, responses, self._run(asks)):
            lists = vllm_engine.listed(answer.prompt_logprobs, self.vocab_size, len(prompt))
            found.append(lists if top_p is None else self._covered(lists, prompt, response, top_p))
        return found

    def _covered(
        self, lists: Listed, text: Sequence[int], tokens: Sequence[int], top_p: float
    ) -> Listed:
        """The same places with longer lists where they end inside the nucleus."""
        count = self.top_logprobs
        while count != -1:
            short = (~lists.covers(top_p)).nonzero().squeeze(-1).tolist()
            if not short:
                break
            count = count * GROWTH if count * GROWTH < self.vocab_size else -1
            longer = self.read(
                [[*text, *tokens[:i]] for i in short], [[tokens[i]] for i in short], None, count
            )
            parts = {i: lists.select(slice(i, i + 1)) for i in range(len(lists))}
            lists = join(list((parts | dict(zip(short, longer))).values()))
        return lists

    @torch.inference_mode()
    def score(
        self,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        block: int = 256,
    ) -> Iterator[tuple[slice, Tensor]]:
        """Teacher-forced log-probs by blocks of response positions. See ``policy.Policy``.

        For whole vocabularies; ``score_listed`` is for lists.
        """
        check_prompts(prompts, responses=responses)
        if self.top_logprobs != -1:
            raise TokenshiftError(
                f"{self.name} gives {self.top_logprobs} log-probs a position, and full "
                "distributions were asked for: set vllm.top_logprobs to -1"
            )
        self.forget()
        some = [i for i, response in enumerate(responses) if len(response)]
        lists = self.score_listed([prompts[i] for i in some], [responses[i] for i in some])
        logps = {i: _spread(found) for i, found in zip(some, lists)}
        longest = max(map(len, responses), default=0)
        for start in range(0, longest, block):
            stop = min(start + block, longest)
            logp = torch.zeros(len(prompts), stop - start, self.vocab_size)
            for i, values in logps.items():
                here = values[start:stop]
                logp[i, : len(here)] = here
            yield slice(start, stop), logp


class EngineSession(UncachedSession):
    """Rows of text whose next distributions are asked for one by one, whole. See ``policy.Session``.

    For a few places; what writes asks for blocks (``VLLMPolicy.draft``, ``read``).
    """

    def read(
        self,
        tokens: Tensor,
        rows: Tensor | None = None,
        counts: Tensor | None = None,
        last: bool = False,
    ) -> Tensor:
        """Read ``tokens`` [b, n]; see ``policy.Session``."""
        rows, columns = self._take(tokens, rows, counts, last)
        texts = [
            self._text[row, : int(column) + 1].tolist()
            for row, wanted in zip(rows, columns)
            for column in wanted
        ]
        lists = self._model.read(texts, [[0]] * len(texts), None, -1)
        return _spread(join(lists)).view(*columns.shape, -1)


def _draw(key: int, position: int, sampling: Sampling) -> dict[str, Any]:
    """The order for tokens drawn with a row's noise, from response position ``position`` on."""
    return {
        "key": int(key),
        "first": int(position),
        "temperature": float(sampling.temperature),
        "top_p": float(sampling.top_p),
    }


def _spread(listed: Listed) -> Tensor:
    """Lists of the whole vocabulary in the order of ids, ``[n, V]``."""
    logp = torch.empty(len(listed), listed.vocabulary)
    return logp.scatter_(1, listed.ids[:, 1:], listed.logp[:, 1:])


def load(study: Study, model: str) -> VLLMPolicy:
    """The policy of a model or checkpoint of the study; an adapter's is on the base model's engine."""
    path, base = study.model_path(model), study.model_path(study.base)
    adapter = path if is_adapter(path) else None
    directory = base if adapter else path
    engine = study.vllm.of(study.base if adapter else model)
    rank = 0
    if directory == base:
        on_base = [study.model_path(name) for name in study.models]
        rank = max((adapter_rank(p) for p in on_base if is_adapter(p)), default=0)
    setup = Setup(
        directory,
        directory_fingerprint(directory),
        study.dtype,
        engine.gpu_memory_utilization,
        engine.tensor_parallel_size,
        engine.devices,
        engine.kv_cache_gib,
        engine.max_model_len,
        engine.max_num_batched_tokens,
        rank,
        study.model(study.base if adapter else model).trust_remote_code,
        study.model(study.base if adapter else model).max_position_embeddings,
    )
    adapted = directory_fingerprint(adapter) if adapter else None
    return _policy(setup, model, engine.top_logprobs, adapter, adapted)


@lru_cache(maxsize=64)
def _policy(
    setup: Setup, name: str, top_logprobs: int, adapter: Path | None, adapted: str | None
) -> VLLMPolicy:
    return VLLMPolicy(setup, name, top_logprobs, adapter)
