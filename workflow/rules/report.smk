# Records of the evaluations -> a table of the configuration, its picture, and its curves at any frame count; a network of
# FFN -> its BatchNorm statistics.


localrules:
    assemble_table,
    plot_accuracy,
    assemble_curve,
    plot_batchnorm,


def rows_of_curve(name):
    """Rows of a table; a row with one network has its evaluation at any frame instead of those of the table."""
    rows = rows_of_table(name)
    for row, settings in zip(rows, CONFIG.tables[name].rows, strict=True):
        if isinstance(settings.experiments, str):
            records = expand(
                f"{TRAINING}/{{split}}_any_frame.json",
                run=RUN_LIST.selected[settings.experiments],
                seed=CONFIG.seeds,
                split=CONFIG.evaluation.split,
            )
            row["evaluations"] = dict.fromkeys(CONFIG.evaluation.any_frame, records)
    return rows


def evaluations_of_curve(name):
    """Records behind the curves of a table; wrong settings are refused before anything runs."""
    evaluations_of_table(name)
    return sorted(
        {path for row in rows_of_curve(name) for paths in row["evaluations"].values() for path in paths}
    )


def network_with_private_norms(wildcards):
    """Network of an experiment, of the first seed; an experiment without specialised normalisation is refused."""
    experiment = wildcards.experiment
    with one_line_errors():
        check(experiment)
        if not getattr(CONFIG.experiments[experiment].method, "specialized_normalization", False):
            raise UserError(
                f"config: experiments.{experiment} has no BatchNorm statistics for each frame count; ask for an experiment "
                "of method ffn with specialized_normalization: true"
            )
    return f"results/runs/{RUN_LIST.selected[experiment]}/seed{CONFIG.seeds[0]}/model"


rule assemble_table:
    input:
        evaluations=lambda wildcards: evaluations_of_table(wildcards.table),
        data="results/manifest/manifest.sha256",
        # The digest below counts, not the file's time: a clone gives the file a new time.
        published=ancient(PUBLISHED),
    output:
        csv="results/{table}.csv",
        markdown="results/{table}.md",
        record="results/{table}.json",
    log:
        "logs/assemble_table/{table}.log",
    conda:
        "../../environment.yml"
    resources:
        script=script("assemble_table"),
        runtime=5,
        mem_mb=1000,
    params:
        rows=lambda wildcards: json.dumps(rows_of_table(wildcards.table)),
        dataset=CONFIG.dataset,
        split=CONFIG.evaluation.split,
        sizes=f"--short-side {CONFIG.data.short_side} --crop-size {CONFIG.data.crop_size}",
        published=file_digest(Path(PUBLISHED)),
        code=module_code("ffnrepro.tables"),
    message:
        "Assembling {wildcards.table}"
    shell:
        "python {resources.script:q} --table {wildcards.table} --rows {params.rows:q} --dataset {params.dataset:q} "
        "--split {params.split} {params.sizes} --data {input.data} --published {input.published:q} "
        "--output results --log {log}"


rule plot_accuracy:
    input:
        table="results/{table}.csv",
        published=ancient(PUBLISHED),
    output:
        "results/figures/{table}.png",
    log:
        "logs/plot_accuracy/{table}.log",
    conda:
        "../../environment.yml"
    resources:
        script=script("plot_accuracy"),
        runtime=5,
        mem_mb=1000,
    params:
        dataset=CONFIG.dataset,
        published=file_digest(Path(PUBLISHED)),
        code=module_code("ffnrepro.figures"),
    message:
        "Drawing the accuracy of {wildcards.table} against the frame count"
    shell:
        "python {resources.script:q} --table {input.table} --published {input.published:q} "
        "--dataset {params.dataset:q} --output {output} --log {log}"


rule assemble_curve:
    input:
        evaluations=lambda wildcards: evaluations_of_curve(wildcards.table),
        data="results/manifest/manifest.sha256",
        published=ancient(PUBLISHED),
    output:
        csv="results/{table}_curve.csv",
        figure="results/figures/{table}_curve.png",
    log:
        "logs/assemble_curve/{table}.log",
    conda:
        "../../environment.yml"
    resources:
        script=script("assemble_curve"),
        runtime=5,
        mem_mb=1000,
    params:
        rows=lambda wildcards: json.dumps(rows_of_curve(wildcards.table)),
        frames=CONFIG.evaluation.any_frame,
        dataset=CONFIG.dataset,
        split=CONFIG.evaluation.split,
        sizes=f"--short-side {CONFIG.data.short_side} --crop-size {CONFIG.data.crop_size}",
        published=file_digest(Path(PUBLISHED)),
        code=f"{module_code('ffnrepro.curves')} {module_code('ffnrepro.figures')}",
    message:
        "Drawing the accuracy of {wildcards.table} at any frame count"
    shell:
        "python {resources.script:q} --rows {params.rows:q} --frames {params.frames} --dataset {params.dataset:q} "
        "--split {params.split} {params.sizes} --data {input.data} --published {input.published:q} "
        "--csv {output.csv} --figure {output.figure} --log {log}"


rule plot_batchnorm:
    input:
        digest=lambda wildcards: f"{network_with_private_norms(wildcards)}.sha256",
        model=ancient(lambda wildcards: f"{network_with_private_norms(wildcards)}.pt"),
    output:
        csv="results/figures/batchnorm_{experiment}.csv",
        figure="results/figures/batchnorm_{experiment}.png",
    log:
        "logs/plot_batchnorm/{experiment}.log",
    wildcard_constraints:
        experiment="|".join(CONFIG.experiments),
    conda:
        "../../environment.yml"
    resources:
        script=script("plot_batchnorm"),
        runtime=5,
        mem_mb=2000,
    params:
        code=f"{module_code('ffnrepro.batchnorm')} {module_code('ffnrepro.figures')}",
    message:
        "Drawing the BatchNorm statistics of {wildcards.experiment}"
    shell:
        "python {resources.script:q} --model {input.model} --csv {output.csv} --figure {output.figure} --log {log}"
