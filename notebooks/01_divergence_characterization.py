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
# - JS without further words is between the distributions sampled from (temperature, then top-p,
#   renormalised: the nuclei), as in the paper; "full" is over the whole vocabulary.
# - Brackets are intervals from resampling problems with all their samples; those over training
#   seeds stand in a table of their own. Other trajectories are compared in notebook 05.

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
from tokenshift_utils.sections import divergence as section

shifts, runs, texts = section.records.classed_shifts(nb.study)
rl = {model: shifts[model] for model in section.of_kind(nb.study, "rl")}
found, headlines = section.numbers.section_evidence(nb.study, shifts)
seeds = section.numbers.over_seeds(nb.study, runs)

# %% [markdown]
# ## 1.1 Sparsity
#
# The paper: JS is near zero at more than 83% (DAPO) and 98% (SimpleRL) of positions, and DAPO spreads
# wider; where "near zero" ends is not known.
#
# A point of the figure is the share of positions whose JS is above x, with a band for its interval;
# both axes are logarithmic. The grey vertical line is the cut for high JS. A line that falls from a
# shelf at its right end has few shifts, but large ones. "bfloat16 alone" is the noise floor: one model's
# own weights in bfloat16 and in float32, on the first samples.

# %%
table = section.numbers.sparsity_table(nb.study, shifts)
rounding = section.records.precision_shifts(nb.study)
floor = section.precision.precision_table(nb.study, rounding, shifts)
words = "Two panels, nuclei and full vocabulary: share of positions with JS above x, a line a model"
fig = section.plots.plot_js_distribution(nb.study, shifts, rounding)
nb.figure(fig, "js_distribution", alt=words)
nb.say(section.numbers.say_sparsity(nb.study, table))
nb.say(section.precision.say_precision(nb.study, floor))
cuts = [c for c in table if c.startswith("share") and not c.endswith(("low", "high"))]
shown = ["pair", "benchmark", "support", *cuts, "mean"]
nb.table(table, "sparsity", "shares of positions by JS and its percentiles", columns=shown)
nb.table(floor, "precision", "the same of what bfloat16 alone makes, and training there")

# %% [markdown]
# ## 1.2 Position
#
# The paper: JS is high at the start of a response, lower through the middle, and rises a little
# at the end (answer format, termination).
#
# Grey lines mark where the final answer opens (left: the median response). Dotted lines are over the
# full vocabulary. Each panel has its own scale. In the middle and on the right, places that fewer than
# half of the responses have are left out.

# %%
profiles = {
    axis: section.numbers.position_profile(nb.study, rl, axis)
    for axis in ("relative", "start", "answer")
}
words = "Three panels: mean JS along the response, at its first tokens, around the answer's opening"
nb.figure(section.plots.plot_positions(nb.study, rl, profiles), "position", alt=words)
nb.say(section.numbers.say_position(nb.study, found))

# %% [markdown]
# ## 1.3 Entropy
#
# The paper: low-JS positions are mostly low-entropy in both models; high-JS positions span both
# ends of the entropy range, so RL also overrides predictions that base was confident of.
#
# The leftmost boxes are of all positions: what any share has to be compared with. Of the boxes of base
# on the right, look at how far down they reach.

# %%
words = "Boxes of both models' entropies, at all positions and in bins of JS, a panel a model"
nb.figure(section.plots.plot_entropy_bins(nb.study, rl), "entropy_by_js", alt=words)
nb.say(section.numbers.say_entropy(nb.study, found))

# %% [markdown]
# The same without bins: every position by its JS and by base's entropy; the line is the high-JS
# cut, and the grey histograms are of JS and of entropy alone (logarithmic).

# %%
words = "Map of positions by JS and base's entropy with both histograms, a panel a model"
nb.figure(section.plots.plot_js_entropy(nb.study, rl), "js_entropy", alt=words)
nb.say(section.numbers.say_js_entropy(nb.study, rl))

# %% [markdown]
# ## 1.4 Token identity
#
# The paper: function words, reasoning words and formula pieces are frequent among high-JS tokens, digits
# and operators among low-JS ones; yet a frequent high-JS token is low-JS in most of its occurrences:
# context decides.
#
# Above are the ten tokens most frequent at high JS, with how often they occur: a bar that is mostly grey
# is such a token. Below is each class's share of near-zero, high-JS and all positions.

# %%
tokens = section.numbers.identity_table(nb.study, rl, texts)
enriched = section.numbers.identity_table(nb.study, rl, texts, enriched_from=10)
classes = section.numbers.class_table(nb.study, rl)
words = "Above: occurrences of ten tokens split by JS. Below: shares of token classes by JS"
nb.figure(section.plots.plot_identity(nb.study, tokens, classes), "token_identity", alt=words)
nb.say(section.numbers.say_identity(nb.study, found))
examples = section.numbers.examples_table(nb.study, rl, texts)
nb.table(examples, "token_examples", "the ten tokens where their JS is highest and where lowest")
nb.table(classes, "token_classes", "shares of each class of tokens by JS")
nb.table(tokens, "token_identity", "the tokens most frequent at high JS")
nb.table(enriched, "token_enrichment", "the tokens most enriched at high JS, of ten or more")

# %% [markdown]
# ## 1.5 Supervised fine-tuning as a control
#
# The paper: SFT gives a much larger, broader set of high-JS positions than RL. How dense SFT
# looks depends on who wrote the demonstrations and on how long and how fast it learns, so each control stands
# by itself, with its accuracy; its line is among those of the figure in 1.1.

# %%
controls = section.numbers.controls_table(nb.study, table, section.records.answers(nb.study))
nb.say(section.numbers.say_controls(nb.study, controls))
nb.table(controls, "controls", "accuracy and shift of RL models and controls", rows=None)

# %% [markdown]
# ## 1.6 One response from close by
#
# The colour is JS; hover over a token for both models' five most probable candidates. The
# response shown is the one with the most high-JS positions among the first samples of the first
# RL model.

# %%
response, title = section.records.annotated_response(nb.study)
nb.show(section.plots.show_response(nb.study, response, title))

# %% [markdown]
# ## 1.7 Why JS and not KL
#
# A worked example on three tokens. KL is infinite as soon as truncation gives the two models
# other supports, and grows without bound with how small a tail probability is, which changes
# nothing that is sampled. JS stays finite, symmetric and at most ln 2 = 0.693. The last but one
# row is the price: a small shift that crosses the edge of the nucleus counts as a large one
# (notebook 05 says how often).

# %%
why = section.numbers.why_js(nb.study.sampling.top_p)
nb.table(why, "why_js", "KL and JS of six changes of three probabilities")

# %% [markdown]
# ## 1.8 What reproduced
#
# Criteria, reasons and what was measured are in notebook 00. Read on with notebook 02: whether the few
# positions that differ are those that matter.

# %%
# NBVAL_CHECK_OUTPUT
nb.say(section.say_claims(nb.study, section.section_claims(nb.study, found, 1, seeds)))

# %%
nb.table(
    headlines, "headlines", "every quantity of this notebook on both supports, beside all positions"
)
nb.table(seeds, "seeds", "the same over training seeds, on few samples of each run")
nb.table(found, "evidence", "what the claims are judged by")
