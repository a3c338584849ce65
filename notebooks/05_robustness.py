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
# What the paper's reviewers asked for: do the findings hang on how they were measured? None of these is a
# claim of the paper. Intervals come from resampling problems with all their samples; they do not cover
# training seeds.

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
from tokenshift_utils.sections.robustness import numbers, of_kind, plots, robustness_records

records = robustness_records(nb.study)
rl = {model: records.models[model] for model in of_kind(nb.study, "rl")}
pair_name = nb.study.robustness.pair

# %% [markdown]
# ## 5.1 How much of "high JS" is the edge of the nucleus?
#
# The paper takes JS on truncated distributions. Truncation can hide a change (both nuclei are the same
# token: the bottom row) and blow one up (a token just inside one nucleus and just outside the other:
# above the diagonal). The upper left quadrant is high after truncation only.

# %%
support = numbers.support_table(nb.study, records.models)
alt = (
    "Map of positions by JS on the full vocabulary and on truncated distributions, a panel a model"
)
nb.figure(plots.plot_support(nb.study, rl), "support", alt=alt)
nb.say(numbers.say_support(nb.study, support))
shown = ["pair", "benchmark", "positions", "both_high", "only_nucleus_high",
         "nucleus_high_full_high", "nuclei_differ_share_at_high", "nuclei_differ_share"]  # fmt: skip
nb.table(support, "support", "high and near-zero positions by both measures", shown)

# %% [markdown]
# ### The same positions at another top-p
#
# The pair's responses as they are, only the nuclei move. Top-p 1 is the full vocabulary. Ranks and base's
# probabilities are of the positions that are high at that top-p.

# %%
moved = numbers.top_p_table(nb.study, records.top_p)
nb.say(numbers.say_top_p(nb.study, moved))
shown = ["top_p", "near_zero", "high", "stays_high_share", "start_ratio", "low_entropy_share_at_low",
         "top1_share_at_high", "top3_share_at_high"]  # fmt: skip
nb.table(moved, "top_p", "headlines of sections 1 and 3 by top-p, at the same positions", shown)

# %% [markdown]
# Section 2 in both supports: rule `JS, full` beside `JS` in notebook 02's table of rules; its parameter
# `top_p` mixes at another top-p.

# %% [markdown]
# ## 5.2 Format apart from reasoning
#
# A response is right if its answer stands in the form asked for. How much of an accuracy gap is that
# form? For comparison the last number of the text is judged, whatever stands around it, on the benchmarks
# whose answers are numbers.

# %%
answers = numbers.answers_table(nb.study, records.answers)
gaps = numbers.format_table(nb.study, records.answers)
nb.say(numbers.say_form(nb.study, gaps))
shown = ["pair", "benchmark", "k", "gap", "pass_points",
         "judged_points", "last_number_points", "form_points"]  # fmt: skip
nb.table(gaps, "format", "accuracy gaps to base: as judged, in pass@k, by the last number", shown)

# %% [markdown]
# ### Sharpening, or new problems?
#
# pass@k is the chance that one of k responses is right. A model that gains in the mean and not in pass@k
# does more often what base does at times.

# %%
nb.say(numbers.say_passes(nb.study, answers, gaps))
nb.table(answers.drop(columns="model"), "answers", "mean@k, pass@k and form of every model")

# %% [markdown]
# ## 5.3 On whose trajectories, and with which sampler
#
# On RL's own responses, prefixes are those that RL made likely. If the sparsity were an effect of that,
# base's own responses would look different; mixed ones come from forward cross-sampling. Below, new
# responses and new distributions under other samplers, on one benchmark.

# %%
by_source = numbers.source_table(nb.study, pair_name, records.sources)
sampler = numbers.sampling_table(nb.study, *records.samplers)
alt = "Shares of positions near zero and high, by trajectories and by sampler, with intervals"
nb.figure(plots.plot_measured(nb.study, by_source, sampler, pair_name), "measured", alt=alt)
nb.say(numbers.say_robustness(by_source, sampler))
nb.say(numbers.say_sources(by_source))

# %%
shown = ["trajectories", "benchmark", "positions", "nucleus_near_zero", "nucleus_high", "full_high"]
nb.table(by_source, "trajectories", "shares by whose trajectories", shown)
shown = ["top_p", "temperature", "nucleus_near_zero", "nucleus_high", "full_high",
         "accuracy_base", "accuracy_tuned"]  # fmt: skip
nb.table(sampler, "sampler", "shares and accuracies by sampler", shown)

# %% [markdown]
# ## 5.4 What holds

# %%
# NBVAL_CHECK_OUTPUT
nb.say(numbers.say_holds(nb.study, support, moved, gaps, by_source))

# %% [markdown]
# Read next: notebook 00 for what all of this says of the paper's claims, and its open questions.
