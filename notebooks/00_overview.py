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
# The paper's claims, each with a stated criterion, what was measured, and a verdict computed from the two.
# Most criteria were changed after tiny's numbers had been seen and before smollm2's were; every change is
# logged below. Everything here is read from the tables and figures that the other notebooks left.

# %% tags=["parameters"]
study = "tiny"  # a study under notebooks/studies, or the path of a study file

# %%
from tokenshift_utils.run.notebook import start

nb = start("00_overview", globals())

# %% [markdown]
# ## What holds, on each study
#
# The claims that tell most, a row a study. Right of the line the criterion holds; an interval across the
# line is undecided. Filled marks have intervals over problems and samples of one trained model; open
# ones, of comparisons of recipes, over training seeds.

# %%
from tokenshift_utils.sections import overview

studies, without = overview.side_by_side(nb.study)
forest = overview.forest_table(studies)
alt = "Forest plot of the leading claims: estimate and interval against the criterion, by study"
nb.figure(overview.plot_forest(forest, studies), "claims", alt=alt)
verdicts = overview.verdict_table(studies)
nb.say(overview.say_verdicts(verdicts, without))
nb.table(forest, "forest", "the figure's numbers", ["words", "study", "label", "value", "margin"])
nb.table(verdicts, "verdicts", "verdicts by study and grade of the claim")

# %% [markdown]
# A claim is graded by how much its verdict tells: *structural* (near certain by design of the study),
# *direction* (it could have gone the other way), *size* (a number of the paper's is met). *Supported*:
# the whole interval keeps the criterion; *not supported*: the whole interval violates it; *undecided*: it
# straddles it; *not testable*: the study lacks what the claim is about. What holds on a small study can
# be measured and holds there; it says nothing about the size of an effect in a large model.

# %%
claims = overview.claims_table(nb.study, overview.read_evidence(nb.study.name))
shown = ["claim", "grade", "subject", "criterion", "measured", "seeds", "verdict", "p_holm"]
nb.table(claims, "claims", "every claim of the paper on this study", shown, rows=None)
nb.show(overview.write_criteria_log(nb.study))

# %% [markdown]
# ## What the paper's reviewers asked
#
# Fifteen questions that the paper leaves open, answered from this study's tables.

# %%
questions, said = overview.open_questions(studies)
nb.say(said)
nb.table(questions, "questions", "the open questions with their answers", rows=None)

# %% [markdown]
# ## Gallery
#
# All figures, by notebook. Captions are file names under `figures/`.

# %%
nb.show(overview.gallery(nb.study))

# %% [markdown]
# ## What reproduced and what did not

# %%
# NBVAL_CHECK_OUTPUT
nb.say(overview.say_claims(nb.study, claims))

# %% [markdown]
# Read next: notebook 02 for the heart of it, what a few tokens do to a response; the guide's story for
# all of it in one page.
