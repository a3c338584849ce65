# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 0 Overview
#
# The paper's claims, each with a criterion that was fixed in code before the models were
# analysed, what was measured, and a verdict computed from the two. Everything here is read from
# the tables and figures that the other notebooks left.
#
# - *supported*: the whole interval keeps the criterion; *not supported*: the whole interval
#   violates it; *undecided*: the interval straddles it; *not testable*: the study lacks what the
#   claim is about.
# - Intervals cover **problems and samples, not training seeds**: each model stands for one
#   training run.
# - A criterion that holds on a small study says that the claim *can* be measured and holds there;
#   it says nothing about the size of an effect in a large model. Verdicts are not corrected for
#   their number.

# %% tags=["parameters"]
study = "tiny"  # a study under notebooks/studies, or the path of a study file

# %%
from tokenshift_utils.run.notebook import start

nb = start("00_overview", globals())

# %% [markdown]
# ## Claims

# %%
from tokenshift_utils.sections import overview

claims = overview.claims_table(nb.study, overview.read_evidence(nb.study.name))
nb.table(claims, "claims")

# %% [markdown]
# ## What reproduced and what did not

# %%
# NBVAL_CHECK_OUTPUT
print(overview.say_claims(claims))

# %% [markdown]
# ## Gallery
#
# All figures, by notebook. Captions are file names under `figures/`.

# %%
overview.gallery(nb.study)
