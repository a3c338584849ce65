"""Token-level distributional shifts of RLVR fine-tuning: measures, records, tables, figures.

The rooms, from the ground up; each imports only what stands above it in this list (the test command
holds the line, by the layers contract in pyproject.toml):

errors, paths, files  one sentence for a user's mistake; where things are; whole files in UTF-8
measures        divergences, nuclei, noise, weights: tensors only
report          estimates with intervals, tables, style of figures: no study
study           study files, models and tokenizers as files
tasks           problems, prompts, verification of answers
store           checksummed records, and the processes that compute them
models          one model: the policy protocol, transformers, vLLM, adapters
pairs           two models at once: comparing and mixing
records         what is measured, as records: rollouts, shifts, cross-sampling, single tokens
training        runs that make models: the tiny study, a study's own recipe
sections        the paper: one folder a section, with its records, numbers and plots; claims
bench           costs against plain generation, as ratios
run             what a reader calls: notebooks, command line, plans

What a notebook asks for is exported here and imported on first use, so that the command line
starts without loading torch.
"""

from importlib import import_module

_EXPORTS = {
    "CrossSampling": "records.cross_sampling",
    "Insertion": "pairs.mixer",
    "Mixed": "records.shifts",
    "Rollouts": "records.rollouts",
    "Rule": "pairs.rules",
    "Sampling": "models.policy",
    "Shifts": "records.shifts",
    "SingleToken": "records.single_token",
    "TokenshiftError": "errors",
    "fetch": "records.fetch",
    "load_study": "study.study",
    "shifts_of_files": "records.shifts_of_files",
    "show_shifts": "report.heatmap",
}


def __getattr__(name: str):
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
