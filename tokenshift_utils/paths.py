"""Where things are: the one module that knows the layout of a checkout.

The *root* is the directory that holds ``notebooks/studies``. Everything a study names is
relative to it, so that notebooks, commands and tests work from any working directory.
"""

import os
from pathlib import Path

from tokenshift_utils.errors import TokenshiftError

HOME_VARIABLE = "TOKENSHIFT_HOME"


def _is_root(directory: Path) -> bool:
    return (directory / "notebooks" / "studies").is_dir()


def root() -> Path:
    """The directory that holds ``notebooks/studies``.

    ``TOKENSHIFT_HOME`` where it is set, else the nearest such directory at or above the working
    directory, else the checkout that the package is installed from.

    Raises
    ------
    TokenshiftError
        Where none of the three is a root.
    """
    home = os.environ.get(HOME_VARIABLE)
    if home:
        directory = expand(home).resolve()
        if not _is_root(directory):
            raise TokenshiftError(
                f"{HOME_VARIABLE} is {directory}, which holds no notebooks/studies: set it to a "
                "checkout of the companion, or unset it"
            )
        return directory
    here = Path.cwd().resolve()
    for directory in (here, *here.parents, Path(__file__).resolve().parents[1]):
        if _is_root(directory):
            return directory
    raise TokenshiftError(
        f"no notebooks/studies at or above {here}: run from a checkout of the companion, or set "
        f"{HOME_VARIABLE} to one"
    )


def resolve(path: str | Path) -> Path:
    """A path of a study file as an absolute path (relative ones are relative to the root)."""
    return root() / expand(path)


def expand(path: str | Path) -> Path:
    """A path with ``~`` read as a home directory; a TokenshiftError where there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise TokenshiftError(
            f"the home directory in {path} is not known: give the path in full"
        ) from None


def display(path: str | Path) -> str:
    """A path as a reader should see it: relative to the root where it lies inside, posix style."""
    path = Path(path)
    try:
        return path.resolve().relative_to(root()).as_posix()
    except (ValueError, RuntimeError):  # outside the root, or symbolic links in a circle
        return path.as_posix()


def notebooks() -> Path:
    """The directory of the notebooks."""
    return root() / "notebooks"


def studies() -> Path:
    """The directory of the study files."""
    return notebooks() / "studies"


def results(study_name: str) -> Path:
    """Executed notebooks, tables, records and the manifest of one study."""
    return root() / "results" / study_name


def tables(study_name: str) -> Path:
    """Tables (csv, md, tex) of one study."""
    return results(study_name) / "tables"


def records(study_name: str) -> Path:
    """Parquet records of one study: recomputed where missing, never committed."""
    return results(study_name) / "records"


def figures(study_name: str) -> Path:
    """Figures (png, pdf) of one study."""
    return root() / "figures" / study_name
