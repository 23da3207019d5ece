import os

from snakemake.utils import min_version

min_version("9.3")


configfile: os.path.join(workflow.basedir, "config", "config.yaml")
configfile: os.path.join(workflow.basedir, "config", "paper.yaml")


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"


localrules:
    all,


rule all:
    default_target: True
    input:
        expand("results/table1.{ending}", ending=["csv", "md", "tex", "json"]),
        "results/figures/table1.png",
        "results/figures/class_counts.png",
        "results/figures/clip_lengths.png",
        "results/diagnosis.json",
        "results/report.html",
        # A deleted network or evaluation is made again, even while the table is there.
        lambda wildcards: files_of_table("table1"),


# The name of an experiment is a target: it trains its networks and evaluates them.
for experiment in CONFIG.experiments:
    if workflow.is_rule(experiment):
        sys.exit(f"error: config: experiments.{experiment} has the name of a rule; give it another name")

    rule:
        name:
            experiment
        input:
            evaluations_of_experiment(experiment),


# For a mistyped experiment or table, Snakemake itself would only say that no rule makes it.
rule unknown:
    input:
        lambda wildcards: refuse(wildcards.target),
    output:
        "{target}",
    wildcard_constraints:
        target=rf"[^/.]+|results/(?!(?:{'|'.join(CONFIG.tables)})(?:_curve)?\.)\w+\.csv",
