# Records of the evaluations -> a table of the configuration, and its picture.


localrules:
    assemble_table,
    plot_accuracy,


rule assemble_table:
    input:
        evaluations=lambda wildcards: evaluations_of_table(wildcards.table),
        # They are written together with the records above, which are newer.
        predictions=ancient(lambda wildcards: predictions_of_table(wildcards.table)),
        data="results/manifest/manifest.sha256",
        # The digest below counts, not the file's time: a clone gives the file a new time.
        published=ancient(PUBLISHED),
    output:
        csv="results/{table}.csv",
        markdown="results/{table}.md",
        latex="results/{table}.tex",
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
