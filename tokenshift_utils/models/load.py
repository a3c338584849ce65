"""The policy of a model of a study, by the study's backend.

A backend is a module with one function, ``load(study, model_name)``, that returns a policy (see
``policy.Policy``). What its policies can do they declare, so that nothing else asks for a backend by
name. The modules are found by name and not imported here: the key of a record follows the code of
the backend that made it, and of no other (see ``backend_code``).
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tokenshift_utils.errors import TokenshiftError, first_line
from tokenshift_utils.models.policy import Policy
from tokenshift_utils.store.code import code_version, source_digest
from tokenshift_utils.tasks.prompts import stop_token_ids

if TYPE_CHECKING:
    from tokenshift_utils.study.study import Study

# What a study file may say in ``backend``, and the module beside this one. A module of somebody
# else's is named there whole, as for ``import``.
BACKENDS = {
    "transformers": "huggingface",
    "vllm": "vllm",
}


def load_policy(study: Study, model_name: str) -> Policy:
    """The policy of a model or checkpoint of the study, which ends on the study's stop tokens too."""
    check_backend(study)
    module = import_module(_module(study.backend))
    if not callable(vars(module).get("load")):
        raise TokenshiftError(
            f"the backend '{study.backend}' of study {study.name} has no function 'load': see "
            "notebooks/guide/adding.md"
        )
    policy = module.load(study, model_name)
    own = vars(policy).setdefault("own_eos_ids", policy.eos_ids)  # policies stay, for other studies
    policy.eos_ids = tuple(sorted({*own, *stop_token_ids(policy.tokenizer, study.stop_tokens)}))
    return policy


def check_backend(study: Study) -> None:
    """Refuse a backend that there is not. Imports nothing but the packages that it is in."""
    if study.backend not in BACKENDS and _file(study.backend) is None:
        raise TokenshiftError(
            f"study {study.name}: 'backend' is '{study.backend}', which is neither one of "
            f"{', '.join(BACKENDS)} nor a module that Python finds here: correct it, or install its "
            "package"
        )


def backend_code(study: Study) -> str:
    """A hash of the code of the study's backend, for the keys of what its policies compute.

    Of this package's it is all that the module reaches; of another's, the Python files of the
    module's own folder, or the module alone where it is in no package.
    """
    check_backend(study)
    if study.backend in BACKENDS:
        return code_version(_module(study.backend))
    file = _file(study.backend)
    beside = sorted(file.parent.glob("*.py")) if "." in study.backend else [file]
    return " ".join(source_digest(each.read_text(encoding="utf-8"))[:16] for each in beside)


def _module(backend: str) -> str:
    return f"{__package__}.{BACKENDS[backend]}" if backend in BACKENDS else backend


@lru_cache(maxsize=16)
def _file(module: str) -> Path | None:
    """The source file of a module of somebody else's; None where there is none."""
    try:
        found = find_spec(module)
    except (ImportError, ValueError):
        return None
    except Exception as error:  # (whatever the package that it is in does when imported)
        raise TokenshiftError(
            f"the backend '{module}' cannot be imported ({first_line(error)}): see its package"
        ) from error
    if found is None or not found.has_location or not str(found.origin).endswith(".py"):
        return None
    return Path(found.origin)
