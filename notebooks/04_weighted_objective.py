# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4 Divergence-weighted objective
#
# If the shifts are where the gain is, does it help to weigh the advantage by them? The paper's
# objective is DAPO's with the advantage of every token multiplied by a weight, w = 1 + s
# (sigmoid(alpha k3) - 1/2), where k3 = r - 1 - log r estimates KL(pi_old || pi_theta) from the
# ratio r of the sampled token. alpha > 0 boosts tokens of high KL, alpha < 0 those of low KL. Its
# authors call it a diagnostic, not a method.
#
# - Nothing is trained here: this reads the logs of the runs under the study's training directory.
#   `tokenshift train --arm high-kl --seed 3` makes any of them again, `--arms` all.
# - Fixed before the runs: two confirmatory arms, each tested once against DAPO over seeds.
#   Everything else has intervals only.
# - Runs of one seed share problems and noise, so differences are taken seed by seed.

# %% tags=["parameters"]
study = "tiny"  # a study under notebooks/studies, or the path of a study file
confidence = None  # level of the intervals over seeds; None: as in the study

# %%
from tokenshift_utils.run.notebook import start

nb = start("04_weighted_objective", globals())

# %%
# NBVAL_CHECK_OUTPUT
from tokenshift_utils.sections.common import paragraph
from tokenshift_utils.sections.objective import numbers, plots, records, words

runs = records.read_runs(nb.study)
paragraph(words.say_runs(runs))

# %%
nb.table(numbers.configuration_table(nb.study, runs), "configuration")
nb.table(numbers.runs_table(runs), "runs")

# %% [markdown]
# ## 4.1 The weight
#
# k3 is never negative, so a high-KL boost only raises weights (1 to 1 + s/2) and a low-KL boost
# only lowers them (1 to 1 - s/2). The points show the 90th and 99th percentile of k3 over the tokens
# met in training. Look at where most tokens are: alpha was set so that an upper tenth is told from
# the rest, which stays on the flat part at 1.

# %%
met = numbers.weights_table(runs)
nb.figure(plots.plot_weights(runs, numbers.weight_curves(runs), met), "weights")
nb.table(met, "weights")

# %% [markdown]
# The first update after each rollout has the policy that sampled, so k3 is 0 and every weight 1
# there; means leave those updates out. A mean weight other than 1 changes the size of the steps,
# not only their emphasis (as far as the optimiser, which rescales gradients, lets it).

# %%
# NBVAL_CHECK_OUTPUT
paragraph(words.say_weights(runs, met))

# %% [markdown]
# ## 4.2 Which tokens get which weight
#
# High-KL boost, early and late in its runs, updates with trivial weights left out. Look at what the
# tokens on top have in common, and whether they stay the same.

# %%
tokens = numbers.token_table(runs, runs.boost("high-kl"))
nb.figure(plots.plot_tokens(tokens), "tokens")
nb.table(tokens, "tokens", rows=8)
paragraph(words.say_tokens(tokens))

# %% [markdown]
# ## 4.3 Training curves
#
# Lines are means over seeds (their number in brackets), bands reach from the least seed to the
# greatest. Seeds differ more than arms do; two panels therefore take the difference to DAPO seed by
# seed. Look at whether its band leaves 0, and whether arms that differ in accuracy moved as far.

# %%
nb.figure(plots.plot_training(runs), "training_curves")
paragraph(words.say_curves(runs))

# %% [markdown]
# ## 4.4 In the form of the paper's Table 2
#
# mean@32 at the end of training, means over seeds. `gain` is the mean paired difference to DAPO
# (GRPO's boost: to plain GRPO) with Student's interval over seeds. The two confirmatory arms have a
# sign-flip permutation test, corrected for the two by Holm; with n seeds its p cannot be below
# 2 / 2^n. `detectable` is the difference that four in five such experiments would find.

# %%
table = numbers.objective_table(nb.study, runs)
nb.table(table, "weighted_objective")
nb.table(numbers.pass_table(nb.study, runs), "pass_at_k")

# %%
# NBVAL_CHECK_OUTPUT
paragraph(words.say_objective(runs, table))

# %% [markdown]
# The paper's own, as known from published summaries (mean@32 in %, another base model, three
# runs):

# %%
from tokenshift_utils.sections.paper import table2

nb.table(table2(), "paper_table2")

# %% [markdown]
# ## 4.5 Controls
#
# Mean-1 weights keep the emphasis and take out the mean: is it emphasis or step size? The placebo
# deals the high-KL weights out at random. Learning rates a fifth lower and higher are a yardstick.
# Exploratory arms, below, have a wider axis. Look at whether any interval leaves 0, and at how wide
# they are with few seeds.

# %%
nb.figure(plots.plot_gains(runs, table), "gains")
paragraph(words.say_controls(runs, table))

# %% [markdown]
# ## 4.6 What the weighting does to the shift
#
# Shares of positions by JS to base, and whether arms move the same positions: the overlap of their
# sets of high JS on base's own responses, beside the overlap of two seeds of one arm.

# %%
shift = numbers.shift_table(nb.study, runs)
nb.table(shift, "shift")
paragraph(words.say_shift(runs, shift))

# %% [markdown]
# ## 4.7 What this shows, and what not
#
# Criteria and reasons of the claims are in notebook 00.

# %%
# NBVAL_CHECK_OUTPUT
from tokenshift_utils.sections.overview import say_claims, section_claims

found = numbers.objective_evidence(nb.study, runs)
paragraph(words.say_closing(runs, table))
print(say_claims(section_claims(nb.study, found, 4)))
nb.table(found, "evidence")
