"""Fixtures: a random tiny pair of models, and a root where a study on them runs.

The pair is made in seconds and means nothing, which is enough for everything but the notebooks.
"""

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two threads on a busy core crawl
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest
import torch
import yaml
from hypothesis import settings

# An example on a busy machine is late and not wrong.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")

CHECKOUT = Path(__file__).resolve().parents[1]
WORDS = [
    *["<pad>", "<eos>", "<unk>", "\n", "question", " what", " is", " so", " the", " answer"],
    *[" then", " first", " we", " have", " wait", " check", " ", ":", "?", ".", "=", "+", "-", "*"],
    *[*"0123456789", "\\boxed{", "}"],
]


def gone(process: int) -> bool:
    """Whether a process has ended, its parent told or not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@dataclass(frozen=True)
class TinyPair:
    """Directories of two models that share a tokenizer, as ``save_pretrained`` leaves them."""

    base: Path
    tuned: Path


def write_tokenizer(directory: Path, words: list[str] = WORDS) -> None:
    """Save a word-level fast tokenizer; words carry their space, so decoding only joins."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(r"\\boxed\{| ?[a-z]+|[\s\S]"), behavior="isolated"
    )
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    ).save_pretrained(directory)


def write_model(directory: Path, noise: float = 0.0, words: list[str] = WORDS) -> None:
    """Save a random float32 Llama of two layers and its tokenizer.

    The same weights every time, plus Gaussian noise of the given standard deviation: models of
    different noise agree at some positions and not at others, as a base and a tuned model do.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=words.index("<eos>"),
        pad_token_id=words.index("<pad>"),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            for weight in model.parameters():
                weight += noise * torch.randn_like(weight)
    model.save_pretrained(directory)
    write_tokenizer(directory, words)


def write_adapter(base: Path, directory: Path, seed: int = 0) -> tuple[Path, Path]:
    """Save a random LoRA adapter on the model in ``base``, and the model merged with it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"])
        model = get_peft_model(model, config)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_" in name:
                    weight.copy_(0.05 * torch.randn_like(weight))
    model.save_pretrained(directory / "adapter")
    model.merge_and_unload().save_pretrained(directory / "merged")
    for file in base.glob("*token*"):
        (directory / "merged" / file.name).write_bytes(file.read_bytes())
    return directory / "adapter", directory / "merged"


def write_benchmark(file: Path, problems: int) -> None:
    """Save sums in the random pair's words."""
    rows = [
        {"id": f"p{i}", "problem": f"question: what is {i}+{i + 1}?\n", "answer": str(2 * i + 1)}
        for i in range(problems)
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_smoke_root(root: Path, **settings) -> None:
    """A root for the smoke study on the checkout's models; ``settings`` are other keys of it."""
    sources = shutil.ignore_patterns(".ipynb_checkpoints")
    shutil.copytree(CHECKOUT / "notebooks", root / "notebooks", ignore=sources)
    file = root / "notebooks/studies/smoke.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | settings, sort_keys=False))
    (root / "results/tiny").mkdir(parents=True)
    for part in ("models", "benchmarks", "training"):
        (root / "results/tiny" / part).symlink_to(CHECKOUT / "results/tiny" / part)


@pytest.fixture(scope="module")
def memory_directory(tmp_path_factory):
    """A directory in memory, where the machine has one: for what opens files by the thousand."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path_factory.mktemp("files")
        return
    with tempfile.TemporaryDirectory(prefix="tokenshift-", dir=memory) as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory) -> TinyPair:
    """A random base and a tuned model near it. Shared by all tests: copy before changing."""
    directory = tmp_path_factory.mktemp("pair")
    write_model(directory / "base")
    write_model(directory / "tuned", noise=0.02)
    return TinyPair(directory / "base", directory / "tuned")


@pytest.fixture(scope="module")
def pair(tiny_pair):
    """Base and tuned of the random pair, in float64."""
    from tokenshift_utils.models.huggingface import HFPolicy

    directories = {"base": tiny_pair.base, "tuned": tiny_pair.tuned}
    return tuple(HFPolicy.load(path, name, "float64") for name, path in directories.items())


@pytest.fixture(scope="module")
def prompts(request):
    """As many random prompts as the module's ``N``."""
    generator = np.random.default_rng(1)
    lengths = (generator.integers(1, 9) for _ in range(request.module.N))
    return [generator.integers(3, 36, length).tolist() for length in lengths]


def write_mini_root(root: Path, pair: TinyPair, **settings) -> None:
    """A root with the study ``mini`` of the random pair and three problems; ``settings`` are keys."""
    study = yaml.safe_load((CHECKOUT / "notebooks/studies/smoke.yaml").read_text())
    study |= {"name": "mini", "title": "Random pair", "note": "Means nothing.", "workers": 0}
    study["models"] = {
        "base": {"path": str(pair.base), "label": "Base", "kind": "base"},
        "tuned": {"path": str(pair.tuned), "label": "Tuned", "kind": "rl"},
    }
    study["benchmarks"] = {"sums": {"path": "benchmarks/sums.jsonl", "label": "Sums"}}
    study["sampling"]["max_new_tokens"] = 24
    study["cross_sampling"] |= {"pairs": ["tuned"], "benchmark": None, "controls": None}
    for section in ("evolution", "precision", "robustness", "trained_in"):
        del study[section]
    (root / "notebooks/studies").mkdir(parents=True)
    file = root / "notebooks/studies/mini.yaml"
    file.write_text(yaml.safe_dump(study | settings, sort_keys=False))
    write_benchmark(root / "benchmarks/sums.jsonl", 3)


@pytest.fixture
def mini_root(tmp_path, tiny_pair, monkeypatch) -> Path:
    """A root of its own, with the study ``mini``.

    ``TOKENSHIFT_HOME`` points at it, so that nothing is read from or written to the checkout.
    """
    write_mini_root(tmp_path, tiny_pair)
    monkeypatch.setenv("TOKENSHIFT_HOME", str(tmp_path))
    return tmp_path


def margin(pair, prompt, ids, key, rule, sampling):
    """How close the choice after ``ids`` is to being another one, in float64: the smallest of the
    Gumbel scores' lead, the masses' distance from top-p, and the distance of JS from epsilon, where a
    rule has one."""
    from tokenshift_utils.measures import divergences
    from tokenshift_utils.measures.noise import gumbel
    from tokenshift_utils.measures.nucleus import log_softmax32, truncate

    nuclei, row, at = [], torch.tensor([key]), torch.tensor([len(ids)])
    margins = []
    for policy in pair:
        with torch.no_grad():
            logits = policy.model(torch.tensor([prompt + ids]), use_cache=False).logits[:, -1]
        nucleus = truncate(log_softmax32(logits, sampling.temperature), sampling.top_p)
        nuclei.append(nucleus)
        masses = nucleus.logp.exp().sort(descending=True).values.cumsum(-1)
        margins.append((masses - sampling.top_p).abs().min())
        scores = nucleus.log_probs() + gumbel(row, at, torch.arange(policy.vocab_size))
        best = scores.topk(2).values[0]
        margins.append(best[0] - best[1])
    if rule is None or rule.name not in ("js", "js_full"):
        return float(min(margins))
    full = rule.name == "js_full"
    js = divergences.js(*((n.logp if full else n.log_probs()) for n in nuclei))
    margins.append((js - rule.threshold).abs().squeeze())
    return float(min(margins))


def fetch_both(study, mixed):
    """(mixed responses, switches) of some requests for cross-sampling."""
    from tokenshift_utils.records.fetch import fetch

    return fetch(study, mixed), fetch(study, mixed, "switches")
