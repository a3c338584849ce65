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
# from the other model, the intervention. Forward: base writes, RL's tokens are put in (sufficiency).
# Reverse: RL writes, base's tokens are put in (necessity).
#
# - *Switched*: the rule fired. *Effectively replaced*: the token differs from the one that the
#   primary would have written with the same noise. The paper does not define its "effective".
# - Every mixture is compared with both models' own responses to the same problem, sample and noise.
#   So switching every position gives the other model's accuracy exactly, and what it replaces is
#   all that can be replaced: replacements are counted in that, accuracy in the gap between the two.
# - Accuracy is the mean over problems of the mean over samples; intervals resample problems; those
#   over training seeds are in 2.10.

# %% tags=["parameters"]
study = "tiny"  # a study under notebooks/studies, or the path of a study file
pairs = None  # list of tuned models to mix with base; None: as in the study
thresholds = None  # list of JS thresholds (nats); None: as in the study
random_rates = None  # list of rates (0 to 1) of positions switched by chance; None: as in the study
top_p = None  # nucleus mass (0 to 1] while mixing; None: as in the study
benchmark = None  # the one for other rules, other tokens and single tokens; None: as in the study
budgets = None  # list of switches a response for the JS rule; None: as in the study
samples = None  # mixed responses a problem; None: as in the study
resamples = None  # bootstrap resamples; None: as in the study

# %%
from tokenshift_utils.run.notebook import start

nb = start("02_cross_sampling", globals())

# %% [markdown]
# What is missing of the records is computed here, once; later runs read it.

# %%
from tokenshift_utils.sections.cross_sampling import examples, numbers, plots, records, rules

from tokenshift_utils.sections.cross_sampling import single_token, summary, swaps  # isort: skip

data = records.cross_records(nb.study)
mixed = numbers.MixtureEstimates(nb.study, data.runs, data.rollouts)
table = numbers.curve_table(mixed)
reach = summary.summary_table(mixed, data.rules, data.interventions)
oracle = summary.oracle_table(mixed, data.rules, data.interventions)

# %% [markdown]
# ## 2.1 Is a small share of the tokens enough, and is it needed?
#
# The paper: a small share of RL's tokens recovers RL's accuracy in base's generation, and as small a
# share of base's tokens takes it away. Yardsticks here are random positions, the diagonal (every
# replacement does the same), and an oracle: the fewest replacements that turned each response among
# all mixtures in the records, chosen afterwards. The thin line is 95% of the gap.

# %%
nb.figure(
    plots.plot_curves(nb.study, table, oracle), "forward_reverse",
    "Share of the accuracy gap made up against the share of full switching's replacements, both "
    "directions: the JS rule, random positions, the diagonal and an oracle far to the left.",
)  # fmt: skip
nb.say(summary.say_summary(reach))
nb.table(reach, "summary", "replacements for 95% of the gap, and what chance does with as many")
nb.table(table, "curves", "accuracy at every threshold and rate, by benchmark")

# %% [markdown]
# ## 2.2 In the form of the paper's Table 1
#
# The paper: up to 10.1% of tokens, effectively replaced, recover or destroy nearly all of the gain.
# For each pair and direction this is the threshold with the largest effective share up to 10.1%,
# chosen by share, never by accuracy. Beside it the paper's own, as known from published summaries.

# %%
budget = numbers.budget_table(nb.study, table)
nb.say(numbers.say_budget(budget))
nb.table(budget, "cross_sampling", "the setting within 10.1% of tokens")
nb.table(examples.table1(), "paper_table1", "the paper's Table 1")

# %% [markdown]
# ## 2.3 Are the positions special?
#
# Asked for by reviewers: random positions. Switched as often as the rule they mostly put in the
# token that was coming anyway; the harder control replaces as many tokens *effectively*. It is
# matched exactly at every threshold, on the line through the random rates of the study.

# %%
matched = summary.matched_table(mixed)
nb.figure(
    plots.plot_matched(nb.study, matched), "random_control",
    "Lead of the JS rule over random positions in points of the gap, against what it replaces: large "
    "over those switched as often, small over those that replace as many tokens.",
)  # fmt: skip
nb.say(summary.say_matched(matched))
nb.table(matched, "random_control", "lead over both kinds of random positions")

# %% [markdown]
# ## 2.4 Other rules
#
# The paper uses JS of the nuclei. On one benchmark it is compared with JS of the full distributions,
# KL both ways, the primary's entropy, Huang et al.'s signed log-prob difference (2026; it sees the
# token that the primary drew), the first n positions, the first n JS switches and random positions.

# %%
with_rules = numbers.MixtureEstimates(nb.study, data.rules, data.rollouts)
compared, ahead = rules.rule_table(with_rules), rules.rule_summary(with_rules)
nb.figure(
    plots.plot_rules(nb.study, ahead), "rules",
    "Mean lead of the JS rule over every other rule at as many replacements, with intervals.",
)  # fmt: skip
nb.say(rules.say_rules(ahead))
nb.table(ahead, "rules_summary", "the JS rule's lead over each, and replacements for 95%")
nb.table(compared, "rules", "every rule at every threshold")

