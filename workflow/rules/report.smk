# Records of the evaluations -> a table of the configuration, and its picture.

from ffnrepro.tables import check_published, read_published, read_rows


localrules:
    assemble_table,
    plot_accuracy,


def rows_of_table(name):
    """Rows of a table as plain values (`ffnrepro.tables.TableRow`)."""
    table = CONFIG.tables[name]
    return [
        {
            "label": row.label,
            "published": row.published and [row.published.method, row.published.setting],
            "evaluations": {
                frames: expand(
                    "results/runs/{run}/seed{seed}/{split}_{frames}f.json",
                    run=run_of(row.experiment_at(frames)),
                    seed=CONFIG.seeds,
                    split=CONFIG.evaluation.split,
                    frames=frames,
                )
                for frames in table.frame_counts
            },
        }
        for row in table.rows
    ]


def table_rows(wildcards):
    return json.dumps(rows_of_table(wildcards.table))


def table_evaluations(wildcards):
    """The records behind a table; a row that is compared with unknown figures is refused before anything runs."""
    rows = read_rows(table_rows(wildcards))
    try:
        check_published(rows, read_published(Path(PUBLISHED)))
    except UserError as error:
        sys.exit(f"error: {error}")
    return sorted({str(path) for row in rows for paths in row.evaluations.values() for path in paths})


rule assemble_table:
    input:
        evaluations=table_evaluations,
        data="results/manifest/manifest.sha256",
        published=ancient(PUBLISHED),  # by its digest below: a clone gives it a new time
    output:
        csv="results/{table}.csv",
        markdown="results/{table}.md",
        record="results/{table}.json",
    log:
        "logs/assemble_table/{table}.log",
    wildcard_constraints:
        table="|".join(CONFIG.tables),
    conda:
        "../../environment.yml"
    resources:
        runtime=5,
        mem_mb=1000,
    params:
        script=script("assemble_table"),
        rows=table_rows,
        dataset=CONFIG.dataset,
        split=CONFIG.evaluation.split,
        sizes=f"--short-side {CONFIG.data.short_side} --crop-size {CONFIG.data.crop_size}",
        published=file_digest(Path(PUBLISHED)),
        code=closure_digests(["ffnrepro.tables"]),
    message:
        "Assembling {wildcards.table}"
    shell:
        "python {params.script} --table {wildcards.table} --rows {params.rows:q} --dataset {params.dataset:q} "
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
    wildcard_constraints:
        table="|".join(CONFIG.tables),
    conda:
        "../../environment.yml"
    resources:
        runtime=5,
        mem_mb=1000,
    params:
        script=script("plot_accuracy"),
        dataset=CONFIG.dataset,
        published=file_digest(Path(PUBLISHED)),
        code=closure_digests(["ffnrepro.figures"]),
    message:
        "Drawing the accuracy of {wildcards.table} against the frame count"
    shell:
        "python {params.script} --table {input.table} --published {input.published:q} "
        "--dataset {params.dataset:q} --output {output} --log {log}"
