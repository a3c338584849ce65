# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 2 Cross-sampling
#
# Do the few positions where the models differ cause the difference in accuracy? A primary model
# writes; where JS between the two next-token distributions is above a threshold, the token comes
# from the other model, the intervention.
#
# - Forward: base writes, RL's tokens are put in (sufficiency). Reverse: RL writes, base's tokens
#   are put in (necessity).
# - *Switched* positions are where the rule fired. *Effectively replaced* ones are those where the
#   token differs from the one the primary would have written with the same noise. The paper does
#   not define its "effective"; tables here show both.
# - Shares are pooled: tokens replaced over tokens emitted. Accuracy is the mean over problems of
#   the mean over samples; intervals resample problems and do not cover training seeds.
# - Every run is a study key, and every table names its setting: the JS rule and random positions
#   on all benchmarks; other rules, other tokens and single tokens on one.

# %% tags=["parameters"]
study = "tiny"  # a study under notebooks/studies, or the path of a study file
pairs = None  # list of tuned models to mix with base; None: as in the study
thresholds = None  # list of JS thresholds (nats); None: as in the study
random_control_thresholds = None  # those to match with random positions; None: as in the study
top_p = None  # nucleus mass (0 to 1] while mixing; None: as in the study
benchmark = None  # the one for other rules, other tokens and single tokens; None: as in the study
budgets = None  # list of switches a response for the JS rule; None: as in the study
samples = None  # mixed responses a problem; None: as in the study
resamples = None  # bootstrap resamples; None: as in the study

# %%
from tokenshift_utils.run.notebook import start

nb = start("02_cross_sampling", globals())

# %% [markdown]
# What is missing of the records is computed here, once; later runs read it. The random controls
# come after the rule, since they have to match its rates: of switching, and of effective
# replacement by bisection on a pilot. `matched` says whether a control is within 10% of its target.

# %%
from tokenshift_utils.records import tokens as records_tokens
from tokenshift_utils.sections import loading
from tokenshift_utils.sections.common import paragraph
from tokenshift_utils.sections.cross_sampling import numbers, plots

records = loading.cross_records(nb.study)
table = numbers.curve_table(nb.study, records.runs, records.rollouts)
nb.table(table, "curves", rows=20)

# %% [markdown]
# ## 2.1 Accuracy against what is replaced
#
# The paper: a small share of RL's tokens recovers RL accuracy in base's generation (top), and as
# small a share of base's tokens takes it away again (bottom). Look at how far left the filled lines
# reach the other model's level (dotted, with its interval). Each line starts at the primary's own
# accuracy and, where the study has a negative threshold, ends where every position is switched;
# open markers are random positions, replacing as many tokens (dashed) or switched as often.

# %%
nb.figure(plots.plot_curves(nb.study, table), "forward_reverse")
paragraph(numbers.say_curves(nb.study, table))

# %% [markdown]
# ## 2.2 In the form of the paper's Table 1
#
# For each pair and direction, the threshold with the largest effectively replaced share that is
# not above 10.1%, the largest of the paper's Table 1; chosen by share, never by accuracy.
# `before` is the primary's own accuracy, `goal` the intervention's. Below it the paper's own, as
# known from published summaries (other models, other problems, other lengths).

# %%
from tokenshift_utils.sections.paper import table1

budget = numbers.budget_table(nb.study, table)
found = numbers.cross_evidence(nb.study, records.runs, records.rollouts, table)
nb.table(budget, "cross_sampling")
nb.table(table1(), "paper_table1")
nb.table(found, "evidence")

# %%
# NBVAL_CHECK_OUTPUT
paragraph(numbers.say_budget(nb.study, budget, found))

# %% [markdown]
# ## 2.3 Are the positions special? Two random controls
#
# Asked for by reviewers: switching at random positions. Matched on the switched share, random
# switches mostly put in the token that was coming anyway, so a second control replaces as many
# tokens *effectively* as the rule does. Look at whether the filled points leave the open ones
# behind; faint ones could not be matched, mostly where there are too few replacements to count.

# %%
nb.figure(plots.plot_controls(nb.study, table), "random_control")
paragraph(numbers.say_controls(nb.study, table))