# %% [markdown]
# ## 2.5 Other tokens at the same kind of position
#
# If the positions alone mattered, any token there would do. At positions chosen by JS: the tokens of
# the RL models, of SFT controls, of the extrapolation RL^(1+g) / base^g (forward), and as a null
# control the primary's own token drawn with other luck.

# %%
tokens = rules.intervention_table(
    numbers.MixtureEstimates(nb.study, data.interventions, data.rollouts)
)
nb.figure(
    plots.plot_interventions(nb.study, tokens), "interventions",
    "Accuracy against tokens replaced a response, by whose tokens are put in; dotted lines are the two "
    "models' own accuracies.",
)  # fmt: skip
nb.say(rules.say_interventions(nb.study, tokens))
nb.table(tokens, "interventions", "other tokens at JS positions")

# %% [markdown]
# ## 2.6 What a single token causes
#
# What makes a position critical was asked by reviewers. At positions of the primary's own responses,
# drawn evenly over strata of JS, the primary goes on from its own token and from the intervention's,
# on the same noise: the effect is the difference of the success rates.

# %%
single = single_token.with_features(nb.study, data.single_token, records.token_decoder(nb.study))
effects = single_token.effect_table(nb.study, single)
nb.figure(
    plots.plot_effects(nb.study, effects), "single_token",
    "Effect of one token where the two differ, and share of equal tokens, over JS; marks have their n.",
)  # fmt: skip
nb.say(single_token.say_effects(effects))
nb.table(effects, "single_token", "effects by stratum of JS")

# %% [markdown]
# ## 2.7 What makes a token critical
#
# Where the two tokens differ: which measure ranks positions best by the effect, how much of it can be
# foretold from base alone and from both models (least squares, judged on unseen problems, under the
# ceiling that the noise of the continuations leaves), and what the choice decides, by stated rules.

# %%
ranking = single_token.ranking_table(nb.study, single)
foretold = single_token.model_table(nb.study, single)
decisions = single_token.decision_table(nb.study, single)
nb.figure(
    plots.plot_critical(nb.study, ranking, foretold), "critical",
    "Rank correlation of each measure with the effect, and variance of the effect foretold by sets of "
    "features, with the ceiling.",
)  # fmt: skip
nb.say(single_token.say_critical(ranking, foretold, decisions))
nb.table(ranking, "critical_ranking", "rank correlation with the effect")
nb.table(foretold, "critical_model", "variance of the effect foretold")
nb.table(decisions, "critical_decisions", "effects by what the tokens decide")

# %% [markdown]
# ## 2.8 Which tokens are swapped for which
#
# The paper: replaced tokens often look locally interchangeable. The most frequent effective
# replacements of the settings in 2.2: what the primary would have written, and what was put in.

# %%
switches = examples.cross_switches(nb.study, table)
swapped = swaps.swap_table(nb.study, switches, records.token_decoder(nb.study))
nb.say(swaps.say_swaps(swapped))
nb.table(swapped, "swaps", "the most frequent replacements")

# %% [markdown]
# ## 2.9 Where one swap decides
#
# The paper: yet the trajectory goes another way. Primary, mixture and the other model on the same
# problem with the same noise; filled marks are effective replacements. Chosen: the first responses
# that a single one turns, from wrong to right forward and from right to wrong in reverse.

# %%
shown, deciding = examples.cross_examples(nb.study, table, effects)
nb.show(examples.show_trajectories(shown, examples.tokenizer(nb.study)))
nb.say(deciding)

# %% [markdown]
# ## 2.10 Does it hold for another training seed?
#
# All above is of one training run of each recipe. Here the same training from other seeds is mixed with
# base alike, on one benchmark, and the first run is measured on that benchmark alone beside them. Thick:
# the first run with its interval over problems; thin: the other seeds.

# %%
runs = numbers.MixtureEstimates(nb.study, data.seeds, data.rollouts)
by_run, reach_by_run, seeds = summary.over_seeds(runs)
words = "Share of the gap against replacements on one benchmark: a line a training seed, both directions"
if len(by_run):
    nb.figure(plots.plot_seeds(nb.study, by_run), "seeds", alt=words)
nb.say(summary.say_seeds(nb.study, seeds))
if len(by_run):
    nb.table(reach_by_run, "seeds_summary", "the same as in 2.1 of every seed, on one benchmark")
nb.table(seeds, "seeds", "what the claims look at over training seeds, on one benchmark")

# %% [markdown]
# ## 2.11 What reproduced
#
# Each claim with what was measured; criteria and reasons are in notebook 00. What to read next:
# notebook 03, on what changes at these positions, and notebook 05, on what of JS is the nucleus's edge.

# %%
# NBVAL_CHECK_OUTPUT
found = numbers.cross_evidence(mixed, table, reach, matched)
nb.table(found, "evidence", "what the claims look at")
nb.say(examples.say_reproduced(nb.study, found, seeds))

# %% [markdown]
# ## 2.12 What if
#
# The explorer shows single responses while the threshold moves: what is replaced, by what, and where
# the text goes from there.

# %%
nb.explorer(data)
