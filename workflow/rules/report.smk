# Summaries of the evaluations -> Table 1 and its picture.


localrules:
    assemble_table,
    plot_accuracy,


rule assemble_table:
    input:
        summaries=summaries,
        published=ancient(PUBLISHED),  # by digest below: a clone gives it a new time
    output:
        csv="results/table1.csv",
        markdown="results/table1.md",
        made="results/table1.json",
    log:
        "logs/assemble_table.log",
    conda:
        "../../environment.yml"
    resources:
        runtime=5,
        mem_mb=1000,
    params:
        rows=json.dumps(table_rows()),
        dataset=CONFIG.dataset,
        published=file_digest(Path(PUBLISHED)),
        code=code_of("assemble_table"),
    message:
        "Assembling Table 1"
    shell:
        "script assemble_table --rows {params.rows:q} --dataset {params.dataset:q} "
        "--published {input.published:q} --csv {output.csv} --markdown {output.markdown} --made {output.made} --log {log}"


rule plot_accuracy:
    input:
        table="results/table1.csv",
        published=ancient(PUBLISHED),
    output:
        "results/figures/accuracy.png",
    log:
        "logs/plot_accuracy.log",
    conda:
        "../../environment.yml"
    resources:
        runtime=5,
        mem_mb=1000,
    params:
        dataset=CONFIG.dataset,
        published=file_digest(Path(PUBLISHED)),
        code=code_of("plot_accuracy"),
    message:
        "Drawing accuracy against frame count"
    shell:
        "script plot_accuracy --table {input.table} --published {input.published:q} "
        "--dataset {params.dataset:q} --output {output} --log {log}"
