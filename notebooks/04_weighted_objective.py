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
# Nothing is trained here: this reads what the study's runs left (`tokenshift train --arms`). Two
# confirmatory arms were fixed before the runs, each tested once against DAPO, over seeds; everything else
# has intervals only. Runs of one seed share problems and noise, so differences are taken seed by seed.

# %% tags=["parameters"]
study = "tiny"  # a study under notebooks/studies, or the path of a study file
confidence = None  # level of the intervals over seeds; None: as in the study

# %%
from tokenshift_utils.run.notebook import start

nb = start("04_weighted_objective", globals())

# %%
from tokenshift_utils.sections.objective import (
    numbers,
    plots,
    read_runs,
    say_claims,
    section_claims,
    table2,
    words,
)

# %%
# NBVAL_CHECK_OUTPUT
runs = read_runs(nb.study)
nb.say(words.say_runs(runs))

# %%
nb.table(
    numbers.configuration_table(nb.study, runs),
    "configuration",
    "the baseline's settings",
    rows=None,
)
nb.table(numbers.runs_table(runs), "runs", "runs that are there, of those planned")

# %% [markdown]
# ## 4.1 The weight
#
# k3 is never negative, so a high-KL boost only raises weights (1 to 1 + s/2) and a low-KL boost only
# lowers them (1 to 1 - s/2). Points: 90th and 99th percentile of k3 over the tokens met in training.

# %%
met = numbers.weights_table(runs)
alt = (
    "Weight of a token's advantage against its k3, a curve an arm, with percentiles met in training"
)
nb.figure(plots.plot_weights(runs, numbers.weight_curves(runs), met), "weights", alt=alt)
nb.say(words.say_weights(runs, met))
nb.table(met, "weights", "k3 and weights in training, without each rollout's first update")

# %% [markdown]
# ## 4.2 Which tokens get which weight
#
# High-KL boost, early and late in its runs, updates with trivial weights left out.

# %%
tokens = numbers.token_table(runs, runs.boost("high-kl"))
alt = "Mean weight early and late in training, of the tokens with most of the weight beyond 1"
if len(tokens):
    nb.figure(plots.plot_tokens(tokens), "tokens", alt=alt)
nb.say(words.say_tokens(tokens))
nb.table(tokens, "tokens", "weights by token, early and late", rows=8)

# %% [markdown]
# ## 4.3 What could be found
#
# Before any other arm ran, the baseline's seeds said how small a difference would be found.

# %%
power = numbers.power_table(nb.study, runs)
nb.say(words.say_power(runs, power))
nb.table(power, "power", "the smallest detectable effect, from the baseline's seeds alone")

# %% [markdown]
# ## 4.4 Training curves
#
# Thin lines are seeds, thick ones the median of an arm's. Seeds differ, and runs of one seed share problems
# and noise, so one panel takes the difference to DAPO seed by seed. Entropy and length are of the responses
# that a run trained on; under dynamic sampling, none of problems that were all right or all wrong.

# %%
alt = "Accuracy, its difference to the baseline, KL to base, entropy, length and clipping along training"
nb.figure(plots.plot_training(runs), "training_curves", alt=alt)
nb.say(words.say_curves(runs))

# %% [markdown]
# ## 4.5 Do the boosts gain?
#
# The paper: both boosts improve on DAPO, by about the same. Below, the paired gain in mean@k at the end of
# training, with Student's interval over seeds; the two confirmatory arms have a sign-flip permutation test,
# corrected for the two by Holm (with n seeds its p cannot be below 2 / 2^n). The scale is linear within a
# point, logarithmic beyond.

# %%
table = numbers.objective_table(nb.study, runs)
alt = "Gain of every arm over the baseline with its interval over seeds, by role"
if runs.shown[1:]:
    nb.figure(plots.plot_gains(runs, table), "gains", alt=alt)
nb.say(words.say_objective(runs, table))

# %%
shown = ["objective", "role", "average", "paired_seeds", "gain", "p_holm", "detectable"]
nb.table(table, "weighted_objective", "the paper's Table 2 with what it lacks", shown, rows=None)
nb.table(numbers.pass_table(nb.study, runs), "pass_at_k", "pass@k by arm and its paired gain")
nb.table(table2(), "paper_table2", "the paper's Table 2, from published summaries: mean@32 in %")

# %% [markdown]
# ### Controls
#
# Mean-1 weights keep the emphasis and take out the mean: is it emphasis or step size? The placebo deals the
# high-KL weights out at random. Other learning rates are a yardstick; at ten times the rate clipping bites.

# %%
nb.say(words.say_controls(runs, table))

# %% [markdown]
# ### Would another alpha have helped?
#
# Exploratory: both boosts from an alpha at which only the upper percent of tokens is weighed to one at which
# every token that moved is. Small points are seeds, the same ones at every alpha.

# %%
sweep = numbers.sweep_table(nb.study, runs)
alt = "Gain of both boosts over the baseline by alpha, seed by seed and on average"
nb.say(words.say_sweep(sweep))
if len(sweep):
    nb.figure(plots.plot_sweep(runs, sweep), "alpha_sweep", alt=alt)
    nb.table(sweep, "alpha_sweep", "gain of the boosts by alpha", rows=None)

# %% [markdown]
# ## 4.6 What the weighting does to the shift
#
# Shares of positions by JS to base, and whether arms move the same positions: the overlap of their sets of
# high JS on base's own responses, beside the overlap of two seeds of one arm.

# %%
shift = numbers.objective_shifts(nb.study, runs)
nb.say(words.say_shift(runs, shift))
nb.table(shift, "shift", "shares of positions by JS to base, and overlaps of the high ones")

# %% [markdown]
# ## 4.7 What reproduced

# %%
# NBVAL_CHECK_OUTPUT
found = numbers.objective_evidence(nb.study, runs)
nb.say(words.say_scope(runs))
nb.say(say_claims(nb.study, section_claims(nb.study, found, 4)))
nb.table(found, "evidence", "what the claims of this section are judged by")

# %% [markdown]
# Read next: notebook 05, whether the findings hang on how they were measured; criteria and reasons of the
# claims are in notebook 00.
