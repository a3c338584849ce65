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
# - Measured on the tuned model's own responses, at positions with high JS (the paper's choice) and
#   beside them at all positions. Ranks and probabilities are over the full vocabulary.
# - Checkpoints are all scored on the final model's responses, so that they share their positions.
# - Brackets are intervals from resampling problems with all their samples; those over training
#   seeds stand in a table of their own.

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
from tokenshift_utils.sections import mechanics as section

shifts, checkpoints, runs = section.records.mechanics_shifts(nb.study)
found, headlines = section.numbers.section_evidence(nb.study, shifts, checkpoints)
seeds = section.numbers.over_seeds(nb.study, runs)

# %% [markdown]
# ## 3.1 Overlap of the candidates
#
# The paper, at JS > 0.1: the overlap of the two top-k sets rises steeply from k=1 to k=2; from
# there it is above 80% on average for SimpleRL and somewhat lower for DAPO.
#
# Dashed lines are SFT controls. Far down a peaked distribution, ranks are among tokens of negligible
# probability.

# %%
overlap = section.numbers.overlap_table(nb.study, shifts)
words = (
    "Overlap of both models' top-k sets against k, at high-JS and at all positions, a line a model"
)
nb.figure(section.plots.plot_overlap(nb.study, overlap), "topk_overlap", alt=words)
nb.say(section.numbers.say_overlap(nb.study, overlap))
shown = ["pair", "at", "positions", "k1", "k2", "k3", "k5", "k10"]
nb.table(overlap, "topk_overlap", "mean overlap of the top-k sets", columns=shown)

# %% [markdown]
# ## 3.2 Rank and probability of RL's choice under base
#
# The paper, at JS > 0.1: about 30% of RL's top-1 tokens are base's top-1; more than 80% (DAPO)
# and 90% (SimpleRL) are within base's top 3; base gives less than 0.01 to about 5% (DAPO) or
# almost none (SimpleRL).
#
# Above: how many of the tuned model's first choices are within base's first ranks. Below: how many of
# them base gave less than x; the line is at 0.01.

# %%
ranks = section.numbers.rank_table(nb.study, shifts)
words = (
    "Base's rank of the tuned top-1 and its probability under base, at high-JS and all positions"
)
nb.figure(section.plots.plot_rank(nb.study, ranks, shifts), "rank", alt=words)
nb.say(section.numbers.say_rank(nb.study, ranks))
shown = ["pair", "at", "positions", "top1", "top2", "top3", "top10", "base_prob_below_0.01"]
nb.table(ranks, "rank", "where base ranked the tuned top-1", columns=shown)

# %% [markdown]
# ## 3.3 Where the probability goes
#
# The same by mass: of the probability that tokens gain from base to tuned, how much goes to
# tokens already in base's top k? What is missing to 100% at the right end comes from outside its
# top 10.

# %%
mass = section.numbers.mass_table(nb.study, shifts)
words = "Share of the gained probability within base's top k, at high-JS and at all positions"
nb.figure(section.plots.plot_mass(nb.study, mass), "mass", alt=words)
nb.say(section.numbers.say_mass(nb.study, mass))
nb.table(mass, "mass", "probability moved, and the share of it that base's top k gain")

# %% [markdown]
# ## 3.4 Over training
#
# The paper: JS grows monotonically over checkpoints, its 95th and 99th percentiles faster than
# the lower ones; the overlap of the high-JS set with the final one rises slowly, then steeply, to
# 1 (where it ends by construction).
#
# Steps are counted as in the training log. Dotted lines are over the full vocabulary.

# %%
evolution = section.numbers.evolution_table(nb.study, checkpoints)
if checkpoints:
    words = (
        "By training step: percentiles of JS, share of high JS, overlap with the final high-JS set"
    )
    fig = section.plots.plot_evolution(nb.study, evolution, nb.study.evolution.model)
    nb.figure(fig, "evolution", alt=words)
    nb.table(evolution, "evolution", "JS by training step, on nuclei and in full")
nb.say(section.numbers.say_evolution(nb.study, evolution))

# %% [markdown]
# ## 3.5 What reproduced
#
# Criteria, reasons and what was measured are in notebook 00. Read on with notebook 04: whether weighting
# the loss by divergence helps.

# %%
# NBVAL_CHECK_OUTPUT
nb.say(section.say_claims(nb.study, section.section_claims(nb.study, found, 3, seeds)))

# %%
nb.table(headlines, "headlines", "every quantity at high JS on both supports, beside all positions")
nb.table(seeds, "seeds", "the same over training seeds, on few samples of each run")
nb.table(found, "evidence", "what the claims are judged by")
