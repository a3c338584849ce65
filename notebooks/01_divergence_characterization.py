# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1 Divergence characterization
#
# Where, at the level of single next-token distributions, does RLVR change a base model? Both
# models are evaluated on every prefix of the tuned model's own responses (teacher forcing), and
# the Jensen-Shannon divergence (JS, in nats, at most ln 2) of their next-token distributions is
# taken at every position.
#
# - Measured on: the first responses a problem that each tuned model drew by itself, with the
#   study's temperature and top-p. Other trajectories are compared in notebook 05.
# - JS without further words is between the distributions sampled from (temperature, then top-p,
#   renormalised), as in the paper; "full" is over the whole vocabulary.
# - Intervals come from resampling problems with all their samples. They do not cover training
#   seeds.

# %% tags=["parameters"]
study = "tiny"  # a study under notebooks/studies, or the path of a study file
samples = None  # responses a problem that are measured; None: as in the study
near_zero = None  # list of cuts (nats) up to which JS counts as near zero; None: as in the study
high_js = None  # cut (nats) above which JS counts as high; None: as in the study
resamples = None  # bootstrap resamples; None: as in the study

# %%
from tokenshift_utils.run.notebook import start

nb = start("01_divergence_characterization", globals())

# %% [markdown]
# What is missing of the records is computed here, once; later runs read it.

# %%
from tokenshift_utils.records import tokens as records_tokens
from tokenshift_utils.sections.common import of_kind, paragraph
from tokenshift_utils.sections.divergence import numbers, plots, precision, records

shifts = records.divergence_shifts(nb.study)
rounding = records.precision_shifts(nb.study)
texts = records_tokens.token_texts(nb.study, shifts)
rl = {model: shifts[model] for model in of_kind(nb.study, "rl")}
found = numbers.divergence_evidence(nb.study, shifts, texts)
nb.table(found, "evidence")

# %% [markdown]
# ## 1.1 Sparsity
#
# The paper: JS is near zero at more than 83% (DAPO) and 98% (SimpleRL) of positions; where "near
# zero" ends is not known. Look at the shares at both cuts, and at how far the upper percentiles
# are from the median. DAPO is said to spread wider than SimpleRL.

# %%
table = numbers.sparsity_table(nb.study, shifts)
floor = precision.precision_table(nb.study, rounding)
nb.table(table, "sparsity")
nb.table(floor, "precision")

# %% [markdown]
# Left: the histogram of JS; both axes are logarithmic, so look for a tall first bar (next to
# nothing changes) and a second hump far from it. Right: the share of positions above each JS. The
# dotted lines, over the full vocabulary, differ from the solid ones where truncation removed
# small changes. Grey is the noise floor: one model's own weights in bfloat16 and in float32, on its
# own responses. Of what a model in bfloat16 shows, as much could be rounding.

# %%
nb.figure(plots.plot_js_distribution(nb.study, shifts, rounding), "js_distribution")

# %%
# NBVAL_CHECK_OUTPUT
paragraph(numbers.say_sparsity(nb.study, table))
paragraph(precision.say_precision(nb.study, floor, table))

# %% [markdown]
# ## 1.2 Position
#
# The paper: JS is high at the start of a response, lower through the middle, and rises a little
# at the end (answer format, termination). The right panel aligns responses where the final answer
# opens, since a response can go on after it. Each panel has its own scale.

# %%
axes = ("relative", "absolute", "answer")
profiles = {axis: numbers.position_profile(nb.study, rl, axis) for axis in axes}
nb.figure(plots.plot_positions(nb.study, profiles), "position")
paragraph(numbers.say_position(nb.study, found))

# %% [markdown]
# ## 1.3 Entropy
#
# The paper: low-JS positions are mostly low-entropy in both models; high-JS positions span both
# ends of the entropy range, so RL also overrides predictions that base was confident of. Look at
# how far down the boxes of base reach in the right-hand bins.

# %%
entropies = numbers.entropy_by_js(nb.study, rl)
nb.figure(plots.plot_entropy_bins(nb.study, entropies), "entropy_by_js")
paragraph(numbers.say_entropy(nb.study, found))

# %% [markdown]
# The same without bins: every position by its JS and by base's entropy; the line is the high-JS
# cut.

# %%
nb.figure(plots.plot_js_entropy(nb.study, rl), "js_entropy")
paragraph(numbers.say_js_entropy(nb.study, rl))

# %% [markdown]
# ## 1.4 Token identity
#
# The paper: some words are frequent among high-JS tokens, but a frequent high-JS token is low-JS
# in most of its occurrences: context decides. `enrichment` is a token's share among high-JS
# positions over its share among all; the first table is ordered by it (tokens with at least ten
# high-JS occurrences). The second and the figure have the tokens most frequent at high JS: look
# at how much of each bar is grey.

# %%
tokens = numbers.identity_table(nb.study, rl, texts)
enriched = numbers.identity_table(nb.study, rl, texts, enriched_from=10)
nb.table(enriched, "token_enrichment")
nb.table(tokens, "token_identity")
nb.figure(plots.plot_identity(nb.study, tokens), "token_identity")
paragraph(numbers.say_identity(nb.study, found))

# %% [markdown]
# ## 1.5 Supervised fine-tuning as a control
#
# The paper: SFT gives a much larger, broader set of high-JS positions than RL. How dense SFT
# looks depends on who wrote the demonstrations, so each control stands by itself.

# %%
nb.figure(plots.plot_controls(nb.study, table), "sft_controls")
paragraph(numbers.say_controls(nb.study, table))

# %% [markdown]
# ## 1.6 One response from close by
#
# The colour is JS; hover over a token for both models' five most probable candidates. The
# response shown is the one with the most high-JS positions among the first samples of the first
# RL model.

# %%
from tokenshift_utils.report.heatmap import show_shifts

response, title = records.annotated_response(nb.study)
show_shifts(response, records_tokens.tokenizer(nb.study), title)

# %% [markdown]
# ## 1.7 Why JS and not KL
#
# A worked example on three tokens. KL is infinite as soon as truncation gives the two models
# other supports, and grows without bound with how small a tail probability is, which changes
# nothing that is sampled. JS stays finite, symmetric and at most ln 2 = 0.693. The last but one
# row is the price: a small shift that crosses the edge of the nucleus counts as a large one
# (notebook 05 says how often).

# %%
nb.table(numbers.why_js(nb.study.sampling.top_p), "why_js")

# %% [markdown]
# ## 1.8 What reproduced
#
# Each claim with what was measured; criteria and reasons are in notebook 00.

# %%
# NBVAL_CHECK_OUTPUT
from tokenshift_utils.sections.overview import say_claims, section_claims

print(say_claims(section_claims(nb.study, found, 1)))
