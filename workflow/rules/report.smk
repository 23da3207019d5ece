# Records of the evaluations -> a table of the configuration, its plot, and its curves at any frame count; an FFN network ->
# its BatchNorm statistics; the tables of the report and their networks -> the diagnosis and the report.


localrules:
    assemble_table,
    plot_accuracy,
    assemble_curve,
    plot_batchnorm,
    diagnose,
    report,


rule assemble_table:
    input:
        evaluations=lambda wildcards: evaluations_of_table(wildcards.table),
        # They are written together with the records above, which are newer.
        predictions=ancient(lambda wildcards: predictions_of(evaluations_of_table(wildcards.table))),
        data="results/manifest/manifest.sha256",
        # The digest below counts, not the file's time: a clone gives the file a new time.
        published=ancient(PUBLISHED),
    output:
        csv=report("results/{table}.csv", caption="../report/table.rst", category="{table}"),
        markdown=report("results/{table}.md", caption="../report/table.rst", category="{table}"),
        latex=report("results/{table}.tex", caption="../report/table.rst", category="{table}"),
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
        code=module_code("ffnrepro.table_text"),
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
        report("results/figures/{table}.png", caption="../report/accuracy.rst", category="{table}"),
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
        "Plotting the accuracy of {wildcards.table} against the frame count"
    shell:
        "python {resources.script:q} --table {input.table} --published {input.published:q} "
        "--dataset {params.dataset:q} --output {output} --log {log}"


rule assemble_curve:
    input:
        evaluations=lambda wildcards: evaluations_of_curve(wildcards.table),
        predictions=ancient(lambda wildcards: predictions_of(evaluations_of_curve(wildcards.table))),
        data="results/manifest/manifest.sha256",
        published=ancient(PUBLISHED),
    output:
        csv=report("results/{table}_curve.csv", caption="../report/curve.rst", category="{table}"),
        figure=report("results/figures/{table}_curve.png", caption="../report/curve.rst", category="{table}"),
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
        "Plotting the accuracy of {wildcards.table} at any frame count"
    shell:
        "python {resources.script:q} --rows {params.rows:q} --frames {params.frames} --dataset {params.dataset:q} "
        "--split {params.split} {params.sizes} --data {input.data} --published {input.published:q} "
        "--csv {output.csv} --figure {output.figure} --log {log}"


rule plot_batchnorm:
    input:
        digest=lambda wildcards: f"{network_with_private_norms(wildcards)}.sha256",
        model=ancient(lambda wildcards: f"{network_with_private_norms(wildcards)}.pt"),
    output:
        csv=report(
            "results/figures/batchnorm_{experiment}.csv",
            caption="../report/batchnorm.rst",
            category="BatchNorm",
        ),
        figure=report(
            "results/figures/batchnorm_{experiment}.png",
            caption="../report/batchnorm.rst",
            category="BatchNorm",
        ),
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
        "Plotting the BatchNorm statistics of {wildcards.experiment}"
    shell:
        "python {resources.script:q} --model {input.model} --csv {output.csv} --figure {output.figure} --log {log}"


rule diagnose:
    input:
        # Each table was checked when it was made: it belongs to the evaluations and networks that it names.
        tables=expand("results/{table}.json", table=CONFIG.report.tables),
        networks=ancient(lambda wildcards: files_of_report()),
        summary="results/manifest/summary.json",
    output:
        record="results/diagnosis.json",
        text=report("results/diagnosis.txt", caption="../report/diagnosis.rst", category="Diagnosis"),
    log:
        "logs/diagnose.log",
    conda:
        "../../environment.yml"
    resources:
        script=script("diagnose"),
        runtime=15,
        mem_mb=4000,
    params:
        # Only these two modules count: the code of the settings, which they import, changes often, but changes no finding.
        code=code_digests(["ffnrepro.diagnosis"], within="ffnrepro.faults"),
    message:
        "Checking the networks and scores of {input.tables} for known faults"
    shell:
        "python {resources.script:q} --tables {input.tables} --summary {input.summary} --output {output.record} "
        "--log {log}"


rule report:
    input:
        tables=expand("results/{table}.json", table=CONFIG.report.tables),
        # Where one of them changes, the table is made again, and this page after it.
        networks=ancient(lambda wildcards: files_of_report()),
        diagnosis="results/diagnosis.json",
        classes="results/labels/classes.csv",
        summary="results/manifest/summary.json",
        excluded="results/manifest/excluded.csv",
        split=ancient(f"results/manifest/{CONFIG.evaluation.split}.parquet"),
        published=ancient(PUBLISHED),
    output:
        report("results/report.html", caption="../report/report.rst", category="Report"),
    log:
        "logs/report.log",
    conda:
        "../../environment.yml"
    resources:
        script=script("report"),
        videos=CONFIG.data.videos,
        runtime=15,
        mem_mb=4000,
    params:
        published=file_digest(Path(PUBLISHED)),
        code=f"{report_code()} {module_code('ffnrepro.table_text')}",
    message:
        "Writing the report of {input.tables}"
    shell:
        "python {resources.script:q} --tables {input.tables} --published {input.published:q} "
        "--diagnosis {input.diagnosis} --manifest results/manifest --classes {input.classes} "
        "--videos {resources.videos:q} --output {output} --log {log}"
