"""Token-level distributional shifts of RLVR fine-tuning: measures, records, tables, figures.

What a notebook asks for is exported here and imported on first use, so that the command line
starts without loading torch.
"""

from importlib import import_module

_EXPORTS = {
    "Mixed": "records.shifts",
    "Sampling": "models.policy",
    "TokenshiftError": "errors",
    "get_cross_sampling": "records.cross_sampling",
    "get_rollouts": "records.rollouts",
    "get_shifts": "records.shifts",
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
