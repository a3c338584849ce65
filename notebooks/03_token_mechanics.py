# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3 Token mechanics
#
# What do the shifts do to the candidates: does RL bring in new tokens, or move probability among
# those that base already ranks high? And how do the shifts grow in training?
#
# - Measured on the tuned model's own responses, at positions with high JS (the paper's choice)
#   and at all positions (asked for by reviewers). Ranks and probabilities are over the full
#   vocabulary.
# - Checkpoints are all scored on the final model's responses, so that they share their positions.
# - Intervals come from resampling problems with all their samples. They do not cover training
#   seeds.

# %% tags=["parameters"]
study = "tiny"  # a study under notebooks/studies, or the path of a study file
samples = None  # responses a problem that are measured; None: as in the study
checkpoint_samples = None  # responses a problem for scoring checkpoints; None: as in the study
high_js = None  # cut (nats) above which JS counts as high; None: as in the study
evolution_model = None  # model whose checkpoints are followed; None: as in the study
resamples = None  # bootstrap resamples; None: as in the study

# %%
from tokenshift_utils.run.notebook import start

nb = start("03_token_mechanics", globals())

# %% [markdown]
# What is missing of the records is computed here, once; later runs read it.

# %%
from tokenshift_utils.sections.common import paragraph
from tokenshift_utils.sections.mechanics import numbers, plots, records

shifts, checkpoints = records.mechanics_shifts(nb.study)

# %% [markdown]
# ## 3.1 Overlap of the candidates
#
# The paper, at JS > 0.1: the overlap of the two top-k sets rises steeply from k=1 to k=2; from
# there it is above 80% on average for SimpleRL and somewhat lower for DAPO. Dashed lines are SFT
# controls. Far down a peaked distribution, ranks are among tokens of negligible probability.

# %%
overlap = numbers.overlap_table(nb.study, shifts)
nb.table(overlap, "topk_overlap")
nb.figure(plots.plot_overlap(nb.study, overlap), "topk_overlap")

# %%
# NBVAL_CHECK_OUTPUT
paragraph(numbers.say_overlap(nb.study, overlap))

# %% [markdown]
# ## 3.2 Rank and probability of RL's choice under base
#
# The paper, at JS > 0.1: about 30% of RL's top-1 tokens are base's top-1; more than 80% (DAPO)
# and 90% (SimpleRL) are within base's top 3; base gives less than 0.01 to about 5% (DAPO) or
# almost none (SimpleRL). Look at how high the lines are at rank 3, and how low at 0.01 on the
# right.

# %%
ranks = numbers.rank_table(nb.study, shifts)
nb.table(ranks, "rank")
nb.figure(plots.plot_rank(nb.study, ranks, shifts), "rank")

# %%
# NBVAL_CHECK_OUTPUT
paragraph(numbers.say_rank(nb.study, ranks))

# %% [markdown]
# ## 3.3 Where the probability goes
#
# The same by mass: of the probability that tokens gain from base to tuned, how much goes to
# tokens already in base's top k? What is missing to 100% at the right end comes from outside its
# top 10.

# %%
mass = numbers.mass_table(nb.study, shifts)
nb.table(mass, "mass")
nb.figure(plots.plot_mass(nb.study, mass), "mass")
paragraph(numbers.say_mass(nb.study, mass))

# %% [markdown]
# ## 3.4 Over training
#
# The paper: JS grows monotonically over checkpoints, its 95th and 99th percentiles faster than
# the lower ones; the overlap of the high-JS set with the final one rises slowly, then steeply, to
# 1 (where it ends by construction). Steps are counted as in the training log.

# %%
evolution = numbers.evolution_table(nb.study, checkpoints)
if checkpoints:
    nb.table(evolution, "evolution")
    nb.figure(plots.plot_evolution(nb.study, evolution, nb.study.evolution.model), "evolution")

# %%
# NBVAL_CHECK_OUTPUT
paragraph(numbers.say_evolution(evolution))

# %% [markdown]
# ## 3.5 What reproduced
#
# Each claim with what was measured; criteria and reasons are in notebook 00.

# %%
found = numbers.section_evidence(nb.study, shifts, checkpoints)
nb.table(found, "evidence")

# %%
# NBVAL_CHECK_OUTPUT
from tokenshift_utils.sections.overview import say_claims, section_claims

print(say_claims(section_claims(nb.study, found, 3)))
