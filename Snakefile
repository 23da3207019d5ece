from snakemake.utils import min_version

min_version("9.3")


configfile: "config/config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/plan.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"


localrules:
    all,


rule all:
    default_target: True
    input:
        TABLE,
        "results/table1.md",
        "results/table1.json",
        "results/figures/accuracy.png",
        "results/figures/class_counts.png",
        "results/figures/clip_lengths.png",