# %% [markdown]
# ## 2.4 Summaries
#
# The lead over random positions is the area between the two curves over effective share, up to
# the largest share both reach, divided by that share and by the accuracy gap between the models:
# 1 is the whole gap at once, 0 no better than random. Beside it the smallest effective share that
# recovers (forward) or destroys (reverse) 95% of the gap, the curve made monotone; ∞ means that it
# is not reached. Both are computed again in every resample of the problems.

# %%
from tokenshift_utils.sections.cross_sampling import summary as summaries

summary = summaries.summary_table(nb.study, records.runs, records.rollouts)
nb.table(summary, "summary")
paragraph(summaries.say_summary(nb.study, summary))

# %% [markdown]
# ## 2.5 Other rules
#
# On one benchmark: JS of the full distributions, KL both ways, the primary's own entropy, the
# sister paper's signed log-probability difference, the first n positions of a response, the JS rule
# with only its first n firings switching, and random positions (same effective share). The signed
# difference looks at the token that the primary drew, so where it fires is not a function of the
# prefix alone. Look at whether a line runs above (forward) or below (reverse) the faint one of JS.

# %%
from tokenshift_utils.sections.cross_sampling import plots_rules, rules

compared = rules.rule_table(nb.study, records.rules, records.rollouts)
ahead = rules.rule_summary(nb.study, records.rules, records.rollouts)
nb.table(compared, "rules", rows=20)
nb.table(ahead, "rules_summary")
for way in ("forward", "reverse"):
    nb.figure(plots_rules.plot_rules(nb.study, compared, way), f"rules_{way}")
paragraph(rules.say_rules(nb.study, ahead))

# %% [markdown]
# ## 2.6 Other tokens at the same kind of position
#
# On the same benchmark, at positions chosen by JS: the tokens of the RL models, of SFT controls,
# of the extrapolation RL^(1+g) / base^g (forward), and as a null control the primary's own token
# drawn with other luck. The null control does replace tokens; look at whether accuracy stays.

# %%
tokens = rules.intervention_table(nb.study, records.interventions, records.rollouts)
nb.table(tokens, "interventions", rows=20)
nb.figure(plots_rules.plot_interventions(nb.study, tokens), "interventions")
paragraph(rules.say_interventions(nb.study, tokens))

# %% [markdown]
# ## 2.7 What a single token causes
#
# What makes a position critical, measured: at positions of the primary's own responses, drawn
# evenly over strata of JS, the primary goes on from its own token and from the intervention's, on
# the same noise. The effect is the difference of the success rates; equal tokens count as 0. Look
# at whether it grows with JS, and how many positions have the same token from both.

# %%
from tokenshift_utils.sections.cross_sampling import single_token as single

effects = single.effect_table(nb.study, records.single_token)
nb.table(effects, "single_token")
nb.figure(plots_rules.plot_effects(nb.study, effects), "single_token")
paragraph(single.say_effects(effects))

# %% [markdown]
# ## 2.8 Which tokens are swapped for which
#
# The most frequent effective replacements of the settings in 2.2: what the primary would have
# written, and what was put in. The paper: they often look interchangeable.

# %%
from tokenshift_utils.sections.cross_sampling import swaps

switches = loading.cross_switches(nb.study, table)
swapped = swaps.swap_table(nb.study, switches, records_tokens.token_decoder(nb.study))
nb.table(swapped, "swaps")
paragraph(swaps.say_swaps(swapped))

# %% [markdown]
# ## 2.9 Where one swap decides
#
# Primary, mixture and the other model on the same problem with the same noise. Filled marks are
# effective replacements. The paper finds that replaced tokens often look locally interchangeable,
# yet the trajectory goes another way. Chosen: the first responses that a single effective
# replacement turns, from wrong to right forward and from right to wrong in reverse.

# %%
from IPython.display import display

from tokenshift_utils.report.heatmap import show_trajectories

examples, deciding = loading.cross_examples(nb.study, table)
display(show_trajectories(examples, records_tokens.tokenizer(nb.study)))
paragraph(deciding)

# %% [markdown]
# ## 2.10 What reproduced
#
# Each claim with what was measured; criteria and reasons are in notebook 00.

# %%
# NBVAL_CHECK_OUTPUT
from tokenshift_utils.sections.overview import say_claims, section_claims

print(say_claims(section_claims(nb.study, found, 2)))
