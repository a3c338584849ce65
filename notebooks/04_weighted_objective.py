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
# (sigmoid(alpha KL) - 1/2), where KL is estimated per token between the policy that sampled and
# the one that learns (k3). alpha > 0 boosts tokens of high KL, alpha < 0 those of low KL. Its
# authors call it a diagnostic, not a method.
#
# - Nothing is trained here: training left its logs, and the finished models are evaluated.
# - One training run of each objective, three in the paper. Intervals come from resampling
#   problems with all their samples and do **not** cover the spread between training runs.

# %% tags=["parameters"]
study = "tiny"  # a study under notebooks/studies, or the path of a study file
baseline = None  # model trained with the plain objective; None: as in the study
arms = None  # list of models trained with a weighted objective; None: as in the study
resamples = None  # bootstrap resamples; None: as in the study

# %%
from tokenshift_utils.notebook import start

nb = start("04_weighted_objective", globals())

# %%
from tokenshift_utils import analysis_objective as numbers
from tokenshift_utils import loading
from tokenshift_utils import plots_objective as plots
from tokenshift_utils.analysis_common import paragraph

training = numbers.read_training(nb.study)
rollouts = loading.objective_rollouts(nb.study)
how = numbers.training_table(nb.study, training)

# %% [markdown]
# ## 4.1 The weight
#
# KL is never negative, so a high-KL boost only raises weights (1 to 1 + s/2) and a low-KL boost
# only lowers them. The points show the KL that was met in training. Look at whether most tokens
# are on the flat part at 1: then the weighting hardly acts.

# %%
nb.figure(plots.plot_weights(nb.study, numbers.weight_curves(training), training), "weights")

# %% [markdown]
# The first update after each rollout has the policy that sampled, so KL is 0 and every weight 1
# there; means below leave those updates out. A mean weight other than 1 changes the size of the
# steps, not only their emphasis.

# %%
nb.table(how, "training")

# %%
# NBVAL_CHECK_OUTPUT
paragraph(numbers.say_weights(nb.study, how))

# %% [markdown]
# ## 4.2 Training curves
#
# From the committed logs. Look at whether the runs differ by more than they wobble.

# %%
nb.figure(plots.plot_training(nb.study, training), "training_curves")
paragraph(numbers.say_training(nb.study, training))

# %% [markdown]
# ## 4.3 In the form of the paper's Table 2
#
# Accuracy (mean over the samples of each problem) on the finished models. `gain` is the paired
# difference to the baseline on the same problems, averaged over benchmarks.

# %%
table = numbers.objective_table(nb.study, rollouts)
nb.table(table, "weighted_objective")

# %%
# NBVAL_CHECK_OUTPUT
paragraph(numbers.say_objective(nb.study, table))

# %% [markdown]
# The paper's own, as known from published summaries (mean@32 in %, another base model, three
# runs):

# %%
from tokenshift_utils.paper import table2

nb.table(table2(), "paper_table2")

# %% [markdown]
# ## 4.4 What reproduced
#
# Each claim with what was measured; criteria and reasons are in notebook 00.

# %%
# NBVAL_CHECK_OUTPUT
from tokenshift_utils.overview import say_claims, section_claims

found = numbers.objective_evidence(nb.study, rollouts)
print(say_claims(section_claims(nb.study, found, 4)))

# %%
nb.table(found, "evidence")
