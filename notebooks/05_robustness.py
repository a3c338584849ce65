# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 5 Robustness
#
# What the paper's reviewers asked for, in a first version: do the findings hang on how they were
# measured? None of these is a claim of the paper.
#
# - Is JS on truncated distributions an artefact of the truncation?
# - Does it matter that the prefixes are RL's own? Base's and mixed trajectories for comparison.
# - What do top-p and temperature change?
#
# Intervals come from resampling problems with all their samples. They do not cover training
# seeds.

# %% tags=["parameters"]
study = "tiny"  # a study under notebooks/studies, or the path of a study file
pair = None  # tuned model to look at; None: as in the study
benchmark = None  # benchmark on which the sampler is varied; None: as in the study
samples = None  # responses a problem under each sampler; None: as in the study
top_p = None  # list of nucleus masses (0 to 1]; None: as in the study
temperature = None  # list of temperatures (> 0); None: as in the study
mixed_threshold = None  # JS threshold (nats) of the mixed trajectories; None: as in the study
resamples = None  # bootstrap resamples; None: as in the study

# %%
from tokenshift_utils.run.notebook import start

nb = start("05_robustness", globals())

# %% [markdown]
# What is missing of the records is computed here, once; later runs read it.

# %%
from tokenshift_utils.sections.common import of_kind, paragraph
from tokenshift_utils.sections.robustness import numbers, plots, records

shifts, sources, samplers = records.robustness_records(nb.study)
rl = {model: shifts[model] for model in of_kind(nb.study, "rl")}
pair_name = nb.study.robustness.pair

# %% [markdown]
# ## 5.1 Truncated against full, position by position
#
# Truncation can hide a change (both nuclei are the same single token: the bottom row) and can
# blow one up (a token just inside one nucleus and just outside the other: above the diagonal).
# Look at the upper left quadrant, high after truncation only, and the lower right one, high
# before it only.

# %%
support = numbers.support_table(nb.study, shifts)
nb.table(support, "support")
nb.figure(plots.plot_support(nb.study, rl), "support")

# %%
# NBVAL_CHECK_OUTPUT
paragraph(numbers.say_support(nb.study, support))

# %% [markdown]
# ## 5.2 On whose trajectories
#
# On RL's own responses, prefixes are those that RL made likely. If the sparsity were an effect of
# that, base's own responses would look different. Mixed ones come from forward cross-sampling.

# %%
by_source = numbers.source_table(nb.study, pair_name, sources)
nb.table(by_source, "trajectories")
nb.figure(plots.plot_sources(nb.study, by_source, pair_name), "trajectories")

# %%
# NBVAL_CHECK_OUTPUT
paragraph(numbers.say_sources(by_source))

# %% [markdown]
# ## 5.3 Top-p and temperature
#
# New responses and new distributions under each setting, on one benchmark. At top-p 1 both
# measures are the same by definition. Look at whether the order of magnitude of the shares stays.

# %%
sampler = numbers.sampling_table(nb.study, *samplers)
nb.table(sampler, "sampler")
nb.figure(plots.plot_sampling(nb.study, sampler), "sampler")

# %%
# NBVAL_CHECK_OUTPUT
paragraph(numbers.say_sampling(nb.study, sampler))

# %% [markdown]
# ## 5.4 What holds
#
# The smallest and largest shares of near-zero and of high-JS positions in the last two
# comparisons.

# %%
# NBVAL_CHECK_OUTPUT
paragraph(numbers.say_robustness(by_source, sampler))
